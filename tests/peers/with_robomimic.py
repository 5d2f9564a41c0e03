"""A D4RL file in robomimic's layout, by the h5py calls of robomimic's `convert_d4rl.py`."""

import json
from collections.abc import Mapping, Sequence

import h5py
import numpy as np

NEXT = "next_observations"


def convert(source: str, target: str) -> None:
    with h5py.File(source) as file:
        write({key: file[key][:] for key in file}, target)


def write(d: Mapping[str, np.ndarray], target: str, key: str = "flat") -> None:
    """Writes flat arrays by D4RL's names; next observations if there are any."""
    ends = np.flatnonzero(d["terminals"] | d["timeouts"]) + 1
    seen: Sequence[tuple[str, str]] = [("obs", "observations"), ("next_obs", NEXT)]
    with h5py.File(target, "w") as file:
        data = file.create_group("data")
        for number, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
            demo = data.create_group(f"demo_{number}")
            demo.attrs["num_samples"] = end - start
            for group, name in seen:
                if name in d:
                    demo.create_dataset(f"{group}/{key}", data=d[name][start:end])
            demo.create_dataset("actions", data=d["actions"][start:end])
            demo.create_dataset("rewards", data=d["rewards"][start:end])
            demo.create_dataset("dones", data=d["terminals"][start:end].astype(np.int64))
        data.attrs["total"] = int(ends[-1])
        data.attrs["env_args"] = json.dumps({"env_name": "x", "type": 1, "env_kwargs": {}})
