"""A world to look at: where is the dot? Rendered here, with nothing else to tell the place."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np

from learners.rollout import Collection, Exploration, Facts, collect
from schemas.episode import Episode
from schemas.packed import Packed, plain
from schemas.spec import FieldSpec

ENVIRONMENT = "Dots-v0"
SIZE, STEPS = 16, 10


def drawn(place: np.ndarray) -> np.ndarray:
    """A blurred dot at a place of [-1, 1]^2, (SIZE, SIZE, 3) uint8."""
    centre = (place + 1) / 2 * (SIZE - 7) + 3
    rows, columns = np.mgrid[:SIZE, :SIZE]
    square = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2
    return np.repeat((255 * np.exp(-square / 4))[..., None], 3, axis=2).astype(np.uint8)


class Dots(gym.Env[Any, np.ndarray]):
    """A dot at a new place in each step; the reward is 1 minus how far off one points."""

    observation_space: ClassVar[Any] = gym.spaces.Dict(
        {
            "camera": gym.spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8),
            "step": gym.spaces.Box(0.0, 1.0, (1,), np.float32),
        }
    )
    action_space: ClassVar[Any] = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return self._next(), {}

    def step(self, action: np.ndarray) -> Any:
        reward = 1.0 - float(np.linalg.norm(action - self.place))
        self.steps += 1
        return self._next(), reward, False, False, {}

    def _next(self) -> dict[str, np.ndarray]:
        self.place = self.np_random.uniform(-1, 1, 2)
        return {"camera": drawn(self.place), "step": np.full(1, self.steps / STEPS, np.float32)}


class Pointer:
    """Finds the brightest part and points there."""

    def act(self, observations: Any) -> np.ndarray:
        light = np.asarray(observations["camera"], np.float64)[..., 0]
        where = np.arange(SIZE)
        total = light.sum(axis=(1, 2))
        rows, columns = light.sum(axis=2) @ where / total, light.sum(axis=1) @ where / total
        return (np.stack([rows, columns], axis=1) - 3) / (SIZE - 7) * 2 - 1


def demonstrations(count: int, first: int = 0, noise: float = 0.0) -> Iterator[Episode]:
    """Pointed at by one who sees; numbers make the seeds."""
    plan = Collection(
        ENVIRONMENT, episodes=count, first=first, exploration=Exploration("gaussian", noise)
    )
    return collect(Pointer(), plan, Facts(namespace="demo", kind="demonstration"))


def encoded(episode: Episode) -> Episode:
    """The same with its pictures as PNG, which loses nothing."""
    from PIL import Image

    def png(picture: np.ndarray) -> bytes:
        sink = io.BytesIO()
        Image.fromarray(picture).save(sink, "PNG")
        return sink.getvalue()

    name = "observations/camera"
    spec = FieldSpec("|u1", (SIZE, SIZE, 3), "frames")
    packed = Packed.of(spec, [png(one) for one in plain(episode.observations[name])])
    return episode.replace(observations={**episode.observations, name: packed})
