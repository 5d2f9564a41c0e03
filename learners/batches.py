"""Batches of agents that train side by side, put together; and several of them, kept on a device.

Each agent draws from a stream of its own, so it sees the batches that it would see alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from learners.base import Batch

Streams = Sequence[Iterator[Batch]]
"""The batches of each agent."""


def joined(batches: Sequence[Batch]) -> Batch:
    """Returns the rows of some batches one after another; what is no tensor is left out."""
    return batches[0] if len(batches) == 1 else _together(_one_after_another, batches)


STAGED_BYTES = 256 << 20
"""Device memory for batches that wait there; those of numbers need a hundredth, pictures all."""


def held_at_once(size: int, most: int, budget: int = STAGED_BYTES) -> int:
    """Returns how many batches of so many bytes are held: at most some, within a budget, one."""
    return max(1, min(most, budget // max(size, 1)))


def byte_count(batch: Any) -> int:
    """Returns the bytes of all tensors of a batch."""
    sizes: list[int] = []

    def count(values: Sequence[Tensor]) -> Tensor:
        sizes.append(values[0].numel() * values[0].element_size())
        return values[0]

    _together(count, [batch])
    return sum(sizes)


class Staged:
    """Batches to come, copied to places that stay: what was captured of a step finds them there.

    Args:
        most: batches that are held at once, where they are small.
        budget: bytes that they may have together; one batch is held however large it is.
    """

    def __init__(self, most: int, budget: int = STAGED_BYTES) -> None:
        self._most, self._budget = most, budget
        self.capacity = 0
        """Batches that are held at once; known from the first batch on."""
        self._held: Any = None  # (capacity, K B, ...) of each field
        self._at: Tensor | None = None  # (1,) int64, which is the next one

    def fill(self, streams: Streams, wanted: int) -> int:
        """Draws the next batches of all agents, as many as are wanted and find room.

        The first of them is the next; returns how many there are.
        """
        drawn = [joined([next(stream) for stream in streams])]
        if self._held is None or self._at is None:
            self.capacity = held_at_once(byte_count(drawn[0]), self._most, self._budget)
            self._held = _together(self._room, drawn)
            place = _leaf(self._held).device
            self._at = torch.zeros(1, dtype=torch.int64, device=place)
        count = min(self.capacity, wanted)
        drawn += [joined([next(stream) for stream in streams]) for _ in range(count - 1)]
        self._at.zero_()
        _fill(self._held, drawn)
        return count

    def current(self) -> Batch:
        """Returns the batch whose turn it is, without asking the device which one that is."""
        assert self._at is not None, "filled before"
        found: Batch = _each(self._pick, self._held)
        return found

    def advance(self) -> None:
        """Goes on to the next batch."""
        assert self._at is not None, "filled before"
        self._at.add_(1)

    def _pick(self, held: Tensor) -> Tensor:
        assert self._at is not None, "filled before"
        return held.index_select(0, self._at).squeeze(0)

    def _room(self, alike: Sequence[Tensor]) -> Tensor:
        return alike[0].new_empty(self.capacity, *alike[0].shape)


def _together(function: Callable[[Sequence[Tensor]], Tensor], values: Sequence[Any]) -> Any:
    """Applies a function to what stands at the same place in values that are nested alike."""
    first = values[0]
    if isinstance(first, Mapping):
        names = [name for name, value in first.items() if isinstance(value, _NESTED)]
        return {name: _together(function, [value[name] for value in values]) for name in names}
    if isinstance(first, tuple):
        places = range(len(first))
        return tuple(_together(function, [value[k] for value in values]) for k in places)
    return function(values)


_NESTED = (Tensor, Mapping, tuple)


def _one_after_another(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts))


def _each(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    return _together(lambda one: function(one[0]), [value])


def _fill(held: Any, drawn: Sequence[Any]) -> None:
    """Copies batches into the places made for them."""
    if isinstance(held, Tensor):
        torch.stack(list(drawn), out=held[: len(drawn)])
        return
    for place in held if isinstance(held, Mapping) else range(len(held)):
        _fill(held[place], [one[place] for one in drawn])


def _leaf(value: Any) -> Tensor:
    while not isinstance(value, Tensor):
        value = next(iter(value.values())) if isinstance(value, Mapping) else value[0]
    return value
