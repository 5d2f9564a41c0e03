"""A D4RL file as a d3rlpy dataset, dumped to its own HDF5; its final observations are lost."""

from collections.abc import Mapping

import d3rlpy
import h5py
import numpy as np


def convert(source: str, target: str) -> None:
    with h5py.File(source) as file:
        dump({key: file[key][:] for key in file if key != "next_observations"}, target)


def dump(d: Mapping[str, np.ndarray], target: str) -> None:
    dataset = d3rlpy.dataset.MDPDataset(
        d["observations"],
        d["actions"],
        d["rewards"],
        d["terminals"].astype(np.float32),
        d["timeouts"].astype(np.float32),
    )
    with open(target, "w+b") as file:  # noqa: PTH123 - as d3rlpy's own documentation does
        dataset.dump(file)
