"""Learners that see pictures: the encoder before their networks, and frames kept while they act.

What the networks see is the features of all cameras with the numbers behind them; where no picture
is taken in, it is the numbers alone and nothing here costs anything. Which loss trains the encoder
is each algorithm's own affair.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from learners.base import Batch, Learner, Transitions
from learners.eager import uncompiled
from learners.encoders import Encoder, random_shift
from learners.inputs import named_pictures
from learners.normaliser import Picture
from learners.settings import LearnerSettings, StreamNeeds
from schemas.nesting import Nested, flatten, nest


class PixelSettings(LearnerSettings):
    """Hyperparameters of learners that may see pictures; the defaults are DrQ's."""

    pixels: bool = False
    """Whether uint8 pictures among the observations are taken in, beside the float fields."""
    encoder: Literal["conv", "small"] = "conv"
    """Convolutions of each camera: DrQ's, or two small ones for little pictures."""
    feature: int = Field(default=50, ge=1)
    """Numbers that a camera's pictures become."""
    frames: int = Field(default=1, ge=1, le=64)
    """Pictures up to the present one that are seen at once (3 in DrQ); numbers are the latest."""
    shift: int = Field(default=4, ge=0)
    """Pixels by which pictures are moved at random in training, each camera's own way; 0 does not
    (where actions depend on where on the picture something is)."""
    pictures: Literal["decode", "cache"] = "decode"
    """Whether encoded pictures are decoded each time that they are drawn, or once into the cache
    (as videos must be)."""


@dataclass(frozen=True)
class Seen:
    """Observations of K agents, before the encoder."""

    numbers: Tensor  # (K, B, O) float32, scaled
    pictures: tuple[Tensor, ...]  # (K, B, H, W, F C) uint8, one for each camera


class PixelLearner(Learner):
    """A learner whose networks may stand behind an encoder.

    `build` calls `add_encoder` first, and gives the network `encoder` to an optimiser if there is
    one.
    """

    settings: PixelSettings
    encoder: Encoder | None = None
    """None where no pictures are taken in."""

    @classmethod
    def needs(cls, settings: Any) -> StreamNeeds:
        """Asks for stacked frames, and pictures decoded as they are drawn."""
        if not settings.pixels:
            return super().needs(settings)
        stack = settings.frames
        if settings.pictures == "cache":
            return StreamNeeds(frame_stack=stack)
        return StreamNeeds(frame_stack=stack, pictures="decode")

    def add_encoder(self, states: int) -> int:
        """Makes the encoder if there are pictures; returns how many numbers networks see.

        Args:
            states: numbers beside the pictures.

        Raises:
            ConfigError: if a picture is too small.
        """
        pictures, settings = self.normaliser.pictures, self.settings
        if not pictures:
            return states
        sizes = (settings.frames, settings.encoder, settings.feature)
        made = Encoder(pictures, *sizes, self.agents.initial)
        self.encoder = self.agents.add("encoder", made)
        if settings.frames > 1:
            self.remembering = self._remembering
        return made.dims + states

    # -- learning ------------------------------------------------------------------------------

    def seen(self, observations: Any) -> Seen:
        """Returns what the agents see of a batch, their rows apart, pictures moved at random.

        Args:
            observations: (K B, ...), with an axis of frames if there are several.
        """
        split, pad = self.agents.split, self.settings.shift
        numbers, pictures = self._parts(observations)
        split_pictures = []
        for given in pictures:
            picture = split(given)
            if pad:
                count = picture.shape[:2]
                drawn = self.agents.noise.uniform(count[1], 2)
                moved = random_shift(picture.flatten(0, 1), drawn.flatten(0, 1), pad)
                picture = moved.view(*count, *moved.shape[1:])
            split_pictures.append(picture)
        return Seen(split(numbers), tuple(split_pictures))

    @uncompiled
    def encoded(self, seen: Seen, encoder: Any = None) -> Tensor:
        """Returns features and numbers, (K, B, dims + O), by the encoder or a slow copy of it."""
        network = self.encoder if encoder is None else encoder
        assert network is not None, "pictures are seen through an encoder"
        features: Tensor = network(seen.numbers, seen.pictures)
        return features

    def learned_states(self, observations: Any) -> Tensor:
        """Returns what networks see of a batch (K B, ...) in training, (K, B, dims + O).

        With pictures, gradients reach the encoder.
        """
        if self.encoder is None:
            return self.agents.split(self.scaler.states(observations))
        return self.encoded(self.seen(observations))

    def pixel_transitions(self, batch: Batch, now: Seen, then: Seen) -> Transitions:
        """Returns the transitions of a batch; gradients reach the encoder by `s_t` alone.

        Args:
            batch: K B rows.
            now: its observations.
            then: its next observations.
        """
        split = self.agents.split
        s_t = self.encoded(now)
        with torch.no_grad():
            s_tp1 = self.encoded(then)
        return Transitions(
            s_t,
            split(self.scaler.to_unit(batch["actions"])),
            split(batch["rewards"].to(s_t)),
            s_tp1,
            split(batch["discounts"].to(s_t)),
            split(batch["mask"].to(s_t)),
        )

    def transitions(self, batch: Batch) -> Transitions:
        """Returns what an update reads of a batch, as `Learner.transitions`."""
        if self.encoder is None:
            return super().transitions(batch)
        now, then = (self.seen(batch[name]) for name in ("observations", "next_observations"))
        return self.pixel_transitions(batch, now, then)

    # -- acting --------------------------------------------------------------------------------

    def states(self, observations: Any) -> Tensor:
        """Returns what the networks of all agents see of observations (B, ...), (K, B, O).

        Where frames are stacked and observations have no axis of frames, an episode begins.
        """
        if self.encoder is None:
            return super().states(observations)
        numbers, pictures = self._parts(observations)
        count = self.agents.count
        shared = tuple(one.expand(count, *one.shape) for one in pictures)
        return self.encoded(Seen(numbers.expand(count, *numbers.shape), shared))

    def _remembering(self, copies: int, agent: int = 0) -> Frames:
        """Returns the actor of some copies of an environment, with the frames of each."""
        return Frames(self, agent, copies)

    def _parts(self, observations: Any) -> tuple[Tensor, list[Tensor]]:
        """Numbers (B, O), scaled, and pictures (B, H, W, F C), on the device."""
        cameras, frames = self.normaliser.pictures, self.settings.frames
        named = named_pictures(observations, cameras)
        is_stacked = frames > 1 and named[0].ndim == len(cameras[0].shape) + 2
        if is_stacked:
            observations = _latest(observations)
        pictures = [
            as_channels(given.to(self.scaler.device), camera, frames, is_stacked)
            for given, camera in zip(named, cameras, strict=True)
        ]
        return self.scaler.states(observations), pictures


