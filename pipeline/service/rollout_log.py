"""The log of rollouts: puts in, durable acknowledgements out, whole episodes on to the store.

A put is checked, written to the log and acknowledged once it is durable; puts that are sent again
are acknowledged without being kept twice. An episode exists from the put that ends it, and becomes
part of a version when it is sealed; one that is never ended never does. What is acknowledged
outlives any crash: after a restart the log knows what is open, what waits, and where to go on.

What a client must do: number its puts, keep an episode until its end is acknowledged, and, when it
connects anew or is told `ResendError`, begin a larger epoch and send its open episodes again. A put
that `put` refuses was not taken: its number is still to come. After an error of `wait` the put may
be there or not: the client sends it again, or begins a larger epoch.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from pipeline.service.admission import Admission, Marks
from pipeline.service.assemble import Ended
from pipeline.service.fitting import joins_of
from pipeline.service.group_commit import Written
from pipeline.service.intake import Hooks, Intake, IntakeConfig, Shape, Taken
from pipeline.service.recover import Recovered, recover
from pipeline.service.refused import keep_all
from pipeline.service.seal import Sealed, Sealing, offers
from pipeline.service.sealer import Sealer
from pipeline.service.segments import Segments
from pipeline.service.tail import Pins, Tail
from pipeline.store.store import Store
from schemas.errors import DiskFullError, OutOfTimeError
from schemas.puts import Put
from schemas.rollouts import PutHeader

Ack = Literal["received", "durable", "store"]
"""When a put counts as taken: once it is checked and queued, once it would outlive a crash, or, for
the end of an episode, once the episode is in a version: to go into quarantine is an error."""
ACK_SECONDS = 60.0
"""How long `push` waits."""


@dataclass(frozen=True)
class RolloutLogConfig:
    """Settings of one log."""

    folder: Path
    """Of the segments, on a disk of this machine. Other files may be in it."""
    branch: str = "main"
    """Where episodes are sealed."""
    new_spec: str | None = None
    """Name of the spec that episodes join which fit none of the branch's; by default they are
    quarantined as `spec_mismatch`."""
    seal_every: float | None = 5.0
    """Seconds; None seals only when told to."""
    seal_bytes: int = 64 << 20
    """Of what is not sealed, after which it is sealed earlier."""
    max_unsealed_bytes: int = 8 << 30
    disk_reserve_bytes: int = 1 << 30
    """Room on the disk below which puts are refused."""
    abandon_after: float = 3600.0
    """Seconds after which an open episode that nobody adds to is given up: it holds segments."""
    intake: IntakeConfig = field(default_factory=IntakeConfig)


class RolloutLog:
    """One log over one branch of a store. Safe to use from several threads."""

    def __init__(
        self,
        store: Store,
        config: RolloutLogConfig,
        hooks: Hooks | None = None,
        on_sealed: Callable[[Sealed, float], None] = lambda *_: None,
    ) -> None:
        """Opens a log and recovers what it holds.

        Args:
            store: where episodes are sealed.
            config: settings.
            hooks: told of the log's work; `failed` should end the process.
            on_sealed: told what each seal did, and its seconds.

        Raises:
            LockHeldError: if another process has the folder.
            DamagedLogError: if the log cannot be trusted.
        """
        self._config = config
        self._on_sealed = on_sealed
        self._sealing = Sealing(store, config.branch, config.new_spec)
        self._version = self._sealing.version
        self._segments = Segments(config.folder)
        try:
            found = recover(self._segments, config.intake.limits, self._sealing.sealed_through)
        except BaseException:
            self._segments.close()
            raise
        self.server = found.server or uuid.uuid4().hex
        """The log's own id: offsets are of it."""
        self._settle(found)
        self.recovery_seconds = found.seconds
        marks = Marks(
            config.max_unsealed_bytes, config.disk_reserve_bytes, config.seal_every or 1.0
        )
        self._admission = Admission(config.folder, marks)
        self._pins = Pins()
        self._one_seal = threading.Lock()
        self._sealer: Sealer | None = None
        self._hooks = hooks or Hooks()
        self._intake = Intake(
            self._segments,
            found,
            self.server,
            self._admission,
            self._sealing,
            config.intake,
            Hooks(self._on_written, self._hooks.failed, self._hooks.may_begin),
        )
        try:
            self._intake.begin().result()
            self._free_segments()
        except BaseException:
            self.close()
            raise
        if config.seal_every is not None:
            self._sealer = Sealer(self._tend, config.seal_every)

    def _settle(self, found: Recovered) -> None:
        """Finishes a seal that a crash came between, and begins with what waits."""
        try:
            between = found.episodes.waiting(found.stored + 1, found.sealed)
            missing = self._sealing.missing(
                self.server, offers(between, self._segments, self.server)
            )
            keep_all(between, missing, self._segments, self.server)
        except BaseException:
            self._segments.close()
            raise
        found.sealed = max(found.sealed, found.stored)
        found.episodes.seal(found.sealed)
        self._sealing.begin_again(joins_of(found.episodes.ended.values()))

    def __enter__(self) -> RolloutLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Writes what is queued and lets go of the folder; seals nothing more."""
        if self._sealer is not None:
            self._sealer.stop()
        self._intake.group.close()
        self._segments.close()

    # -- in ------------------------------------------------------------------------------------

    def put(self, header: PutHeader, rows: pa.RecordBatch, known: Shape | None = None) -> Taken:
        """Takes one put without waiting for the disk; give the outcome to `wait`.

        Raises:
            See `Intake.put`.
        """
        return self._intake.put(header, rows, known)

    def shape(self, schema: pa.Schema, known: Shape | None) -> Shape:
        """Returns what `put` need not work out again for rows of the same schema.

        Raises:
            See `Intake.shape`.
        """
        return self._intake.shape(schema, known)

    def wait(self, taken: Taken, ack: Ack = "durable", timeout: float | None = None) -> int:
        """Returns a put's offset once the put is as safe as asked.

        Args:
            taken: what `put` returned.
            ack: how safe; `store` is `durable` for a put that ends no episode.
            timeout: seconds.

        Raises:
            DiskFullError: if there was no room for it; begin a new epoch.
            SpecMismatchError, IdConflictError, EpisodeError: with `store`, if the episode that it
                ends went into quarantine, because other writers were faster.
            LogFailedError: if the log failed; it may be there after a restart, or not.
            OutOfTimeError: if it takes longer; it may become as safe yet.
        """
        until = None if timeout is None else time.monotonic() + timeout
        if ack != "received" and taken.pending is not None:
            taken.pending.result(timeout)
        if ack == "store" and taken.is_end:
            left = None if until is None else max(until - time.monotonic(), 0.0)
            self.wait_sealed(taken.offset, left)
            if taken.fault is not None:
                raise taken.fault
        return taken.offset

    def is_safe(self, taken: Taken, ack: Ack) -> bool:
        """True once a put is as safe as asked: what `wait` waits for.

        Raises:
            Whatever `wait` does but `OutOfTimeError`.
        """
        pending = taken.pending
        if ack != "received" and pending is not None:
            if not pending.is_settled:
                return False
            pending.result(0)
        if ack != "store" or not taken.is_end:
            return True
        if self.sealed_through >= taken.offset:
            if taken.fault is not None:
                raise taken.fault
            return True
        if self._intake.group.failure is not None:
            raise self._intake.group.failure
        return False

    def listen(self, call: Callable[[], None]) -> None:
        """Calls back, from the log's own thread, whenever puts may have become safer."""
        self._intake.listeners.append(call)

    def push(self, puts: Sequence[Put], ack: Ack = "durable", timeout: float = ACK_SECONDS) -> int:
        """Takes puts of one producer in order; returns the last one's offset once all are safe.

        Raises:
            Whatever `put` and `wait` raise; puts before the one that is refused stay taken.
        """
        taken = [self.put(one.header, one.rows) for one in puts]
        return max(self.wait(one, ack, timeout) for one in taken)

    # -- on to the store -----------------------------------------------------------------------

    def seal(self) -> Sealed | None:
        """Commits the ended episodes that are durable; returns what was done, None for nothing.

        Many are several commits, of `seal_bytes` each: a commit is made in memory. What is told
        then is the last one.

        Raises:
            TransientError: if the store or the log cannot be written; nothing is lost.
        """
        with self._one_seal:
            with self._intake.changed:
                waiting = self._intake.episodes.waiting(self._intake.group.durable)
            done: Sealed | None = None
            while waiting:
                few = 1 if self._sealing.needs_first else _first(waiting, self._config.seal_bytes)
                done = self._seal_few(waiting[:few])
                waiting = waiting[few:]
            return done

    def _seal_few(self, waiting: Sequence[Ended]) -> Sealed:
        begun = time.perf_counter()
        through = waiting[-1].offset
        done = self._sealing.commit(
            self.server, through, lambda: offers(waiting, self._segments, self.server)
        )
        keep_all(waiting, done.refusals, self._segments, self.server)
        with self._intake.changed:
            self._intake.sealed = through
            self._intake.episodes.seal(through)
            self._sealing.begin_again(self._intake.joins())
            self._version = done.version
            self._intake.changed.notify_all()
        try:
            self._intake.record_seal(through).result()
        except DiskFullError:
            self._free_segments()  # the commit says it, too, and this makes room
            self._intake.record_seal(through).result()
        self._free_segments()
        self._on_sealed(done, time.perf_counter() - begun)
        return done

    def wait_sealed(self, offset: int, timeout: float | None = None) -> None:
        """Waits until every episode that ended at an offset or before it is in the store.

        Raises:
            OutOfTimeError: if that takes longer than `timeout` seconds.
            LogFailedError: if the log failed meanwhile.
        """
        self._wait(lambda: self.sealed_through >= offset, timeout, f"offset {offset} to be sealed")

    @property
    def sealed_through(self) -> int:
        """Every episode that ended at this offset or before it is in the store."""
        with self._intake.changed:
            first = next(iter(self._intake.episodes.ended.values()), None)
            return (first.offset if first else self._intake.group.durable) - 1

    def _free_segments(self) -> None:
        with self._intake.changed:
            durable = self._intake.group.durable
            needed = self._intake.episodes.needed()
            keep = self._pins.lowest(durable if needed is None else min(needed, durable))
        self._segments.drop_before(keep)

    def _on_written(self, written: Written) -> None:
        if self._sealer and self._intake.episodes.ended_bytes >= self._config.seal_bytes:
            self._sealer.hurry()
        self._hooks.written(written)

    def _tend(self) -> None:
        self._intake.give_up_idle(time.monotonic() - self._config.abandon_after)
        self.seal()

    # -- out -----------------------------------------------------------------------------------

    @contextmanager
    def tail(self, after: int = -1) -> Iterator[Tail]:
        """Shows what is durable and not sealed, while the context lasts.

        Args:
            after: only episodes whose end has a larger offset.
        """
        with self._intake.changed:
            through = self._intake.group.durable - 1
            waiting = self._intake.episodes.waiting(through + 1, after)
            lowest = min((ended.pieces[0].offset for ended in waiting), default=through + 1)
            self._pins.hold(lowest)
            version, sealed = self._version, self._intake.sealed
        try:
            yield Tail(version, sealed, through, tuple(waiting), self._segments)
        finally:
            self._pins.let_go(lowest)

    def wait_durable(self, offset: int, timeout: float | None = None) -> None:
        """Waits until an offset is durable: whoever reads then reads what was written there.

        Raises:
            OutOfTimeError: if that takes longer than `timeout` seconds.
            LogFailedError: if the log failed meanwhile.
        """
        durable = f"offset {offset} to be durable"
        self._wait(lambda: self._intake.group.durable > offset, timeout, durable)

    def _wait(self, is_so: Callable[[], bool], timeout: float | None, what: str) -> None:
        group = self._intake.group
        with self._intake.changed:
            self._intake.changed.wait_for(lambda: group.failure or is_so(), timeout)
            if is_so():
                return
            if group.failure is not None:
                raise group.failure
        raise OutOfTimeError(f"Expected {what} within {timeout} s, it was not; ask again.")

    def check(self) -> None:
        """Makes sure that a put could be taken now.

        Raises:
            LogFailedError, DiskFullError, BusyError: if not.
        """
        if self._intake.group.failure is not None:
            raise self._intake.group.failure
        self._admission.check(self._intake.episodes.bytes)

    def status(self) -> dict[str, Any]:
        """Returns figures of the log as plain values."""
        intake, error = self._intake, self._sealer.error if self._sealer else None
        with intake.changed:
            oldest = min((e.ended_at for e in intake.episodes.ended.values()), default=None)
            return {
                "server": self.server,
                "branch": self._config.branch,
                "version": self._version.id if self._version else None,
                "durable_offset": intake.group.durable - 1,
                "sealed_offset": intake.sealed,
                "open_episodes": len(intake.episodes.growing),
                "unsealed_episodes": len(intake.episodes.ended),
                "unsealed_bytes": intake.episodes.bytes,
                "unsealed_seconds": 0.0 if oldest is None else time.monotonic() - oldest,
                "log_bytes": self._segments.size,
                "free_bytes": self._admission.free_bytes(),
                "refusals": intake.group.refusals + self._admission.refusals,
                "recovery_seconds": self.recovery_seconds,
                "seal_error": error.kind if error else None,
                "failure": intake.group.failure.message if intake.group.failure else None,
            }


def _first(waiting: Sequence[Ended], most: int) -> int:
    """Returns how many of the episodes have so many bytes together; at least one."""
    size = 0
    for count, ended in enumerate(waiting):
        size += ended.bytes
        if count and size > most:
            return count
    return len(waiting)
