"""A D4RL file as MosaicML Streaming shards, one sample per episode, not compressed."""

from typing import Any

import h5py
import numpy as np
import torch

# Streaming imports torchvision, whose operators do not load beside a torch without CUDA.
_register = torch.library.register_fake


def _register_others(name: Any, *args: Any, **options: Any) -> Any:
    if str(name).startswith("torchvision::"):
        return lambda function: function
    return _register(name, *args, **options)


torch.library.register_fake = _register_others  # type: ignore[assignment]

from streaming import MDSWriter  # noqa: E402

COLUMNS = dict.fromkeys(("observations", "actions", "rewards"), "ndarray:float32")


def convert(source: str, target: str) -> None:
    with h5py.File(source) as file:
        d = {key: file[key][:] for key in file}
    ends = np.flatnonzero(d["terminals"] | d["timeouts"]) + 1
    with MDSWriter(out=target, columns=COLUMNS, size_limit=1 << 26) as writer:
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            writer.write({key: d[key][start:end] for key in COLUMNS})
