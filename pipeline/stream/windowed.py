"""Records of data larger than memory or disk: some blocks at a time, fetched ahead by threads.

The sampler `shuffle` goes through a few chunks at a time, and a chunk is what one block holds. So
a buffer of those chunks and the ones that follow serves it without a cache file: whoever gathers
waits only for a block that is not there yet. Which rows are gathered, and their order, is the
sampler's alone. Pictures may stay encoded in the buffer, and are then decoded as they are gathered.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np

from pipeline.stream.cache_index import CachedBlock
from pipeline.stream.owners import Owners
from pipeline.stream.pictures import Pictures, decode_into
from pipeline.stream.record import WORD, RecordLayout
from schemas.errors import UsageError
from schemas.sizes import said_bytes

_POOLS: weakref.WeakSet[ThreadPoolExecutor] = weakref.WeakSet()
"""All threads that fetch, of this process."""

Fill = Callable[[str, np.ndarray], Pictures]
"""Writes the records of a block, (rows, words) int32, and returns what stays encoded beside them;
called from threads."""


@dataclass(frozen=True)
class WindowedBlock:
    """A block of the store, as the buffer sees it."""

    number: int
    """Within the version."""
    rows: int
    read: int
    """Bytes that reading it takes besides its records."""
    kept: int = 0
    """Bytes of it that stay encoded beside its records."""


@dataclass(frozen=True)
class Room:
    """What the buffer may take."""

    memory: int
    """Bytes, those of threads that fill it included."""
    window: int
    """Chunks that are shuffled together."""
    fetches: int
    """Blocks that are read at once, as far as memory goes."""


class WindowedRecords:
    """The records of some blocks, of which a bounded number is in memory.

    Args:
        layout: the record that is gathered.
        stored: the record that is in the buffer: the same without the pictures that come last.
        blocks: by name, their numbers rising.
        fill: writes the records of a block.
        room: what the buffer may take.

    Raises:
        UsageError: if the budget does not hold the chunks that are shuffled together.
    """

    def __init__(
        self,
        layout: RecordLayout,
        stored: RecordLayout,
        blocks: Mapping[str, WindowedBlock],
        fill: Fill,
        room: Room,
    ) -> None:
        self._layout, self._stored, self._fill = layout, stored, fill
        self._apart = [name for name in layout.by_name if name not in stored.by_name]
        self.names = list(blocks)
        self._numbers = np.array([block.number for block in blocks.values()], np.int64)
        self._sizes = np.array([block.rows for block in blocks.values()], np.int64)
        ends = np.cumsum(self._sizes)
        self.starts = ends - self._sizes
        self._owners = Owners(ends)
        self._room = int(self._sizes.max(initial=1))
        self.slots, self.fetches = _slots(blocks, self._room * stored.size, room)
        self._buffer = np.empty((self.slots * self._room, stored.words), WORD)
        self._shift = np.zeros(len(blocks), np.int64)  # from a row to its place in the buffer
        self._held: dict[int, tuple[int, Future[Pictures]]] = {}  # block: slot; last used last
        self._coming: set[int] = set()
        self._threads: ThreadPoolExecutor | None = None
        self._process = 0

    @property
    def blocks(self) -> dict[str, CachedBlock]:
        """Where blocks lie among all records, as those of a cache do; nothing to compare."""
        placed = zip(self.names, self.starts.tolist(), self._sizes.tolist(), strict=True)
        return {name: CachedBlock(start, rows, 0) for name, start, rows in placed}

    @property
    def nbytes(self) -> int:
        """Bytes of the buffer, without what is encoded."""
        return self._buffer.nbytes

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Returns some records, (*rows.shape, words) int32, waiting for those that are not here.

        Args:
            rows: numbers among the records of all blocks, any shape.
        """
        self._begin()
        flat = rows.reshape(-1)
        owner = self._owners.of(flat)
        needed = np.flatnonzero(np.bincount(owner, minlength=len(self.starts)))
        if len(needed) <= self.slots:
            found = self._take(flat, owner, needed.tolist())
        else:  # more blocks than the buffer holds, as they are tiny: some after the others
            found = np.empty((len(flat), self._layout.words), WORD)
            for at in range(0, len(needed), self.slots):
                part = needed[at : at + self.slots]
                where = np.flatnonzero(np.isin(owner, part))
                found[where] = self._take(flat[where], owner[where], part.tolist())
        return found.reshape(*rows.shape, -1)

    def expect(self, numbers: np.ndarray) -> None:
        """Begins to fetch what will be asked for next: blocks, by their number in the version."""
        self._begin()
        blocks = np.searchsorted(self._numbers, numbers).tolist()[: self.slots]
        self._coming = set(blocks)
        for block in blocks:
            if block not in self._held:
                self._fetch(block, self._coming)

    def _take(self, rows: np.ndarray, owner: np.ndarray, blocks: list[int]) -> np.ndarray:
        pictures = self._wait_for(blocks)
        place = rows + np.take(self._shift, owner)
        found: np.ndarray
        if self._layout is self._stored:
            found = np.take(self._buffer, place, axis=0, mode="clip")
            return found
        found = np.empty((len(rows), self._layout.words), WORD)
        found[:, : self._stored.words] = np.take(self._buffer, place, axis=0, mode="clip")
        decode_into(self._layout, found, owner, rows - self.starts[owner], pictures, self._apart)
        return found

    def _wait_for(self, blocks: Sequence[int]) -> dict[int, Pictures]:
        """Returns what is encoded of some blocks, once they are there."""
        for block in blocks:
            if block in self._held and _has_failed(self._held[block][1]):
                del self._held[block]  # before it was needed; what was the matter may have passed
        for block in blocks:
            if block not in self._held:
                self._fetch(block, set(blocks))
        for block in blocks:
            if not self._held[block][1].done():
                wait([self._held[block][1]])
            slot, fetched = self._held.pop(block)
            fetched.result()  # one that fails is forgotten, so that the next call tries again
            self._held[block] = slot, fetched
        return {block: self._held[block][1].result() for block in blocks}

    def _fetch(self, block: int, staying: set[int]) -> None:
        """Begins to fetch a block into a slot that is free, or holds what is used last."""
        free = set(range(self.slots)) - {slot for slot, _ in self._held.values()}
        if not free:
            others = [held for held in self._held if held not in staying]
            oldest = min(others, key=lambda held: held in self._coming)
            slot, fetched = self._held.pop(oldest)
            fetched.cancel()
            if not fetched.cancelled():
                fetched.exception()  # waits: nobody may write there any more
            free = {slot}
        slot = min(free)
        target = self._buffer[slot * self._room :][: int(self._sizes[block])]
        self._shift[block] = slot * self._room - self.starts[block]
        self._held[block] = slot, self._begin().submit(self._fill, self.names[block], target)

    def _begin(self) -> ThreadPoolExecutor:
        """The threads; a process forked from the one that began them has none of them."""
        if self._threads is None or self._process != os.getpid():
            self._held = {}
            self._process = os.getpid()
            self._threads = _threads(self.fetches)
            weakref.finalize(self, self._threads.shutdown, wait=False, cancel_futures=True)
        return self._threads


