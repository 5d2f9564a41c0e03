"""Pictures as features: small convolutional networks, and the random shifts they are trained with.

Kostrikov, Yarats, Fergus: "Image Augmentation Is All You Need" (DrQ). Each camera has a network of
its own: 3 x 3 convolutions, the first with stride 2, then a linear map to a few numbers, a layer
norm and tanh. Frames of a stack are channels of one picture. Agents that train side by side (K of
them) are groups of one convolution, so that each parameter's first axis is a multiple of K.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from learners.normaliser import Picture
from schemas.errors import ConfigError

KERNEL = 3
LAYERS: dict[str, tuple[tuple[int, int], ...]] = {
    "conv": ((32, 2), (32, 1), (32, 1), (32, 1)),
    "small": ((16, 2), (32, 2)),
}
"""Channels and stride of each convolution; `conv` is DrQ's, `small` is for pictures below 20
pixels and for tests."""


LARGEST = 1 << 26
"""Parameters of one layer of one agent: what settings of a published policy may ask for."""


def random_shift(pictures: Tensor, drawn: Tensor, pad: int) -> Tensor:
    """Moves each picture by up to `pad` pixels in both directions, its edge repeated.

    This is DrQ's augmentation: `pad` copies of the edge around the picture, and then a cut of its
    own size from anywhere.

    Args:
        pictures: (N, H, W, C), of any dtype.
        drawn: (N, 2) in [0, 1), where the cut begins: 0 at the top and left end.
        pad: pixels.

    Returns:
        As `pictures`, on their device.
    """
    _, height, width, _ = pictures.shape
    # Just below 1 times an integer may round up to it.
    begin = (drawn * (2 * pad + 1)).long().clamp(max=2 * pad) - pad
    rows, columns = (
        (begin[:, axis, None] + torch.arange(size, device=begin.device)).clamp(0, size - 1)
        for axis, size in enumerate((height, width))
    )
    which = torch.arange(len(pictures), device=begin.device)
    return pictures[which[:, None, None], rows[:, :, None], columns[:, None, :]]


def output_pixels(picture: Picture, layers: str) -> int:
    """Returns how many pixels are left of a picture after the convolutions.

    Raises:
        ConfigError: if there is none.
    """
    height, width = picture.height, picture.width
    for _, stride in LAYERS[layers]:
        height, width = ((size - KERNEL) // stride + 1 for size in (height, width))
    if min(height, width) < 1:
        raise ConfigError(
            f"Expected pictures that {len(LAYERS[layers])} convolutions fit into, came "
            f"{picture.name} of {picture.height} x {picture.width} pixels; set encoder=small, or "
            f"resize the pictures.",
            where=picture.name,
        )
    return height * width


def check_size(picture: Picture, channels: int, layers: str, feature: int) -> None:
    """Refuses encoders whose first or last layer would be far too large.

    Args:
        picture: a field.
        channels: of its stacked frames.
        layers: a key of `LAYERS`.
        feature: numbers that come out.

    Raises:
        ConfigError: if one has more than `LARGEST` parameters, or none.
    """
    first, last = LAYERS[layers][0][0], LAYERS[layers][-1][0]
    wanted = max(channels * first * KERNEL**2, output_pixels(picture, layers) * last * feature)
    if wanted > LARGEST:
        raise ConfigError(
            f"Expected layers of at most {LARGEST:,} parameters, came one of {wanted:,} for "
            f"{picture.name}; resize the pictures, or set fewer features.",
            where=picture.name,
        )


class Camera(nn.Module):
    """The network of one picture field.

    Args:
        picture: the field.
        frames: how many stand stacked in one picture.
        layers: a key of `LAYERS`.
        feature: numbers that come out.
        generators: one per agent, draws its initial weights; nothing else does.

    Raises:
        ConfigError: if pictures are too small, or too large.
    """

    def __init__(
        self,
        picture: Picture,
        frames: int,
        layers: str,
        feature: int,
        generators: Sequence[torch.Generator],
    ) -> None:
        super().__init__()
        self.agents = agents = len(generators)
        self.strides = tuple(stride for _, stride in LAYERS[layers])
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        channels = frames * picture.channels
        check_size(picture, channels, layers, feature)
        for wide, _ in LAYERS[layers]:
            self.weights.append(nn.Parameter(torch.empty(agents * wide, channels, KERNEL, KERNEL)))
            self.biases.append(nn.Parameter(torch.zeros(agents * wide)))
            channels = wide
        flat = channels * output_pixels(picture, layers)
        self.projection = nn.Parameter(torch.empty(agents, flat, feature))
        self.offset = nn.Parameter(torch.zeros(agents, 1, feature))
        self.norm_scale = nn.Parameter(torch.ones(agents, 1, feature))
        self.norm_shift = nn.Parameter(torch.zeros(agents, 1, feature))
        for agent, generator in enumerate(generators):
            for weight in self.weights:
                own = weight.data.view(agents, -1, *weight.shape[1:])[agent]
                nn.init.orthogonal_(own, math.sqrt(2.0), generator)
            nn.init.orthogonal_(self.projection.data[agent], 1.0, generator)

    def forward(self, pictures: Tensor) -> Tensor:
        """Maps uint8 pictures (K, B, H, W, F C) to features (K, B, feature) in (-1, 1)."""
        agents, rows, height, width, channels = pictures.shape
        hidden = pictures.permute(1, 0, 4, 2, 3).reshape(rows, agents * channels, height, width)
        hidden = hidden.to(torch.float32) / 255.0 - 0.5
        for weight, bias, stride in zip(self.weights, self.biases, self.strides, strict=True):
            hidden = functional.conv2d(hidden, weight, bias, stride, groups=agents)
            hidden = torch.relu(hidden)
        hidden = hidden.reshape(rows, agents, -1).transpose(0, 1)
        projected = torch.baddbmm(self.offset, hidden, self.projection)
        normed = functional.layer_norm(projected, projected.shape[-1:])
        return torch.tanh(normed * self.norm_scale + self.norm_shift)


class Encoder(nn.Module):
    """All cameras, each with a network of its own, and the numbers beside them.

    Args:
        pictures: the picture fields, in the order in which pictures come.
        frames: how many stand stacked in one picture.
        layers: a key of `LAYERS`.
        feature: numbers that come out of each camera.
        generators: one per agent, draws its initial weights.

    Raises:
        ConfigError: if a picture is too small, or too large.
    """

    def __init__(
        self,
        pictures: Sequence[Picture],
        frames: int,
        layers: str,
        feature: int,
        generators: Sequence[torch.Generator],
    ) -> None:
        super().__init__()
        self.cameras = nn.ModuleList(
            Camera(picture, frames, layers, feature, generators) for picture in pictures
        )
        self.dims = feature * len(pictures)
        """Features of all cameras together."""

    def forward(self, numbers: Tensor, pictures: Sequence[Tensor]) -> Tensor:
        """Maps numbers (K, B, O) and pictures (K, B, H, W, F C) to (K, B, dims + O)."""
        seen = [camera(one) for camera, one in zip(self.cameras, pictures, strict=True)]
        return torch.cat([*seen, numbers], dim=-1)
