"""What learners ask a service for: the tail of its log, versions, episodes, whole blocks."""

from __future__ import annotations

import time
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.flight as fl

from pipeline.service.client.connecting import Addresses, Backoff
from pipeline.service.client.faults import WIRE, error_of, error_of_kind, fault_in
from pipeline.service.client.idle import Connection, IdleConnections
from pipeline.service.client.settings import ClientSettings
from schemas.document import DataFile
from schemas.episode import Episode
from schemas.errors import (
    BusyError,
    DamagedStoreError,
    NotFoundError,
    OutOfTimeError,
    TransientError,
    UsageError,
)
from schemas.pulls import (
    Answered,
    BlockFiles,
    EpisodesTicket,
    Fault,
    NamesTicket,
    ObjectTicket,
    Place,
    PullStream,
    TailTicket,
    VersionsTicket,
    decode_episode,
    read_said,
)

REMEMBERED = 100_000
"""Ids that a tail remembers, so that it yields none twice after it connected anew."""


_EPISODES = PullStream()


class _StaleError(Exception):
    """A connection that lay idle had broken: nothing was asked yet."""


Messages = Iterator[tuple[pa.RecordBatch, Place | None]]


@dataclass(frozen=True)
class Tailed:
    """One episode of a tail."""

    server: str
    offset: int
    """Of its end, or one before it if a version has it: go on after it and nothing is missed."""
    episode: Episode


class Pulls:
    """Asks the servers of one store, the next one after each failure."""

    def __init__(
        self, addresses: Addresses, settings: ClientSettings, asked: PullStream = _EPISODES
    ) -> None:
        self._addresses = addresses
        self._settings = settings
        self._connections = IdleConnections(addresses, asked)

    def close(self) -> None:
        """Ends the connections that are kept for further pulls."""
        self._connections.close()

    def tail(self, ticket: TailTicket) -> Iterator[Tailed]:
        """Yields episodes as they become durable; following, connects anew where it broke off."""
        seen = _Seen()
        if not ticket.follow:
            for batch, place in self._tail(ticket):
                yield from seen.new_ones(batch, place)
            return
        backoff, until = Backoff(self._settings), self._until()
        while True:
            try:
                for batch, place in self._tail(ticket):
                    backoff.reset()
                    until = self._until()
                    yield from seen.new_ones(batch, place)
                    said = {"server": place.server, "after": place.through, "version": None}
                    ticket = ticket.model_copy(update=said)
                return
            except TransientError as error:
                if isinstance(error, OutOfTimeError):
                    raise
                _wait(error, backoff, until)

    def _tail(self, ticket: TailTicket) -> Iterator[tuple[pa.RecordBatch, Place]]:
        for batch, place in self._messages(ticket.encoded(), is_small=not ticket.follow):
            if place is None:
                raise UsageError("Expected to hear where the log stands, came nothing.")
            yield batch, place

    def objects(self, ticket: ObjectTicket | NamesTicket) -> list[tuple[str, pa.Buffer]]:
        """Returns the rows of an answer, name and bytes; waits for a service that is away.

        Raises:
            NotFoundError: if there is no such object.
            TransientError: if the service does not answer for `retry_seconds`.
        """
        backoff, until = Backoff(self._settings), self._until()
        while True:
            try:
                return [
                    (key, data.as_buffer())
                    for batch, _ in self._messages(ticket.encoded(), is_small=True)
                    for key, data in zip(batch["key"].to_pylist(), batch["data"], strict=True)
                ]
            except TransientError as error:
                _wait(error, backoff, until)

    def episodes(self, ticket: EpisodesTicket) -> Iterator[Episode]:
        """Yields episodes of a version."""
        is_small = ticket.episode_id is not None
        for batch, _ in self._messages(ticket.encoded(), is_small=is_small):
            for _, episode in _episodes(batch):
                yield episode

    def versions(self, ticket: VersionsTicket) -> pa.Table:
        """Returns the history of a reference, newest first."""
        return pa.Table.from_batches([batch for batch, _ in self._messages(ticket.encoded())])

    def blocks(self, ref: str, root: Path | None) -> Iterator[tuple[BlockFiles, dict[str, Any]]]:
        """Yields the blocks of a version with their files, each held against its checksum.

        Args:
            ref: the version.
            root: the store's folder where this machine has it: files in it are mapped, and
                nothing outside it is ever opened.
        """
        command = EpisodesTicket(ref=ref).encoded()
        client, at = self._addresses.connect()
        try:
            descriptor = fl.FlightDescriptor.for_command(command)
            options = self._addresses.options(self._settings.connect_seconds)
            info = client.get_flight_info(descriptor, options)
        except WIRE as error:
            self._addresses.failed(at)
            raise error_of(error) from None
        finally:
            client.close()
        for endpoint in info.endpoints:
            files = read_said(BlockFiles, endpoint.app_metadata)
            uris = [location.uri.decode() for location in endpoint.locations]
            found = _mapped(files, uris, root) if root is not None else None
            yield files, found or self._pulled(endpoint.ticket.ticket, files)

    def _pulled(self, ticket: bytes, files: BlockFiles) -> dict[str, Any]:
        """Returns the files of a block, each held against its checksum while more of it comes."""
        coming = {file.key: _Coming(file) for file in files.files}
        for batch, _ in self._messages(ticket):
            for key, data in zip(batch["key"].to_pylist(), batch["data"], strict=True):
                if key in coming:
                    coming[key].add(data.as_buffer())
        return {key: one.whole() for key, one in coming.items()}

    def _messages(self, ticket: bytes, *, is_small: bool = False) -> Messages:
        """Yields the messages of an answer.

        Args:
            ticket: asks for them.
            is_small: over a stream that is open already, if one is; else over one of its own.
        """
        while True:
            try:
                yield from self._messages_over(self._connections.take(), ticket, is_small)
            except _StaleError:
                continue
            return

    def _messages_over(self, connection: Connection, ticket: bytes, is_small: bool) -> Messages:
        reader = None
        is_whole = has_come = False
        fault: Fault | None = None
        try:
            if is_small:
                writer, reader = connection.opened(self._addresses)
                writer.write_metadata(ticket)
            else:
                connection.end_stream()
                reader = connection.client.do_get(fl.Ticket(ticket), self._addresses.options())
            while not is_whole:
                try:
                    chunk = reader.read_chunk()
                except StopIteration:
                    if is_small:  # it ended before its answer did
                        raise fl.FlightUnavailableError("the stream ended") from None
                    is_whole = True
                    return
                has_come = True
                batch, data = chunk.data, chunk.app_metadata
                said = data.to_pybytes() if data is not None else b""
                if is_small:
                    answered = read_said(Answered, said)
                    place, fault, is_whole = answered.place, answered.error, answered.is_over
                else:
                    place = read_said(Place, said) if said else None
                if batch is not None:
                    yield batch, place
        except WIRE as error:
            if connection.is_used and not has_come and fault_in(error) is None:
                raise _StaleError from None
            self._addresses.failed(connection.at)
            raise error_of(error) from None
        finally:
            if is_whole:
                self._connections.give_back(connection)
            else:
                with suppress(*WIRE):
                    if reader is not None:
                        reader.cancel()
                connection.close()
        if fault is not None:
            raise error_of_kind(fault.kind, fault.message, fault.retry_after)

    def _until(self) -> float | None:
        seconds = self._settings.retry_seconds
        return None if seconds is None else time.monotonic() + seconds


