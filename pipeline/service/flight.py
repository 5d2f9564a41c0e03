"""The data port: puts in over long streams, episodes and blocks out.

A stream of puts is one DoPut: record batches as `schemas.puts` makes them, each with its header as
JSON in the metadata, acknowledged by `schemas.pulls.Ack`. What is pulled is named by a ticket
(`schemas.pulls`). Every method asks for a scope first, and every error is one of our tree.

What Flight in Python leaves open: it has no limit for the size of a message (Arrow's own is 2 GiB;
`process_limits` bounds what one may take of memory), a stream holds a thread for as long as its
client likes, and one of puts a second if it does not read what it is told (hence the limit of open
streams), and a batch that is compressed is inflated before we see it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.flight as fl

from pipeline.service import flight_exchange, flight_objects, flight_pull
from pipeline.service.flight_auth import MIDDLEWARE, Caller, Callers, caller_of, write_deed
from pipeline.service.flight_errors import flight_error, told, told_all
from pipeline.service.flight_put import Streams
from pipeline.service.state import ControlState
from pipeline.service.tokens import Scope
from pipeline.store.objects import LocalObjects
from schemas.errors import ConfigError, NotFoundError, UsageError
from schemas.plain import plain
from schemas.pulls import (
    EPISODES,
    FILES,
    BlockTicket,
    EpisodesTicket,
    NamesTicket,
    ObjectTicket,
    PullStream,
    TailTicket,
    VersionsTicket,
    read_said,
    read_ticket,
)

logger = logging.getLogger(__name__)
ACTIONS = (
    ("status", "Figures of the log, as JSON."),
    ("refer", "Remembers what a run reads (`pipeline.store.runs.RunReference` as JSON)."),
)
REUSE = "arrow-flight-reuse-connection://?"
"""Where an endpoint is when it is here."""
STOP_SECONDS = 5.0
_ANY: tuple[Scope, ...] = ("push", "pull", "curate")


class DataServer(fl.FlightServerBase):  # type: ignore[misc]
    """The Flight server of one service."""

    def __init__(self, state: ControlState, location: str) -> None:
        """Listens at a location.

        Args:
            state: the service's.
            location: such as `grpc://127.0.0.1:8815`; port 0 takes a free one.
        """
        self._state = state
        self.streams = Streams(state)
        config = state.config
        certificates = None
        if config.tls_cert is not None and config.tls_key is not None:
            certificates = [(config.tls_cert.read_bytes(), config.tls_key.read_bytes())]
        super().__init__(
            location, tls_certificates=certificates, middleware={MIDDLEWARE: Callers(state)}
        )

    def do_put(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        """Takes one stream of puts."""
        command = descriptor.command or b""
        self.streams.serve(caller_of(context), context, command, reader, writer)

    def do_get(self, context: Any, ticket: Any) -> Any:
        """Sends what a ticket names."""
        with told():
            token = caller_of(context).check(("pull",))
            schema, messages = self._messages(ticket.ticket)

            def counted() -> Iterator[Any]:
                with self._state.quotas.stream(token):
                    for batch, place in messages:
                        yield batch, b"" if place is None else place.encoded()

            return fl.GeneratorStream(schema, told_all(counted()))

    def get_flight_info(self, context: Any, descriptor: Any) -> Any:
        """Says where the blocks of a version are: here, and for the same disk as files."""
        with told():
            caller_of(context).check(("pull",))
            wanted = read_ticket(descriptor.command or b"")
            if not isinstance(wanted, EpisodesTicket) or wanted.where or wanted.episode_id:
                raise UsageError("Expected the ticket of a whole version, came another.")
            version = self._state.store.version(wanted.ref)
            endpoints = [
                self._endpoint(version, block)
                for part in version.state.parts
                for block in part.blocks
                if block.container != "link"
            ]
            told_of = {"version": version.id, "branch": version.branch, "number": version.number}
            return fl.FlightInfo(
                FILES,
                descriptor,
                endpoints,
                len(version),
                version.commit.totals.bytes,
                app_metadata=json.dumps(told_of).encode(),
            )

    def list_actions(self, context: Any) -> Any:
        """Names what `do_action` does."""
        with told():
            caller_of(context).check(_ANY)
            return list(ACTIONS)

    def do_action(self, context: Any, action: Any) -> Any:
        """Does something small."""
        with told():
            caller = caller_of(context)
            caller.check(_ANY)
            if action.type == "refer":
                return [self._refer(caller, context.peer(), action.body.to_pybytes())]
            if action.type != "status":
                raise NotFoundError(f"Expected the action 'status', came {action.type[:64]!r}.")
            status = {**self._state.log.status(), "ports": self._state.ports}
            return [json.dumps(plain(status)).encode()]

    # -- what Flight would answer with a traceback ----------------------------------------------

    def list_flights(self, context: Any, _criteria: bytes) -> Any:
        """Refused: ask for the history with a ticket."""
        raise _none("list_flights; ask for the history with the ticket `versions`")

    def get_schema(self, context: Any, _descriptor: Any) -> Any:
        """Refused before it is called, by `Callers`: streams say their schema."""
        raise NotImplementedError

    def do_exchange(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        """Answers small pulls over one stream."""
        with told():
            caller = caller_of(context)
            token = caller.check(("pull",))
            asked = read_said(PullStream, descriptor.command or b"{}")
            with self._state.quotas.stream(token):
                flight_exchange.answer(self._state, self.streams, caller, asked, (reader, writer))

    # -- within --------------------------------------------------------------------------------

    def _refer(self, caller: Caller, client: str, data: bytes) -> bytes:
        error: Exception | None = None
        try:
            caller.check(("pull",))
            return flight_objects.refer(self._state, data)
        except Exception as raised:
            error = raised
            raise
        finally:
            write_deed(self._state, caller.token, "REFER", client, error)

    def _messages(self, data: bytes) -> tuple[pa.Schema, flight_pull.Messages]:
        state, ticket = self._state, read_ticket(data)
        if isinstance(ticket, TailTicket):
            return EPISODES, flight_pull.tail(state, self.streams, ticket)
        if isinstance(ticket, EpisodesTicket):
            return EPISODES, flight_pull.episodes(state, ticket)
        if isinstance(ticket, BlockTicket):
            version, _, found = flight_pull.block_of(state, ticket)
            return FILES, flight_pull.files(state, version, found.files)
        if isinstance(ticket, ObjectTicket | NamesTicket):
            return FILES, flight_objects.messages(state, ticket)
        assert isinstance(ticket, VersionsTicket)
        table = flight_pull.versions(state, ticket)
        return table.schema, iter([(batch, None) for batch in table.to_batches()])

    def _endpoint(self, version: Any, block: Any) -> Any:
        found = flight_pull.files_of(version, block)
        ticket = BlockTicket(ref=version.id, block=block.id).encoded()
        locations = [REUSE]
        objects = version.store.objects
        if isinstance(objects, LocalObjects):
            first = block.file.key
            locations.append((objects.root / first).resolve().as_uri())
        return fl.FlightEndpoint(ticket, locations, None, found.encoded())


def _none(what: str) -> fl.FlightError:
    return flight_error(UsageError(f"Expected a method of this service, came {what}."))


@contextlib.contextmanager
def data_port(state: ControlState) -> Iterator[tuple[DataServer, str]]:
    """Serves the data port while the context lasts; yields the server and its URL.

    Raises:
        UsageError: if the address cannot be had.
        ConfigError: if the certificate is none.
    """
    config = state.config
    _check_free(config.host.strip("[]"), config.port)
    scheme = "grpc+tls" if config.tls_cert is not None else "grpc"
    host = f"[{config.host.strip('[]')}]" if ":" in config.host else config.host
    try:
        server = DataServer(state, f"{scheme}://{host}:{config.port}")
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(
            f"Expected an address of this machine, and a certificate with its key in PEM if any, "
            f"came {host}:{config.port} and {config.tls_cert}; the transport could not use them.",
            where=f"{host}:{config.port}",
        ) from error
    url = f"{scheme}://{host}:{server.port}"
    state.addresses["data"] = url
    try:
        yield server, url
    finally:
        server.streams.leave()
        stop(server, STOP_SECONDS)


def _check_free(host: str, port: int) -> None:
    """Makes sure that nobody listens at a port: gRPC would share it, and get half of the calls."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        raise UsageError(
            f"Expected a free port to listen at, came {host}:{port}: {error.strerror or error}; "
            f"name another with --port.",
            where=f"{host}:{port}",
        ) from error


def stop(server: DataServer, seconds: float) -> bool:
    """Ends a server; returns whether its streams ended in time.

    Flight waits for open streams as long as they last, so a thread of its own does.
    """
    ender = threading.Thread(target=server.shutdown, name="data port ends", daemon=True)
    ender.start()
    ender.join(seconds)
    if ender.is_alive():
        logger.warning("streams of the data port did not end", extra={"seconds": seconds})
    return not ender.is_alive()
