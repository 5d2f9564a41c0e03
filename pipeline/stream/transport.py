"""Gathers on their way to a device: packed into reusable host buffers, copied beside the learner.

All arrays of a gather lie in one buffer and travel as one copy. On CUDA the buffers are pinned and
the copy runs on a stream of its own: a buffer is written to again only after the copy out of it is
done, and whoever receives makes the current stream wait for the copy, never the processor. On any
other device the same code runs without pins, streams and events.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

SLOTS = 2  # host buffers: one is filled while another is copied
ALIGNED = 64  # bytes; any dtype may be viewed at such a place


@dataclass(frozen=True)
class Sent:
    """A gather that is on its way, or there."""

    data: torch.Tensor  # (bytes,) uint8 on the device
    copied: torch.cuda.Event | None
    """What happens when the data are there; None if they are."""
    places: dict[str, tuple[int, torch.dtype, tuple[int, ...]]]
    """First byte, dtype and shape of each array."""
    others: dict[str, np.ndarray]
    """Arrays of objects, which stay where they are."""


class Transport:
    """Carries gathers to a device; `send` is of one thread at a time, `receive` of another.

    Args:
        device: where to.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        is_cuda = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if is_cuda else None  # type: ignore[no-untyped-call]
        self._slots = itertools.cycle([_Slot(is_pinned=is_cuda) for _ in range(SLOTS)])

    @property
    def says(self) -> str:
        """In words, for `describe`."""
        how = "memory that is copied once more"
        if self._stream is not None:
            how = "pinned memory, copied on a stream of their own"
        return f" Gathers come to {self._device} through {SLOTS} buffers of {how}."

    def send(self, found: Mapping[str, np.ndarray]) -> Sent:
        """Packs arrays and begins to copy them."""
        others = {name: array for name, array in found.items() if array.dtype == object}
        arrays = {name: array for name, array in found.items() if name not in others}
        sizes = [-(-array.nbytes // ALIGNED) * ALIGNED for array in arrays.values()]
        starts = list(itertools.accumulate(sizes, initial=0))
        slot = next(self._slots)
        with contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            host = slot.room(starts[-1])
            packed = host.numpy()
            places = {}
            for (name, array), start in zip(arrays.items(), starts, strict=False):
                part = packed[start : start + array.nbytes].view(array.dtype)
                np.copyto(part.reshape(array.shape), array)
                places[name] = start, torch_dtype(array.dtype), array.shape
            data = host.to(self._device, non_blocking=self._stream is not None, copy=True)
            if self._stream is not None:
                done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
                slot.copied = self._stream.record_event(done)
        return Sent(data, slot.copied, places, others)

    def receive(self, sent: Sent) -> dict[str, Any]:
        """Returns tensors on the device, for work on the stream that is current now."""
        if sent.copied is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(sent.copied)
            # The memory is the other stream's: it may be used anew only after this one read it.
            sent.data.record_stream(stream)
        found = {
            name: sent.data[start : start + dtype.itemsize * _count(shape)].view(dtype).view(shape)
            for name, (start, dtype, shape) in sent.places.items()
        }
        return {**found, **sent.others}


class _Slot:
    """One host buffer, and the copy that last read it."""

    def __init__(self, *, is_pinned: bool) -> None:
        self._is_pinned = is_pinned
        self._bytes = torch.empty(0, dtype=torch.uint8)
        self.copied: torch.cuda.Event | None = None

    def room(self, size: int) -> torch.Tensor:
        """Returns the first bytes of the buffer, (size,) uint8, once nobody reads them any more."""
        if self.copied is not None:
            self.copied.synchronize()
        if size > len(self._bytes):
            self._bytes = torch.empty(size, dtype=torch.uint8, pin_memory=self._is_pinned)
        return self._bytes[:size]


def torch_dtype(dtype: np.dtype[Any]) -> torch.dtype:
    """Returns torch's name of a dtype."""
    return torch.from_numpy(np.empty(0, dtype)).dtype


def _count(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))
