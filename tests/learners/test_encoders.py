"""Encoders of pictures: shifts by hand, one agent among several, and a slow convolution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from learners.agents import Agents
from learners.encoders import Camera, Encoder, output_pixels, random_shift
from learners.normaliser import Picture
from learners.pixels import as_channels
from schemas.errors import ConfigError

COLOUR = Picture("observations/rgb", (11, 13, 3))
GREY = Picture("observations/depth", (12, 12))


def _generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def _pictures(picture: Picture, agents: int, rows: int, frames: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    shape = (agents, rows, picture.height, picture.width, frames * picture.channels)
    return torch.randint(0, 256, shape, generator=generator).to(torch.uint8)


# -- random shifts ---------------------------------------------------------------------------------


def test_a_shift_by_hand() -> None:
    picture = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]], dtype=torch.uint8)[None, ..., None]
    # Of 3 places (one pixel up, none, one down), 0.1 is the first, 0.5 the second, 0.9 the third.
    moved = {
        (0.5, 0.5): [[1, 2, 3], [4, 5, 6], [7, 8, 9]],
        (0.1, 0.5): [[1, 2, 3], [1, 2, 3], [4, 5, 6]],
        (0.5, 0.9): [[2, 3, 3], [5, 6, 6], [8, 9, 9]],
        (0.9, 0.1): [[4, 4, 5], [7, 7, 8], [7, 7, 8]],
    }
    for drawn, expected in moved.items():
        found = random_shift(picture, torch.tensor([drawn]), 1)
        assert found.dtype == torch.uint8
        assert found[0, ..., 0].tolist() == expected


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 5), st.integers(0, 2**32 - 1))
def test_a_shift_is_a_cut_from_the_padded_picture(pad: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    pictures = random.integers(0, 256, (3, 7, 5, 2), np.uint8)
    drawn = random.uniform(size=(3, 2)).astype(np.float32)
    found = random_shift(torch.from_numpy(pictures), torch.from_numpy(drawn), pad).numpy()
    padded = np.pad(pictures, ((0, 0), (pad, pad), (pad, pad), (0, 0)), "edge")
    for row, (y, x) in enumerate((drawn * (2 * pad + 1)).astype(int)):
        assert (found[row] == padded[row, y : y + 7, x : x + 5]).all()


def test_a_number_just_below_one_is_the_last_place() -> None:
    pictures = torch.arange(9, dtype=torch.uint8).view(1, 9, 1, 1)
    last = torch.nextafter(torch.tensor(1.0), torch.tensor(0.0))
    found = random_shift(pictures, torch.full((1, 2), float(last)), 4)
    assert found.flatten().tolist() == [4, 5, 6, 7, 8, 8, 8, 8, 8]


# -- frames as channels ----------------------------------------------------------------------------


def test_frames_become_channels_the_oldest_first() -> None:
    frames = torch.arange(2 * 2 * 4 * 5 * 3).view(2, 2, 4, 5, 3)  # B, F, H, W, C
    found = as_channels(frames, Picture("p", (4, 5, 3)), 2, True)
    assert found.shape == (2, 4, 5, 6)
    assert (found[..., :3] == frames[:, 0]).all()
    assert (found[..., 3:] == frames[:, 1]).all()

    first = as_channels(frames.movedim(-1, 2), Picture("p", (3, 4, 5)), 2, True)
    assert (first == found).all()

    grey = as_channels(frames[..., 0], Picture("p", (4, 5)), 2, True)
    assert (grey == found[..., ::3]).all()


def test_a_lone_frame_stands_for_those_before_it() -> None:
    frame = torch.arange(2 * 4 * 5 * 3).view(2, 4, 5, 3)
    found = as_channels(frame, Picture("p", (4, 5, 3)), 3, False)
    assert all((found[..., 3 * k : 3 * k + 3] == frame).all() for k in range(3))


# -- networks --------------------------------------------------------------------------------------


def _slow(state: dict[str, Tensor], strides: tuple[int, ...], pictures: Tensor) -> Tensor:
    """One agent's features (B, feature), pixel by pixel, in float64."""
    hidden = pictures.double().movedim(-1, 1) / 255 - 0.5
    for layer, stride in enumerate(strides):
        weight, bias = state[f"weights.{layer}"].double(), state[f"biases.{layer}"].double()
        rows = (hidden.shape[2] - 3) // stride + 1
        columns = (hidden.shape[3] - 3) // stride + 1
        out = torch.zeros(len(hidden), len(weight), rows, columns, dtype=torch.float64)
        for y in range(rows):
            for x in range(columns):
                patch = hidden[:, :, y * stride : y * stride + 3, x * stride : x * stride + 3]
                out[:, :, y, x] = (patch[:, None] * weight).sum(dim=(2, 3, 4)) + bias
        hidden = out.clamp(min=0)
    flat = hidden.reshape(len(hidden), -1) @ state["projection"][0].double()
    flat = flat + state["offset"][0]
    flat = flat - flat.mean(dim=1, keepdim=True)
    flat = flat / torch.sqrt(flat.square().mean(dim=1, keepdim=True) + 1e-5)
    return torch.tanh(flat * state["norm_scale"][0] + state["norm_shift"][0])


