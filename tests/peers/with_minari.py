"""A D4RL file as a Minari dataset, by Minari's own writer (`create_dataset_from_buffers`)."""

import os

import gymnasium
import h5py
import minari
import numpy as np
from minari.data_collector import EpisodeBuffer

KEYS = ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations")


def convert(source: str, target: str) -> None:
    os.environ["MINARI_DATASETS_PATH"] = target
    with h5py.File(source) as file:
        d = {key: file[key][:] for key in KEYS}
    ends = np.flatnonzero(d["terminals"] | d["timeouts"]) + 1
    buffers = []
    for number, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        seen = [d["observations"][start:end], d["next_observations"][end - 1 : end]]
        buffers.append(
            EpisodeBuffer(
                id=number,
                observations=np.concatenate(seen),
                actions=d["actions"][start:end],
                rewards=d["rewards"][start:end],
                terminations=d["terminals"][start:end],
                truncations=d["timeouts"][start:end],
            )
        )
    minari.create_dataset_from_buffers(
        "bench/low-v0",
        buffers,
        observation_space=gymnasium.spaces.Box(-np.inf, np.inf, (11,), np.float32),
        action_space=gymnasium.spaces.Box(-1, 1, (3,), np.float32),
        data_format="hdf5",
        algorithm_name="none",
        author="none",
        author_email="none@example.org",
        code_permalink="none",
        description="benchmark",
    )