class _Coming:
    """A file that comes in pieces."""

    def __init__(self, file: DataFile) -> None:
        self._file = file
        self._crc = self._size = 0
        self._pieces: list[pa.Buffer] = []

    def add(self, piece: pa.Buffer) -> None:
        """Takes the next piece; of one that is too large nothing more is kept."""
        self._size += piece.size
        if self._size <= self._file.bytes:
            self._crc = zlib.crc32(piece, self._crc)
            self._pieces.append(piece)

    def whole(self) -> pa.Buffer:
        """Returns the file.

        Raises:
            DamagedStoreError: if it is another.
        """
        _check(self._file, self._size, self._crc)
        if len(self._pieces) == 1:
            return self._pieces[0]
        return pa.py_buffer(b"".join(map(memoryview, self._pieces)))


class _Seen:
    """The episodes that a tail has yielded."""

    def __init__(self) -> None:
        self._ids: OrderedDict[str, None] = OrderedDict()

    def new_ones(self, batch: pa.RecordBatch, place: Place) -> Iterator[Tailed]:
        """Yields the episodes of a message that were not yielded before."""
        for offset, episode in _episodes(batch):
            if episode.episode_id in self._ids:
                continue
            self._ids[episode.episode_id] = None
            if len(self._ids) > REMEMBERED:
                self._ids.popitem(last=False)
            yield Tailed(place.server, offset, episode)


def _episodes(batch: pa.RecordBatch) -> Iterator[tuple[int, Episode]]:
    for offset, data in zip(batch["offset"].to_pylist(), batch["episode"], strict=True):
        yield offset, decode_episode(data.as_buffer())


def _wait(error: TransientError, backoff: Backoff, until: float | None) -> None:
    pause = backoff.pause(error.retry_after if isinstance(error, BusyError) else 0.0)
    if until is not None and time.monotonic() + pause > until:
        raise error
    time.sleep(pause)


def _mapped(files: BlockFiles, uris: list[str], root: Path) -> dict[str, Any] | None:
    """Returns the files as this machine has them below a folder; None if it has not."""
    places = [Path(unquote(urlsplit(uri).path)) for uri in uris if uri.startswith("file://")]
    home = root.resolve()
    if not any(place.resolve().is_relative_to(home) for place in places):
        return None
    found: dict[str, Any] = {}
    for file in files.files:
        place = (home / file.key).resolve()
        if not place.is_relative_to(home):
            raise DamagedStoreError(
                f"Expected a file within {home}, came {file.key[:128]!r}; nothing was opened."
            )
        if not place.is_file():
            return None
        with pa.memory_map(str(place)) as source:
            found[file.key] = _checked(file, source.read_buffer())
    return found


def _checked(file: DataFile, data: pa.Buffer) -> pa.Buffer:
    _check(file, data.size, zlib.crc32(data))
    return data


def _check(file: DataFile, size: int, crc: int) -> None:
    if size != file.bytes or f"{crc:08x}" != file.crc32:
        raise DamagedStoreError(
            f"Expected {file.bytes} bytes with the checksum {file.crc32}, came {size} that "
            f"differ; ask again.",
            where=file.key,
        )


def only(found: Iterator[Episode], episode_id: str) -> Episode:
    """Returns the one episode that was asked for."""
    for episode in found:
        return episode
    raise NotFoundError(f"Expected the episode {episode_id!r}, came none.")
