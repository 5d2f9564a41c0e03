"""A D4RL file as a d3rlpy dataset, dumped to its own HDF5; its final observations are lost."""

import d3rlpy
import h5py
import numpy as np


def convert(source: str, target: str) -> None:
    with h5py.File(source) as file:
        d = {key: file[key][:] for key in file if key != "next_observations"}
    dataset = d3rlpy.dataset.MDPDataset(
        d["observations"],
        d["actions"],
        d["rewards"],
        d["terminals"].astype(np.float32),
        d["timeouts"].astype(np.float32),
    )
    with open(target, "w+b") as file:  # noqa: PTH123 - as d3rlpy's own documentation does
        dataset.dump(file)
