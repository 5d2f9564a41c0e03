"""Puts into the log: checked, in order, once; what they amount to is kept beside.

State moves when a record is queued, not when it is durable: records become durable in the order in
which they were queued, so whatever is told to anybody waits for the newest record that it rests on.
Where a full disk refuses records, the state that rested on them goes, too (`_forget_refused`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pyarrow as pa

from pipeline.service import payload
from pipeline.service.admission import Admission
from pipeline.service.assemble import Ended, Growing, Piece
from pipeline.service.branch import Branch
from pipeline.service.fitting import Joins, joins_of
from pipeline.service.group_commit import GroupCommit, Written
from pipeline.service.pending import Pending
from pipeline.service.reading import digest_of, episode_of_pieces
from pipeline.service.records import Bytes, Kind
from pipeline.service.recover import Recovered, segment_payload
from pipeline.service.refused import in_quarantine
from pipeline.service.segments import Segments
from pipeline.steps.validate import fault_of
from pipeline.store.ids import Seen
from schemas.episode import Episode
from schemas.errors import (
    EpisodeError,
    IdConflictError,
    LogFailedError,
    PenstockError,
    ResendError,
    SpecMismatchError,
)
from schemas.identity import digest
from schemas.puts import PutLimits, check_rows, check_schema
from schemas.rollouts import PutHeader
from schemas.rows import RowLayout


@dataclass(frozen=True)
class IntakeConfig:
    """Settings of what puts may be and take."""

    limits: PutLimits = field(default_factory=PutLimits)
    segment_bytes: int = 64 << 20
    memory_bytes: int = 512 << 20
    """Rows kept in memory until they are sealed; what is beyond is read back from the log."""


@dataclass(frozen=True)
class Hooks:
    """Who is told of the log's work."""

    written: Callable[[Written], None] = lambda _: None
    failed: Callable[[LogFailedError], None] = lambda _: None
    """The log can write no more: the process should end and be started again."""
    may_begin: Callable[[Callable[[], int]], None] = lambda _: None
    """Raises `BusyError` while no episode should begin; is given what counts the steps of all
    episodes that are in no version yet."""


@dataclass(frozen=True)
class Taken:
    """A put that was taken, or one that had come before."""

    offset: int
    """Where the log has it, or what came after it."""
    pending: Pending | None
    """None for what was durable when the log was opened."""
    is_end: bool
    ended: Ended | None = None
    """The episode that it ends, while no version has it."""
    refusal: PenstockError | None = None
    """Why the episode that it ends is in no version, if that is known already."""

    @property
    def fault(self) -> PenstockError | None:
        """Why the episode that it ends came into no version."""
        return self.refusal or (self.ended.refusal if self.ended is not None else None)


@dataclass(frozen=True)
class Shape:
    """A schema of puts that was checked: most puts of a stream share theirs."""

    schema: pa.Schema
    layout: RowLayout
    encoded: bytes

    @classmethod
    def of(cls, schema: pa.Schema, limits: PutLimits) -> Shape:
        """Checks a schema.

        Raises:
            TooLargeError, PutError: see `check_schema`.
        """
        return cls(schema, check_schema(schema, limits), payload.schema_bytes(schema))