def _has_failed(fetched: Future[Pictures]) -> bool:
    return fetched.done() and fetched.exception() is not None


def _threads(count: int) -> ThreadPoolExecutor:
    """Returns threads that end what they are at before the interpreter takes its own away."""
    if not _POOLS:
        # Plain `atexit` would come too late: what decodes hands work to threads that are gone.
        register = getattr(threading, "_register_atexit", atexit.register)
        with contextlib.suppress(RuntimeError):  # the interpreter is ending already
            register(_end_all)
    made = ThreadPoolExecutor(count, "penstock-fetch")
    _POOLS.add(made)
    return made


def _end_all() -> None:
    for pool in list(_POOLS):
        pool.shutdown(cancel_futures=True)


def _slots(blocks: Mapping[str, WindowedBlock], records: int, room: Room) -> tuple[int, int]:
    """Returns how many blocks the buffer holds, and how many are read at once.

    Args:
        blocks: all of them.
        records: bytes of the largest block's records.
        room: what there is.
    """
    slot = records + max((block.kept for block in blocks.values()), default=0)
    fetch = max((block.read for block in blocks.values()), default=0)
    least = min(room.window, len(blocks))
    # Those that are drawn from, and as many that come next.
    most = min(2 * room.window, len(blocks))
    fetches = max(1, min(room.fetches, most))
    while fetches > 1 and room.memory - fetches * fetch < most * slot:
        fetches -= 1
    slots = min(most, (room.memory - fetches * fetch) // max(slot, 1))
    if slots < least:
        raise UsageError(
            f"Expected memory for {least} chunks of up to {said_bytes(slot)} each and "
            f"{said_bytes(fetch)} more to fetch one, came a budget of {said_bytes(room.memory)}; "
            f"set memory= larger"
            + f", or shuffle_window= to {slots} or less." * (slots > 0)
            + "." * (slots <= 0)
        )
    return slots, fetches
