"""Records of data larger than memory or disk: some blocks at a time, fetched ahead by threads.

The sampler `shuffle` goes through a few chunks at a time, and a chunk is what one block holds. So
a buffer of those chunks and the ones that follow serves it without a cache file: whoever gathers
waits only for a block that is not there yet. Which rows are gathered, and their order, is the
sampler's alone.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

import numpy as np

from pipeline.stream.cache import CachedBlock, Pack
from pipeline.stream.record import WORD, RecordLayout
from schemas.errors import DamagedStoreError, UsageError
from schemas.sizes import said_bytes

FETCHES = 2  # blocks that are read at once: one unpacks while another is on its way
PER_FETCH = 3
"""Blocks that a thread may hold besides the buffer: arrays as they are stored, and a piece."""


class WindowedRecords:
    """The records of some blocks, of which a bounded number is in memory.

    Args:
        layout: the record.
        rows: blocks, and how many rows each has.
        numbers: (blocks,) int64 and rising, of the blocks within the version.
        pack: makes the records of a block in pieces, (n, words) int32 each; called from threads.
        window: chunks that are shuffled together.
        memory: bytes that the buffer, and threads that fill it, may take.

    Raises:
        UsageError: if the budget does not hold the chunks that are shuffled together.
    """

    def __init__(
        self,
        layout: RecordLayout,
        rows: dict[str, int],
        numbers: np.ndarray,
        pack: Pack,
        window: int,
        memory: int,
    ) -> None:
        self.names = list(rows)
        sizes = np.array(list(rows.values()), np.int64)
        self.starts = np.cumsum(sizes) - sizes
        self._sizes, self._numbers, self._pack = sizes, numbers, pack
        self._room = int(sizes.max(initial=1))
        slot = self._room * layout.size
        # Those that are drawn from, and as many that come next.
        self.slots = min(2 * window, len(sizes), memory // slot - FETCHES * PER_FETCH)
        if self.slots < min(window, len(sizes)):
            raise UsageError(
                f"Expected memory for {min(window, len(sizes))} chunks of up to "
                f"{said_bytes(slot)} each and {FETCHES * PER_FETCH} more to fetch them, came a "
                f"budget of {said_bytes(memory)}; set memory= larger"
                + f", or shuffle_window= to {self.slots} or less." * (self.slots > 0)
                + "." * (self.slots <= 0)
            )
        self._buffer = np.empty((self.slots * self._room, layout.words), WORD)
        self._held: dict[int, tuple[int, Future[None]]] = {}  # block: slot; the last used last
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
        """Bytes of the buffer."""
        return self._buffer.nbytes

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Returns some records, (*rows.shape, words) int32, waiting for those that are not here.

        Args:
            rows: numbers among the records of all blocks, any shape.
        """
        self._begin()
        flat = rows.reshape(-1)
        owner = np.searchsorted(self.starts, flat, side="right") - 1
        needed = np.unique(owner)
        found = np.empty((len(flat), self._buffer.shape[1]), WORD)
        # More blocks than the buffer holds, if they are tiny: some after the others.
        for at in range(0, len(needed), self.slots):
            part = needed[at : at + self.slots]
            slot = np.zeros(len(self.starts), np.int64)
            slot[part] = self._wait_for(part.tolist())
            where = slice(None) if len(part) == len(needed) else np.isin(owner, part)
            mine = owner[where]
            place = slot[mine] * self._room + flat[where] - self.starts[mine]
            found[where] = self._buffer[place]
        return found.reshape(*rows.shape, -1)

    def expect(self, numbers: np.ndarray) -> None:
        """Begins to fetch what will be asked for next: blocks, by their number in the version."""
        self._begin()
        blocks = np.searchsorted(self._numbers, numbers).tolist()[: self.slots]
        self._coming = set(blocks)
        for block in blocks:
            if block not in self._held:
                self._fetch(block, self._coming)

    def _wait_for(self, blocks: Sequence[int]) -> list[int]:
        """Returns in which slots some blocks are, once they are there."""
        for block in blocks:
            if block not in self._held:
                self._fetch(block, set(blocks))
        for block in blocks:
            wait([self._held[block][1]])
            slot, fetched = self._held.pop(block)
            fetched.result()  # one that failed is forgotten, so that the next call tries again
            self._held[block] = slot, fetched
        return [self._held[block][0] for block in blocks]

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
        task = self._begin().submit(_fill, target, self._pack, self.names[block])
        self._held[block] = slot, task

    def _begin(self) -> ThreadPoolExecutor:
        """The threads; a process forked from the one that began them has none of them."""
        if self._threads is None or self._process != os.getpid():
            self._held = {}
            self._process = os.getpid()
            self._threads = ThreadPoolExecutor(FETCHES, "penstock-fetch")
            weakref.finalize(self, self._threads.shutdown, wait=False, cancel_futures=True)
        return self._threads


def _fill(target: np.ndarray, pack: Pack, name: str) -> None:
    at = 0
    for records in pack(name):
        if at + len(records) <= len(target):
            target[at : at + len(records)] = records
        at += len(records)
    if at != len(target):
        raise DamagedStoreError(f"Expected {len(target)} rows of the block {name}, came {at}.")
