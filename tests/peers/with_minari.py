"""A D4RL file as a Minari dataset, by Minari's own writer (`create_dataset_from_buffers`)."""

import os
from collections.abc import Mapping
from typing import Any

import gymnasium
import h5py
import minari
import numpy as np
from minari.data_collector import EpisodeBuffer

KEYS = ("observations", "actions", "rewards", "terminals", "timeouts")
NUMBERS = gymnasium.spaces.Box(-np.inf, np.inf, (11,), np.float32)


def convert(source: str, target: str) -> None:
    os.environ["MINARI_DATASETS_PATH"] = target
    with h5py.File(source) as file:
        d = {key: file[key][:] for key in (*KEYS, "next_observations")}
    last = d["next_observations"][d["terminals"] | d["timeouts"]]
    create("bench/low-v0", d, last, NUMBERS)


def create(
    name: str,
    d: Mapping[str, np.ndarray],
    last: np.ndarray,
    space: gymnasium.spaces.Box,
    **options: Any,
) -> None:
    """Writes flat arrays by D4RL's names, and the last observation of each episode."""
    ends = np.flatnonzero(d["terminals"] | d["timeouts"]) + 1
    buffers = []
    for number, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        buffers.append(
            EpisodeBuffer(
                id=number,
                observations=np.concatenate([d["observations"][start:end], last[number][None]]),
                actions=d["actions"][start:end],
                rewards=d["rewards"][start:end],
                terminations=d["terminals"][start:end],
                truncations=d["timeouts"][start:end],
            )
        )
    minari.create_dataset_from_buffers(
        name,
        buffers,
        observation_space=space,
        action_space=gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32),
        data_format="hdf5",
        algorithm_name="none",
        author="none",
        author_email="none@example.org",
        code_permalink="none",
        description="benchmark",
        **options,
    )
