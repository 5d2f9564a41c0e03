"""Batches as torch tensors. The only file of the pipeline that knows torch."""

from __future__ import annotations

import warnings
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
        return _per_step(tensor)

    return split


def _per_step(tensor: torch.Tensor) -> Sequence[torch.Tensor]:
    """Cuts (steps, rows, ...) into one tensor per step that shares its memory.

    Other than with `unbind`, each counts its own changes: autograd, which keeps a batch, does not
    mind writes to those that were gathered with it. It also takes a third less time.
    """
    steps, rows = tensor.shape[:2]
    return torch.unsafe_split_with_sizes(tensor.flatten(0, 1), [rows] * steps)


def window_gather(
    records: np.ndarray,
    anchors: np.ndarray,
    shape: tuple[int, int],
    read: Sequence[tuple[int, int, int]],
) -> Callable[[], object]:
    """Returns what makes batches of random (row, next row) windows by `torch.index_select`.

    The physical ceiling of `pipeline.stream.bench`: no plan, no provenance, no resume.

    Args:
        records: (rows, words) int32.
        anchors: (N,) int64, rows that have a next one.
        shape: batches gathered at once, and rows of a batch.
        read: first word, number of words and record (0 or 1) of each array that is cut.
    """
    torch.set_num_threads(1)
    rows, words = records.shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the map is read-only, and only read here
        matrix = torch.from_numpy(records)
    windows = matrix.as_strided((rows - 1, 2 * words), (words, 1))
    table = torch.from_numpy(anchors)
    buffer = torch.empty(shape[0] * shape[1], 2 * words, dtype=torch.int32)
    ready: list[object] = []

    def batch() -> object:
        if not ready:
            drawn = table.index_select(0, torch.randint(len(table), (len(buffer),)))
            torch.index_select(windows, 0, drawn, out=buffer)
            taken = buffer.view(torch.float32).view(*shape, 2, words)
            views = [
                taken[:, :, record, first : first + count].unbind(0)
                for first, count, record in read
            ]
            ready.extend(zip(*views, strict=True))
        return ready.pop()

    return batch