class Frames:
    """A learner that acts in several copies of an environment, and keeps the frames of each.

    Before an episode's first frame stands that frame again, as in streams.

    Args:
        learner: what acts.
        agent: which one.
        copies: how many.
    """

    def __init__(self, learner: PixelLearner, agent: int, copies: int) -> None:
        self._learner, self._agent = learner, agent
        frames = learner.settings.frames
        self._past: list[deque[dict[str, np.ndarray]]] = [
            deque(maxlen=frames) for _ in range(copies)
        ]

    def begin(self, place: int) -> None:
        """Forgets the frames of one copy; a new episode begins there."""
        self._past[place].clear()

    def act(self, observations: Any) -> Tensor:
        """Returns the actions of all copies, as `Learner.act`."""
        return self._learner.act(self._stacked(observations), self._agent)

    def explore(self, observations: Any, noise: Any) -> Tensor:
        """Returns the actions of all copies, as `Learner.explore`."""
        return self._learner.explore(self._stacked(observations), noise, self._agent)

    def after(self, _place: int, _action: np.ndarray, _reward: float) -> None:
        """Hears what was done; frames do not depend on it."""

    def _stacked(self, observations: Any) -> Nested:
        """Observations (B, ...) with those before them, (B, F, ...)."""
        fields = {name: np.asarray(rows) for name, rows in flatten(_ROOT, observations).items()}
        for place, past in enumerate(self._past):
            row = {name: rows[place].copy() for name, rows in fields.items()}
            past.extend([row] * (1 if past else past.maxlen or 1))
        return nest(
            _ROOT,
            {
                name: np.stack([np.stack([frame[name] for frame in past]) for past in self._past])
                for name in fields
            },
        )


_ROOT = "observations"


def as_channels(given: Tensor, picture: Picture, frames: int, is_stacked: bool) -> Tensor:
    """Returns pictures with their channels last, and those of all frames as channels.

    Args:
        given: (B, *shape), or (B, F, *shape) with the latest frame last.
        picture: the field.
        frames: F.
        is_stacked: whether there is an axis of frames; without one all are alike.

    Returns:
        (B, H, W, F C), a frame's channels together.
    """
    if len(picture.shape) == 2:
        given = given.unsqueeze(-1)
    elif picture.is_channels_first:
        given = given.movedim(-3, -1)
    if not is_stacked:
        given = given.unsqueeze(1).expand(-1, frames, *given.shape[1:])
    return given.movedim(1, 3).flatten(3)


def _latest(observations: Any) -> Any:
    """The last frames of stacked observations (B, F, ...)."""
    if isinstance(observations, Mapping):
        return {name: _latest(child) for name, child in observations.items()}
    if isinstance(observations, tuple):
        return tuple(map(_latest, observations))
    return observations[:, -1]
