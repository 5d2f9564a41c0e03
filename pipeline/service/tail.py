"""The tail: episodes that are durable in the log and not yet in a version.

A learner that wants everything reads a version and the tail behind it, taken at one moment: each
episode is in one of the two. While a tail is open its segments stay.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from pipeline.service.assemble import Ended
from pipeline.service.reading import encode_ended, read_ended
from pipeline.service.segments import Segments
from schemas.episode import Episode
from schemas.version import VersionRef


class Pins:
    """Offsets from which on the log is being read."""

    def __init__(self) -> None:
        self._held: Counter[int] = Counter()
        self._lock = threading.Lock()

    def hold(self, offset: int) -> None:
        """Keeps records from an offset on."""
        with self._lock:
            self._held[offset] += 1

    def let_go(self, offset: int) -> None:
        """Undoes one `hold`."""
        with self._lock:
            self._held[offset] -= 1
            self._held += Counter()

    def lowest(self, else_: int) -> int:
        """Returns the smallest offset that is held, at most `else_`."""
        with self._lock:
            return min((*self._held, else_))


@dataclass(frozen=True)
class Tail:
    """What was durable and unsealed at one moment."""

    version: VersionRef | None
    """The branch's version that holds what was sealed; None if there is none."""
    sealed: int
    """What ended at this offset or before it is in the version."""
    through: int
    """Every episode whose end has this offset or a smaller one is in the version or here."""
    _waiting: tuple[Ended, ...]
    _segments: Segments

    def __len__(self) -> int:
        return len(self._waiting)

    def episodes(self) -> Iterator[tuple[int, Episode]]:
        """Yields the episodes with the offsets of their ends, in their order."""
        for ended in self._waiting:
            yield ended.offset, read_ended(ended, self._segments)

    def encoded(self, is_wanted: Callable[[str], bool]) -> Iterator[tuple[int, pa.Buffer]]:
        """Yields the episodes as they are sent, with the offsets of their ends, in their order.

        Args:
            is_wanted: is asked once about each id.
        """
        for ended in self._waiting:
            if is_wanted(ended.episode_id):
                yield ended.offset, encode_ended(ended, self._segments)
