"""Episodes on their way: open ones, which grow, and ended ones, which wait to be sealed.

This is what the log amounts to, as plain bookkeeping without files or locks. It is driven by puts
as they come, and by the log's records after a restart: the same records make the same state.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import pyarrow as pa

from pipeline.service.pending import Pending
from pipeline.service.segments import Place
from schemas.episode import Episode
from schemas.errors import PenstockError, ResendError, TooLargeError
from schemas.puts import PutLimits
from schemas.rollouts import EpisodeFacts

VIEWED_BYTES = 4 << 10
"""From so many bytes on, an episode that came in one put is kept made: its arrays are views of the
put's rows, and what else it takes is no more than they."""


@dataclass(slots=True)
class Piece:
    """The rows of one put."""

    offset: int
    rows: int
    bytes: int
    """Of its record."""
    batch: pa.RecordBatch | None = None
    """The rows, while there is memory for them."""
    pending: Pending | None = None
    """The record, if this process wrote it."""
    place: Place | None = None
    """Where the record is, if it was there when the process began."""

    @property
    def found_at(self) -> Place | None:
        """Where the record is; None if it is not written yet."""
        return self.pending.place if self.pending else self.place


@dataclass
class Growing:
    """An episode that has begun and not ended."""

    producer: str
    epoch: int
    episode_id: str
    schema: pa.Schema
    touched: float
    """When its newest put came, by a clock that only grows."""
    pieces: list[Piece] = field(default_factory=list)
    rows: int = 0
    bytes: int = 0

    @property
    def key(self) -> tuple[str, str]:
        """Producer and episode."""
        return (self.producer, self.episode_id)

    def add(self, piece: Piece) -> None:
        """Takes the next put."""
        self.pieces.append(piece)
        self.rows += piece.rows
        self.bytes += piece.bytes


@dataclass
class Ended:
    """A whole episode that is not in the store yet."""

    producer: str
    episode_id: str
    schema: pa.Schema
    facts: EpisodeFacts
    pieces: list[Piece]
    bytes: int
    ended_at: float
    """When, by a clock that only grows."""
    digest: str | None = None
    """Of its content; None until somebody asks, after a restart."""
    episode: Episode | None = None
    """The episode itself, where it is but a view of rows that are in memory."""
    is_sound: bool = False
    """True if nothing in its rows keeps it out of a version; False if nobody looked."""
    refusal: PenstockError | None = None
    """Why no version took it, once that is so."""

    @property
    def offset(self) -> int:
        """Of the put that ended it."""
        return self.pieces[-1].offset

    @property
    def is_refused(self) -> bool:
        """True if the disk had no room for its last put."""
        pending = self.pieces[-1].pending
        return pending is not None and pending.is_refused


