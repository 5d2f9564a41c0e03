"""Who has sent what: puts come once and in order, however often they are sent.

Of each producer its newest epoch and its newest put are remembered; a put that is not newer is a
repeat, one that leaves a gap or is of an older epoch must be sent again from where the service can
follow. The log itself is the memory: a restart replays it, and each segment begins with what the
segments before it amount to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.service.pending import Pending
from schemas.errors import ResendError

KEEP = 10_000
"""Producers that are remembered at most; the one that was silent for longest goes first."""


@dataclass
class Producer:
    """What is known of one producer."""

    epoch: int
    sequence: int
    """Of its newest put."""
    offset: int
    """Of that put in the log."""
    pending: Pending | None = None
    """That put, if it was written by this process."""


class Producers:
    """All producers that are remembered, those silent for longest first."""

    def __init__(self) -> None:
        self._known: dict[str, Producer] = {}

    def repeated(self, name: str, epoch: int, sequence: int) -> Producer | None:
        """Returns the producer if a put of it has come before, None if the put is the next one.

        Raises:
            ResendError: if puts before it are missing, or its epoch is over.
        """
        known = self._known.get(name)
        last = known.sequence if known and known.epoch == epoch else -1
        if known and epoch < known.epoch:
            raise ResendError(
                f"Expected epoch {known.epoch} of the producer {name!r} or a later one, came "
                f"{epoch}; begin a new epoch, and let one process at a time use this name.",
                where=name,
            )
        if known and sequence <= last:
            return known
        if sequence != last + 1:
            raise ResendError(
                f"Expected put {last + 1} of epoch {epoch} of the producer {name!r}, came "
                f"{sequence}; begin a new epoch and send the open episodes again.",
                where=name,
            )
        return None

    def take(
        self, name: str, epoch: int, sequence: int, offset: int, pending: Pending | None
    ) -> bool:
        """Remembers the next put; returns True if it is the first of an epoch."""
        known = self._known.pop(name, None)
        if known is None or known.epoch != epoch:
            self._known[name] = Producer(epoch, sequence, offset, pending)
            while len(self._known) > KEEP:
                del self._known[next(iter(self._known))]
            return True
        self._known[name] = known
        known.sequence, known.offset, known.pending = sequence, offset, pending
        return False

    def forget_refused(self) -> set[str]:
        """Forgets the producers whose newest put the disk had no room for; returns their names.

        They must begin a new epoch: what they sent after that put is not taken.
        """
        gone = {n for n, p in self._known.items() if p.pending and p.pending.is_refused}
        for name in gone:
            del self._known[name]
        return gone

    def snapshot(self) -> dict[str, list[int]]:
        """Returns what is remembered as plain JSON."""
        return {name: [p.epoch, p.sequence, p.offset] for name, p in self._known.items()}

    def restore(self, snapshot: Mapping[str, list[int]]) -> None:
        """Takes over what `snapshot` returned."""
        self._known = {
            name: Producer(epoch, sequence, offset)
            for name, (epoch, sequence, offset) in snapshot.items()
        }
