"""Batches as torch tensors. The only file of the pipeline that knows torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from schemas.errors import ConfigError


def splitter(device: str) -> Callable[[np.ndarray], Sequence[torch.Tensor]]:
    """Returns what turns (steps, rows, ...) arrays into one tensor per step on a device.

    On the CPU tensors share memory with what was gathered; elsewhere many batches are copied at
    once.

    Raises:
        ConfigError: if there is no such device.
    """
    try:
        place = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"Expected a device that torch has here, came {device!r} "
            f"({str(error).splitlines()[0]}); use device='cpu'."
        ) from error

    def split(array: np.ndarray) -> Sequence[torch.Tensor]:
        tensor = torch.from_numpy(array)
        if place.type != "cpu":
            tensor = tensor.to(place)
        return tensor.unbind(0)

    return split
