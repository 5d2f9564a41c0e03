"""Batches as torch tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from schemas.errors import ConfigError


def torch_device(name: str) -> torch.device:
    """Returns a device by name, with its number.

    Raises:
        ConfigError: if there is no such device.
    """
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"Expected a device that torch has here, came {name!r} "
            f"({str(error).splitlines()[0]}); use device='cpu'."
        ) from error


def split_array(array: np.ndarray) -> Sequence[torch.Tensor]:
    """Turns a (steps, rows, ...) array into one tensor per step that shares its memory."""
    steps, rows = array.shape[:2]
    return _cut(torch.from_numpy(array.reshape(steps * rows, *array.shape[2:])), steps)


def split_tensor(tensor: torch.Tensor) -> Sequence[torch.Tensor]:
    """The same of a tensor."""
    return _cut(tensor.flatten(0, 1), len(tensor))


def _cut(rows: torch.Tensor, steps: int) -> Sequence[torch.Tensor]:
    """Cuts the rows of some steps into equal parts.

    Other than with `unbind`, each part counts its own changes: autograd, which keeps a batch, does
    not mind writes to those that were gathered with it. It also takes a third less time.
    """
    return torch.unsafe_split_with_sizes(rows, [len(rows) // steps] * steps)
