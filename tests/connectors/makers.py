"""Small datasets for tests, written with h5py or with the format's own library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_storage import MinariStorage

from schemas.episode import Episode

LENGTHS = (5, 1, 8)


def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def d4rl_arrays(lengths: Sequence[int] = LENGTHS) -> dict[str, np.ndarray]:
    """Arrays of a D4RL file: the first episode terminates, the others time out."""
    random, rows = rng(), sum(lengths)
    ends = np.cumsum(lengths) - 1
    observations = random.normal(size=(rows, 3)).astype(np.float32)
    following = np.roll(observations, -1, axis=0)
    following[ends] = random.normal(size=(len(ends), 3))
    terminals, timeouts = np.zeros((2, rows), bool)
    terminals[ends[0]] = True
    timeouts[ends[1:]] = True
    return {
        "observations": observations,
        "actions": random.normal(size=(rows, 2)).astype(np.float32),
        "rewards": random.normal(size=rows).astype(np.float32),
        "terminals": terminals,
        "timeouts": timeouts,
        "next_observations": following,
    }


def write_hdf5(path: Path, arrays: Mapping[str, Any]) -> str:
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
    return str(path)


def write_robomimic(
    path: Path, demos: Mapping[str, Mapping[str, Any]], masks: Mapping[str, Sequence[str]] = {}
) -> str:
    """Each demo: datasets by path; keys that begin with `@` are attributes."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = '{"env_name": "Lift", "type": 1, "env_kwargs": {}}'
        data.attrs["total"] = 0
        for name, parts in demos.items():
            demo = data.create_group(name)
            for key, value in parts.items():
                if key.startswith("@"):
                    demo.attrs[key[1:]] = value
                else:
                    demo[key] = value
        for name, members in masks.items():
            file[f"mask/{name}"] = np.array([member.encode() for member in members])
    return str(path)


def demo(steps: int = 6, **changes: Any) -> dict[str, Any]:
    """One robomimic demonstration without next_obs."""
    random = rng()
    dones = np.zeros(steps, np.int64)
    dones[-1] = 1
    parts = {
        "actions": random.uniform(-1, 1, (steps, 2)),
        "rewards": random.normal(size=steps),
        "dones": dones,
        "states": random.normal(size=(steps, 4)),
        "obs/eef": random.normal(size=(steps, 3)),
        "obs/image": random.integers(0, 255, (steps, 8, 8, 3), np.uint8),
        "@num_samples": steps,
        "@model_file": "<mujoco/>",
    }
    for key, value in changes.items():
        name = key.replace("__", "/")
        if value is None:
            parts.pop(name)
        else:
            parts[name] = value
    return parts


def minari_dataset(
    place: Path,
    buffers: Sequence[EpisodeBuffer],
    spaces: tuple[gymnasium.Space, gymnasium.Space],
    storage: str = "hdf5",
    *,
    is_jpeg: bool = True,
) -> str:
    """Writes a dataset with Minari itself."""
    data = place / "data"
    data.mkdir(parents=True)
    written = MinariStorage.new(data, *spaces, data_format=storage, jpeg_encoding=is_jpeg)
    written.update_episodes(buffers)
    written.update_metadata({"dataset_id": "toy/set-v0", "minari_version": "0.5.3"})
    return str(place)


def buffer(observations: Any, steps: int, **changes: Any) -> EpisodeBuffer:
    """One Minari episode with two-dimensional actions that is truncated at its end."""
    random = rng()
    flags = [False] * (steps - 1)
    parts = {
        "observations": observations,
        "actions": random.normal(size=(steps, 2)).astype(np.float32),
        "rewards": list(random.normal(size=steps)),
        "terminations": [*flags, False],
        "truncations": [*flags, True],
    }
    return EpisodeBuffer(**{**parts, **changes})


def action_box() -> gymnasium.spaces.Box:
    return gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)


def toy_episode(steps: int = 4, **changes: Any) -> Episode:
    """An episode that every sink can hold."""
    random = rng()
    parts: dict[str, Any] = {
        "episode_id": "toy",
        "observations": {"observations": random.normal(size=(steps + 1, 3))},
        "actions": random.normal(size=(steps, 2)).astype(np.float32),
        "rewards": random.normal(size=steps),
        "truncated": np.arange(steps) == steps - 1,
    }
    return Episode(**{**parts, **changes})