@pytest.mark.parametrize(("layers", "strides"), [("conv", (2, 1, 1, 1)), ("small", (2, 2))])
def test_features_are_those_of_a_slow_convolution(layers: str, strides: tuple[int, ...]) -> None:
    picture = Picture("observations", (17, 19, 3))
    camera = Camera(picture, 2, layers, 6, _generators(3))
    with torch.no_grad():  # so that nothing is left out because it is 0 or 1 at first
        for part in camera.parameters():
            part.add_(0.1 * torch.randn(part.shape, generator=torch.Generator().manual_seed(1)))
    pictures = _pictures(picture, 1, 4, frames=2)
    found = camera(pictures)[0]
    expected = _slow(camera.state_dict(), strides, pictures[0])
    assert output_pixels(picture, layers) * camera.weights[-1].shape[0] == len(camera.projection[0])
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_an_encoder_of_several_agents_is_those_of_each() -> None:
    both = Encoder((COLOUR, GREY), 1, "small", 5, _generators(3, 8))
    alone = [Encoder((COLOUR, GREY), 1, "small", 5, _generators(seed)) for seed in (3, 8)]
    numbers = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
    pictures = [_pictures(one, 2, 6) for one in (COLOUR, GREY)]
    features = both(numbers, pictures)
    assert features.shape == (2, 6, both.dims + 4)
    assert both.dims == 10
    assert (features[..., -4:] == numbers).all()
    features.square().sum().backward()
    for agent, encoder in enumerate(alone):
        one = slice(agent, agent + 1)
        mine = encoder(numbers[one], [picture[one] for picture in pictures])
        torch.testing.assert_close(features[agent], mine[0], rtol=1e-5, atol=1e-6)
        mine.square().sum().backward()
        for joint, own in zip(both.parameters(), encoder.parameters(), strict=True):
            assert len(joint) == 2 * len(own)
            part = slice(agent * len(own), (agent + 1) * len(own))
            assert joint.grad is not None
            assert torch.equal(joint[part], own)
            torch.testing.assert_close(joint.grad[part], own.grad, rtol=1e-4, atol=1e-5)


def test_the_state_of_an_agent_is_the_same_whoever_is_beside_it() -> None:
    def made(*seeds: int) -> Agents:
        agents = Agents(seeds, "cpu")
        agents.add("encoder", Encoder((COLOUR,), 3, "small", 5, agents.initial))
        agents.adam("adam", encoder=1e-3)
        return agents

    both, alone = made(3, 8), made(8)
    state = both.state(1)
    assert state.keys() == alone.state().keys()
    for name, tensor in alone.state().items():
        assert torch.equal(state[name], tensor), name
    other = made(4)
    other.load_state(state)
    assert torch.equal(other.flat["encoder"], alone.flat["encoder"])


def test_a_picture_that_is_too_small_says_what_helps() -> None:
    with pytest.raises(ConfigError, match=r"observations/rgb of 11 x 13 pixels; set encoder=small"):
        Encoder((COLOUR,), 1, "conv", 5, _generators(0))
