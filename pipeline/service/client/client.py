"""The client of a service: episodes pushed, safely, and episodes pulled."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as OutOfTime
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
from pydantic import ValidationError

from pipeline.service.client.connecting import Addresses
from pipeline.service.client.lane import Lane
from pipeline.service.client.outbox import Budget, Ending, Offset, Outbox, Outgoing
from pipeline.service.client.pulling import Pulls, Tailed, only
from pipeline.service.client.settings import ClientSettings, producer_name, token_text
from pipeline.service.client.steps import EpisodeStream, check_pushed
from schemas.episode import Episode
from schemas.errors import OutOfTimeError, PenstockError, UsageError
from schemas.pulls import BlockFiles, EpisodesTicket, TailTicket, VersionsTicket
from schemas.puts import cut_rows
from schemas.rollouts import EpisodeFacts, check_episode_id

MAX_LANES = 16
"""Layouts of rows that one client sends."""


class RolloutClient:
    """Pushes episodes to a service and pulls from it; safe to use from several threads.

    An episode that was pushed outlives any crash of the service, is in a version once, and is whole
    or not there. The client keeps it until that is acknowledged; it connects anew, to the next of
    its addresses, whenever a connection fails, and sends again what was not acknowledged.
    """

    def __init__(
        self,
        address: str | Sequence[str] = "grpc://127.0.0.1:8815",
        token: str | None = None,
        settings: ClientSettings | None = None,
        **changes: Any,
    ) -> None:
        """Connects when there is something to do.

        Args:
            address: of a server, `grpc://HOST:PORT` or `grpc+tls://HOST:PORT`; several are servers
                of one store, of which another is tried when one fails.
            token: by default that of the environment variable PENSTOCK_TOKEN, if there is one.
            settings: how it behaves.
            changes: single settings by name, such as `ack="store"`.

        Raises:
            ConfigError: if an address or a setting is none.
        """
        known = {field.name for field in dataclasses.fields(ClientSettings)}
        wrong = sorted(changes.keys() - known)
        if wrong:
            raise UsageError(f"Expected settings of {', '.join(sorted(known))}, came {wrong[0]!r}.")
        self.settings = dataclasses.replace(settings or ClientSettings(), **changes)
        self.producer = producer_name(self.settings)
        """The name that it sends under."""
        self._addresses = Addresses(address, self.settings, token_text(token))
        self._pulls = Pulls(self._addresses, self.settings)
        self._budget = Budget(self.settings.buffer_bytes)
        self._lanes: dict[bytes, Lane] = {}
        self._recent: tuple[pa.Schema, Lane] | None = None
        self._lock = threading.Lock()
        self._is_closed = False
        self._failure: PenstockError | None = None

    def __enter__(self) -> RolloutClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._stop()

    # -- pushing -------------------------------------------------------------------------------

    def push(self, episode: Episode, timeout: float | None = None) -> Offset:
        """Sends an episode; returns its durable offset once it is as safe as `ack` says.

        Args:
            episode: without videos. An id that is known with the same content is kept once.
            timeout: seconds, also for room in the buffer; then it may be there or not, and the
                client sends it no more. By default `retry_seconds`.

        Raises:
            IdConflictError, SpecMismatchError, EpisodeError, PutError, TooLargeError: if it is
                refused.
            UnauthenticatedError, ForbiddenError: if the token is.
            OutOfTimeError: if it takes longer; the message says what stood in the way.
            BusyError: if the buffer stays full.
        """
        future = self._push(episode, timeout)
        try:
            return future.result(timeout)
        except OutOfTime:
            future.cancel()
            raise OutOfTimeError(
                f"Expected the episode {episode.episode_id!r} to be acknowledged within "
                f"{timeout:g} s, it was not{self._why_late(episode)}; it may be there, push it "
                f"again to be sure."
            ) from None
        except PenstockError as error:
            self._told(error)
            raise

    def push_async(self, episode: Episode, timeout: float | None = None) -> Future[Offset]:
        """Queues an episode; returns what tells its durable offset, or its error.

        Args:
            episode: see `push`. Its arrays are copied before this returns: they may be written to.
            timeout: seconds to wait for room in the buffer.

        Raises:
            BusyError: if the buffer stays full.
            PutError: if its id or its facts are too long to be sent.
        """
        return self._push(episode, timeout)

    def episode(self, episode_id: str, **facts: Any) -> EpisodeStream:
        """Begins an episode that is sent while it happens.

        Args:
            episode_id: chosen by the caller, unlike any other.
            facts: `task`, `policy`, `policy_version`, `seed` and others of `Episode`; its kind is
                `rollout` unless said.

        Returns:
            A context with `add` and `end`.

        Raises:
            PutError: if the id may not be sent.
            UsageError: if a fact is none.
        """
        check_episode_id(episode_id)
        one = Outgoing(episode_id)
        lanes: list[Lane] = []

        def send(rows: pa.RecordBatch, facts_of: Episode | None) -> None:
            if not lanes:
                lanes.append(self._lane(rows.schema))
            ending = None
            if facts_of is not None:
                ending = Ending(EpisodeFacts.of(facts_of), self._deadline())
            lanes[0].outbox.add(one, rows, self.settings.retry_seconds, ending)

        def drop() -> None:
            gone = UsageError(f"The episode {episode_id!r} was dropped before its end.")
            if lanes:
                lanes[0].outbox.drop(one, gone)
            else:
                one.settle(gone)

        said = {"kind": "rollout", **facts, "episode_id": episode_id}
        return EpisodeStream(said, self.settings.put_bytes, send, drop, one.future)

    def flush(self, timeout: float | None = None) -> None:
        """Waits until everything that was pushed is acknowledged or failed.

        Raises:
            OutOfTimeError: if it takes longer.
            PenstockError: the first error of an episode that nobody heard of yet.
        """
        until = None if timeout is None else time.monotonic() + timeout
        for lane in self._all():
            outbox = lane.outbox
            left = None if until is None else max(until - time.monotonic(), 0)
            if not outbox.wait_for_ended(left):
                raise OutOfTimeError(
                    f"Expected everything to be acknowledged within {timeout:g} s, it was not."
                )
        with self._lock:
            failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def close(self, timeout: float | None = None) -> None:
        """Flushes and ends; open episodes are dropped.

        Raises:
            Whatever `flush` does; the client is closed all the same.
        """
        try:
            self.flush(timeout)
        finally:
            self._stop()

    # -- pulling -------------------------------------------------------------------------------

    def tail(self, **ticket: Any) -> Iterator[Tailed]:
        """Yields episodes as they become durable, in the order of their ends, each once.

        Args:
            ticket: fields of `schemas.pulls.TailTicket`: `after` (an offset) of `server`,
                `version` (only what it does not have), `min_offset` (wait until it is durable),
                `follow` (go on as episodes come) and `wait_seconds`.

        Raises:
            OutOfTimeError: if `min_offset` is not there in time.
            TransientError: if the service does not answer; following, only for `retry_seconds`.
        """
        return self._pulls.tail(_ticket(TailTicket, ticket))

    def pull_episode(self, episode_id: str, ref: str = "main") -> Episode:
        """Returns one episode of a version.

        Raises:
            NotFoundError: if it has none of this id.
        """
        ticket = _ticket(EpisodesTicket, {"ref": ref, "episode_id": episode_id})
        return only(self._pulls.episodes(ticket), episode_id)

    def pull_version(self, ref: str = "main", where: str | None = None) -> Iterator[Episode]:
        """Yields the episodes of a version, in its order; a filter chooses."""
        return self._pulls.episodes(_ticket(EpisodesTicket, {"ref": ref, "where": where}))

    def pull_blocks(
        self, ref: str = "main", root: Path | None = None
    ) -> Iterator[tuple[BlockFiles, dict[str, Any]]]:
        """Yields the blocks of a version with their files, as the store has them.

        Args:
            ref: the version.
            root: the store's folder, where this machine has it: its files are mapped then, not
                sent, and no file outside of it is opened.
        """
        return self._pulls.blocks(ref, root)

    def versions(self, ref: str = "main", limit: int = 50) -> pa.Table:
        """Returns the history of a reference, newest first."""
        return self._pulls.versions(_ticket(VersionsTicket, {"ref": ref, "limit": limit}))

    # -- within --------------------------------------------------------------------------------

    def _push(self, episode: Episode, timeout: float | None) -> Future[Offset]:
        wait = self.settings.retry_seconds if timeout is None else timeout
        check_pushed(episode)
        one = Outgoing(episode.episode_id)
        facts = EpisodeFacts.of(episode)
        *pieces, last = cut_rows(episode, self.settings.put_bytes)
        outbox = self._lane(last.schema).outbox
        try:
            for rows in pieces:
                outbox.add(one, rows, wait)
            outbox.add(one, last, wait, Ending(facts, self._deadline()))
        except PenstockError as error:
            outbox.drop(one, error)
            raise
        return one.future

    def _why_late(self, episode: Episode) -> str:
        for lane in self._all():
            with lane.outbox.changed:
                if any(one.episode_id == episode.episode_id for one in lane.outbox.episodes):
                    return lane.why_late()
        return ""

    def _lane(self, schema: pa.Schema) -> Lane:
        known = self._recent
        if known is not None and known[0].equals(schema, True) and not self._is_closed:
            return known[1]
        key = schema.serialize().to_pybytes()
        with self._lock:
            if self._is_closed:
                raise UsageError("Expected an open client, this one is closed.")
            found = self._lanes.get(key)
            if found is None:
                number = len(self._lanes)
                if number >= MAX_LANES:
                    raise UsageError(
                        f"Expected episodes of at most {MAX_LANES} layouts, came another; use a "
                        f"client for each kind of episodes."
                    )
                producer = f"{self.producer}:{number}" if number else self.producer
                outbox = Outbox(self._budget, self._failed)
                found = Lane(self._addresses, self.settings, producer, outbox)
                self._lanes[key] = found
            self._recent = (schema, found)
            return found

    def _all(self) -> list[Lane]:
        with self._lock:
            return list(self._lanes.values())

    def _stop(self) -> None:
        with self._lock:
            self._is_closed = True
        self._pulls.close()
        for lane in self._all():
            lane.close(self.settings.connect_seconds)

    def _deadline(self) -> float | None:
        seconds = self.settings.retry_seconds
        return None if seconds is None else time.monotonic() + seconds

    def _failed(self, error: PenstockError) -> None:
        with self._lock:
            self._failure = self._failure or error

    def _told(self, error: PenstockError) -> None:
        with self._lock:
            if self._failure is error:
                self._failure = None


def _ticket(kind: Any, fields: dict[str, Any]) -> Any:
    """Returns a ticket of one's own making."""
    try:
        return kind(**fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise UsageError(f"Expected a {kind.__name__}: {first['loc']}: {first['msg']}.") from None