class Episodes:
    """Open and ended episodes of one log."""

    def __init__(self, limits: PutLimits) -> None:
        self._limits = limits
        self.growing: dict[tuple[str, str], Growing] = {}
        self.ended: dict[str, Ended] = {}
        """By id, in the order of their ends."""
        self.bytes = 0
        """Of the records of all of them."""
        self.ended_bytes = 0
        """Of the records of ended ones."""

    # -- growing -------------------------------------------------------------------------------

    def find(self, producer: str, epoch: int, episode_id: str, start: int) -> Growing | None:
        """Returns the open episode that a put goes on with; None if it begins one.

        Raises:
            ResendError: if the rows before it are not there.
            TooLargeError: if the episode is longer than any may be.
        """
        if start == 0:
            return None
        found = self.growing.get((producer, episode_id))
        rows = found.rows if found and found.epoch == epoch else 0
        if found is None or rows != start:
            raise ResendError(
                f"Expected row {rows} of the episode {episode_id!r}, came row {start}; begin a new "
                f"epoch and send it from its first step.",
                where=episode_id,
            )
        if found.rows > self._limits.episode_rows or found.bytes > self._limits.episode_bytes:
            raise TooLargeError(
                f"Expected an episode of at most {self._limits.episode_rows} rows and "
                f"{self._limits.episode_bytes} bytes, came a longer one; split it.",
                where=episode_id,
            )
        return found

    def grow(self, to: Growing, piece: Piece) -> None:
        """Adds a put to an open episode; the first makes it known, in the place of any before."""
        if not to.pieces:
            self.drop(to.key)
            self.growing[to.key] = to
        to.add(piece)
        self.bytes += piece.bytes

    def drop(self, key: tuple[str, str]) -> None:
        """Forgets an open episode."""
        found = self.growing.pop(key, None)
        if found is not None:
            self.bytes -= found.bytes

    def drop_older(self, producer: str, epoch: int) -> None:
        """Forgets what a producer had sent of its open episodes in other epochs."""
        for key in [k for k, g in self.growing.items() if k[0] == producer and g.epoch != epoch]:
            self.drop(key)

    def drop_of(self, producers: Iterable[str]) -> None:
        """Forgets the open episodes of some producers, and ended ones that were refused."""
        names = set(producers)
        for key in [key for key in self.growing if key[0] in names]:
            self.drop(key)
        for episode_id in [name for name, ended in self.ended.items() if ended.is_refused]:
            self._forget(episode_id)

    def idle_since(self, moment: float) -> list[Growing]:
        """Returns the open episodes that nobody added to since a moment."""
        return [one for one in self.growing.values() if one.touched < moment]

    # -- ended ---------------------------------------------------------------------------------

    def end(
        self,
        growing: Growing,
        facts: EpisodeFacts,
        digest: str | None,
        episode: Episode | None = None,
    ) -> Ended:
        """Makes an open episode, all of whose puts are there, an ended one.

        Args:
            growing: the episode.
            facts: of its last put.
            digest: of its content, if it is known.
            episode: itself, if it was made already, and nothing in its rows keeps it out of a
                version; kept if that takes little memory.
        """
        del self.growing[growing.key]
        ended = Ended(
            growing.producer,
            growing.episode_id,
            growing.schema,
            facts,
            growing.pieces,
            growing.bytes,
            growing.touched,
            digest,
            episode if len(growing.pieces) == 1 and growing.bytes >= VIEWED_BYTES else None,
            is_sound=episode is not None,
        )
        self.ended[growing.episode_id] = ended
        self.ended_bytes += ended.bytes
        return ended

    def waiting(self, durable: int, after: int = -1) -> list[Ended]:
        """Returns the ended episodes that are durable, in the order of their ends.

        Args:
            durable: records of smaller offsets are. It is read once: to ask one record after the
                other while the log goes on could skip one and take a later one.
            after: only those whose end has a larger offset; the others are not even looked at.
        """
        found = []
        for ended in reversed(self.ended.values()):
            offset = ended.offset
            if offset <= after:
                break
            if offset < durable:
                found.append(ended)
        found.reverse()
        return found

    def seal(self, through: int) -> None:
        """Forgets the episodes that ended at an offset or before it: the store has them."""
        for episode_id in [n for n, e in self.ended.items() if e.offset <= through]:
            self._forget(episode_id)

    def _forget(self, episode_id: str) -> None:
        size = self.ended.pop(episode_id).bytes
        self.bytes -= size
        self.ended_bytes -= size

    def steps(self) -> int:
        """Returns how many steps all of them have so far; last rows are none."""
        rows = sum(piece.rows for one in self._all() for piece in one.pieces)
        return rows - len(self.ended)

    def needed(self) -> int | None:
        """Returns the smallest offset that any of them needs; None if there are none."""
        return min((one.pieces[0].offset for one in self._all()), default=None)

    # -- memory --------------------------------------------------------------------------------

    def release(self, keep: int) -> int:
        """Lets go of rows in memory that the log has, until what is held is small enough.

        Returns:
            The bytes that are still held.
        """
        held = [p for one in self._all() for p in one.pieces if p.batch is not None]
        size = sum(piece.bytes for piece in held)
        for piece in held:
            if size <= keep:
                break
            if piece.found_at is not None:
                piece.batch = None
                size -= piece.bytes
        for ended in self.ended.values():
            if ended.pieces[0].batch is None:
                ended.episode = None
        return size

    def _all(self) -> Iterator[Growing | Ended]:
        yield from self.ended.values()
        yield from self.growing.values()
