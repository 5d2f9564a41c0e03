"""Opens a file that Penstock wrote with robomimic's own dataset and compares it with what went in.

    python check_robomimic.py FILE TRUTH.npz

The truth holds, over all steps one after the other, `obs/<key>`, `next_obs/<key>`, `actions`,
`rewards`, `dones`, and `val`, the numbers of demonstrations under that filter key.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from differences import report

# PyPI's torchvision is linked to CUDA: beside a torch for CPUs, two operators are not declared.
for operator in ("nms", "qnms"):
    declared = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
    torch.library.define(f"torchvision::{operator}", declared)

from robomimic.utils import obs_utils  # noqa: E402
from robomimic.utils.dataset import SequenceDataset  # noqa: E402
from robomimic.utils.file_utils import get_env_metadata_from_dataset  # noqa: E402

KEYS = ("arm", "object")


def _dataset(file: str, split: str | None) -> SequenceDataset:
    return SequenceDataset(
        file,
        obs_keys=KEYS,
        dataset_keys=("actions", "rewards", "dones"),
        filter_by_attribute=split,
        hdf5_use_swmr=False,
    )


def main(file: str, truth: str) -> int:
    """Compares; returns the exit code."""
    obs_utils.initialize_obs_utils_with_obs_specs([{"obs": {"low_dim": list(KEYS)}}])
    dataset = _dataset(file, None)
    steps = [dataset[at] for at in range(len(dataset))]
    found = {n: np.concatenate([s[n] for s in steps]) for n in ("actions", "rewards", "dones")}
    for group in ("obs", "next_obs"):
        for key in KEYS:
            found[f"{group}/{key}"] = np.concatenate([step[group][key] for step in steps])
    found["val"] = np.array([int(name[5:]) for name in _dataset(file, "val").demos])
    assert get_env_metadata_from_dataset(file)["env_name"]
    return report(truth, found)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
