"""Torch's names for what changes batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pipeline.stream.arrays import Arrays


def _put(array: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.array(array)).to(like.device)


def _cast(tensor: torch.Tensor, dtype: str) -> torch.Tensor:
    return tensor.to(_DTYPES[np.dtype(dtype).name])


def _move(tensor: torch.Tensor, before: Sequence[int], after: Sequence[int]) -> Any:
    return torch.movedim(tensor, tuple(before), tuple(after))


def _host(tensor: torch.Tensor) -> np.ndarray | None:
    return tensor.numpy() if tensor.device.type == "cpu" else None


_DTYPES = {"float16": torch.float16, "float32": torch.float32, "float64": torch.float64}

TORCH = Arrays(put=_put, cast=_cast, move=_move, host=_host)
