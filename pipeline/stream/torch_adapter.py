"""Batches as torch tensors."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

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