class Intake:
    """The one way into a log. Safe to use from several threads."""

    def __init__(
        self,
        segments: Segments,
        found: Recovered,
        server: str,
        admission: Admission,
        branch: Branch,
        config: IntakeConfig,
        hooks: Hooks,
    ) -> None:
        """Goes on where a log ended.

        Args:
            segments: the log's.
            found: what they amount to.
            server: the log's id.
            admission: says whether there is room.
            branch: where episodes will go.
            config: settings.
            hooks: who is told.
        """
        self.changed = threading.Condition()
        """Guards the state, and tells of its changes."""
        self.producers = found.producers
        self.episodes = found.episodes
        self.sealed = found.sealed
        """Episodes that ended at this offset or before it are in the store."""
        self.server = server
        self._segments = segments
        self._admission = admission
        self._branch = branch
        self._config = config
        self._hooks = hooks
        self.listeners: list[Callable[[], None]] = []
        """Called whenever records were settled, from the log's own thread."""
        self._refusals = 0
        self._held_bytes = 0
        self._segment_left = 0
        """Bytes until the next segment; none, so that every start begins one."""
        self.group = GroupCommit(
            segments,
            found.following,
            on_refused=self._forget_refused,
            on_failed=self._on_failed,
            on_written=self._on_written,
            on_settled=self._on_settled,
        )

    def shape(self, schema: pa.Schema, known: Shape | None) -> Shape:
        """Checks a schema, unless it equals one that was checked before.

        Raises:
            TooLargeError, PutError: see `check_schema`.
        """
        if known is not None and known.schema.equals(schema, check_metadata=True):
            return known
        return Shape.of(schema, self._config.limits)

    def put(self, header: PutHeader, rows: pa.RecordBatch, known: Shape | None = None) -> Taken:
        """Takes one put; wait for its record before you count on it.

        Args:
            header: as `schemas.rollouts.read_header` returns it.
            rows: as they came: they are checked here, and kept until they are sealed.
            known: what `shape` returned for the schema of these rows.

        Raises:
            PutError, TooLargeError: if the rows are not what they must be.
            EpisodeError: if the put ends an episode that is none, or that no version may hold.
            SpecMismatchError: if that episode fits no spec of the branch.
            IdConflictError: if its id is known with other content.
            ResendError: if it does not follow what came before.
            DiskFullError, BusyError: if there is no room now.
            LogFailedError: if the log can write no more.
        """
        shape = known or self.shape(rows.schema, None)
        check_rows(rows, shape.layout, self._config.limits)
        parts = payload.encode(header, rows, schema=shape.encoded)
        pending = Pending(Kind.PUT, parts)
        piece = Piece(-1, rows.num_rows, pending.size, rows, pending)
        if header.end:
            return self._end(header, piece, parts, shape.schema)
        with self.changed:
            repeated = self._repeated(header)
            if repeated is not None:
                return repeated
            growing = self._growing(header, shape.schema)
            self._append(pending)
            self._take(header, pending)
            self._grow(growing, piece)
        return Taken(pending.offset, pending, is_end=False)

    def _end(self, header: PutHeader, piece: Piece, parts: list[Bytes], schema: pa.Schema) -> Taken:
        """Takes the last put of an episode: only now is it known whether it is one."""
        with self.changed:
            repeated = self._repeated(header)
            if repeated is not None:
                return repeated
            growing = self._growing(header, schema)
            before = list(growing.pieces)
        try:
            assert header.facts is not None
            pieces = [*before, piece]
            episode = episode_of_pieces(
                header.episode_id, growing.schema, header.facts, pieces, self._segments
            )
            fault = fault_of(episode)
            if fault is not None:
                raise fault
            checked = self._branch.check_spec(episode)
            content = digest(episode)
        except (EpisodeError, SpecMismatchError):
            with self.changed:
                self._abandon(growing)
            raise
        with self.changed:
            repeated = self._repeated(header)
            if repeated is not None:
                return repeated
            if self._growing(header, growing.schema) is not growing and before:
                raise ResendError(
                    f"Expected one stream for the producer {header.producer!r}, another began its "
                    f"episode anew; begin a new epoch.",
                    where=header.producer,
                )
            is_copy = self._is_copy(header.episode_id, content, growing)
            pending = Pending(Kind.PUT, payload.as_copy(parts)) if is_copy else piece.pending
            assert pending is not None
            if is_copy:
                self._append(pending)
                self._take(header, pending)
                self.episodes.drop(growing.key)
                ended = self.episodes.ended.get(header.episode_id)
            else:
                self._check_again(growing, episode, checked)
                self._append(pending)
                self._branch.take_spec(episode)
                self._take(header, pending)
                self._grow(growing, piece)
                ended = self.episodes.end(growing, header.facts, content, episode)
        return Taken(pending.offset, pending, is_end=True, ended=ended)

    def _check_again(self, growing: Growing, episode: Episode, checked: object) -> None:
        """Makes sure that nothing keeps an episode out which was faster than it."""
        try:
            self._branch.check_spec(episode, checked)
        except SpecMismatchError:
            self._abandon(growing)
            raise

    def joins(self) -> list[Joins]:
        """Returns what the episodes that wait will ask of the branch, in the order of their ends.

        Call it with the lock held.
        """
        return joins_of(self.episodes.ended.values())

    def _repeated(self, header: PutHeader) -> Taken | None:
        """Returns the ticket of a put that came before.

        It is as safe as the producer's newest put: records become durable in their order.
        """
        known = self.producers.repeated(header.producer, header.epoch, header.sequence)
        if known is None:
            return None
        ended = self.episodes.ended.get(header.episode_id) if header.end else None
        lost = None
        if header.end and ended is None and not self._branch.knows(header.episode_id):
            lost = in_quarantine(header.episode_id)
        return Taken(known.offset, known.pending, header.end, ended, lost)

    def _growing(self, header: PutHeader, schema: pa.Schema) -> Growing:
        """Returns the open episode that a put goes on with, or a new one; checks the room."""
        producer, epoch, episode_id = header.producer, header.epoch, header.episode_id
        found = self.episodes.find(producer, epoch, episode_id, header.start)
        self._admission.admit(self.episodes.bytes, is_begun=found is not None)
        if found is None:
            self._hooks.may_begin(self.episodes.steps)
            return Growing(producer, epoch, episode_id, schema, time.monotonic())
        if found.schema is not schema and not found.schema.equals(schema, check_metadata=True):
            raise ResendError(
                f"Expected rows as the episode {episode_id!r} began with, came others; begin a "
                f"new epoch and send it from its first step.",
                where=episode_id,
            )
        return found

    def _is_copy(self, episode_id: str, content: str, growing: Growing) -> bool:
        """True if an episode is there already, in the log or in the store."""
        waiting = self.episodes.ended.get(episode_id)
        if waiting is not None:
            waiting.digest = waiting.digest or digest_of(waiting, self._segments)
            seen = Seen.KNOWN if waiting.digest == content else Seen.OTHER
        else:
            seen = self._branch.seen(episode_id, content)
        if seen == Seen.OTHER:
            self._abandon(growing)
            raise IdConflictError(
                f"Expected the episode {episode_id!r} with the content it is known with, came "
                f"other content; give it an id of its own.",
                where=episode_id,
            )
        return seen == Seen.KNOWN

    def _take(self, header: PutHeader, pending: Pending) -> None:
        is_new = self.producers.take(
            header.producer, header.epoch, header.sequence, pending.offset, pending
        )
        if is_new:
            self.episodes.drop_older(header.producer, header.epoch)

    def _grow(self, growing: Growing, piece: Piece) -> None:
        assert piece.pending is not None
        piece.offset = piece.pending.offset
        growing.touched = time.monotonic()
        self.episodes.grow(growing, piece)
        self._held_bytes += piece.bytes
        if self._held_bytes > self._config.memory_bytes:
            self._held_bytes = self.episodes.release(self._config.memory_bytes // 2)

    # -- records that are no puts --------------------------------------------------------------

    def begin(self) -> Pending:
        """Begins the segment of this start."""
        with self.changed:
            return self._begin_segment()

    def record_seal(self, through: int) -> Pending:
        """Writes that the store has the episodes through an offset."""
        with self.changed:
            sealed = Pending(Kind.SEAL, [payload.plain({"through": through})])
            self._append(sealed)
            return sealed

    def give_up_idle(self, since: float) -> list[str]:
        """Gives up the open episodes that nobody added to since a moment; returns their ids."""
        with self.changed:
            idle = self.episodes.idle_since(since)
            for growing in idle:
                self._abandon(growing)
            return [growing.episode_id for growing in idle]

    # -- within the lock ---------------------------------------------------------------------

    def _append(self, pending: Pending) -> None:
        if self._segment_left <= 0:
            self._begin_segment()
        self.group.append(pending, refusals=self._refusals)
        self._segment_left -= pending.size

    def _begin_segment(self) -> Pending:
        says = segment_payload(self.server, self.sealed, self.producers)
        begun = self.group.append(Pending(Kind.SEGMENT, [says]), refusals=self._refusals)
        self._segment_left = self._config.segment_bytes
        return begun

    def _abandon(self, growing: Growing) -> None:
        """Gives an open episode up, for good."""
        if self.episodes.growing.get(growing.key) is growing:
            said = {"producer": growing.producer, "episode_id": growing.episode_id}
            self._append(Pending(Kind.ABANDON, [payload.plain(said)]))
            self.episodes.drop(growing.key)

    def _forget_refused(self) -> None:
        with self.changed:
            self._refusals += 1
            self._segment_left = 0
            self.episodes.drop_of(self.producers.forget_refused())
            self._branch.begin_again(self.joins())

    def _on_settled(self) -> None:
        for listener in self.listeners:
            listener()

    def _on_failed(self, error: LogFailedError) -> None:
        with self.changed:
            self.changed.notify_all()
        self._hooks.failed(error)

    def _on_written(self, written: Written) -> None:
        with self.changed:
            self.changed.notify_all()
        self._hooks.written(written)
