"""Small pulls over one stream: to begin a stream takes longer than most answers do.

Each ticket is answered by batches, of which the last one says that it is. What goes wrong with one
is told in a message without a batch, and the stream goes on; only one whose token was revoked, or
whose service is about to end, does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from pipeline.service import flight_objects, flight_pull
from pipeline.service.flight_auth import Caller
from pipeline.service.flight_errors import fault_of
from pipeline.service.flight_put import Streams
from pipeline.service.state import ControlState
from schemas.errors import UsageError
from schemas.pulls import (
    EPISODES,
    FILES,
    Answered,
    EpisodesTicket,
    NamesTicket,
    ObjectTicket,
    PullStream,
    TailTicket,
    read_ticket,
)


def answer(
    state: ControlState,
    streams: Streams,
    caller: Caller,
    asked: PullStream,
    ends: tuple[Any, Any],
) -> None:
    """Answers tickets until the client sends no more.

    Args:
        state: of the service.
        streams: of puts, which say whether the service is about to end.
        caller: whose stream it is.
        asked: what kind of answers the stream has.
        ends: reader and writer.

    Raises:
        UnauthenticatedError: if the caller's token was revoked meanwhile.
    """
    reader, writer = ends
    has_objects = asked.answers == "objects"
    writer.begin(FILES if has_objects else EPISODES)
    for ticket in _tickets(reader):
        caller.check_again()
        found = _objects(state, ticket) if has_objects else _episodes(state, streams, ticket)
        for batch, said in _answers(found):
            if batch is None:
                writer.write_metadata(said.encoded())
            else:
                writer.write_with_metadata(batch, said.encoded())
        if streams.is_draining:
            return


def _answers(messages: flight_pull.Messages) -> Iterator[tuple[pa.RecordBatch | None, Answered]]:
    """Yields the messages of an answer; what goes wrong while they are made ends it.

    Each is sent once the next one is there, so that the last one can say that it is the last: the
    client would wait for one more, and each may wait for its turn while the service seals.
    """
    before, place = None, None
    while True:
        try:
            following = next(messages, None)
        except Exception as error:  # of ours or not: none may tell the client more
            if before is not None:
                yield before, Answered(is_over=False, place=place)
            yield None, Answered(error=fault_of(error))
            return
        if following is None:
            yield before, Answered(place=place)
            return
        if before is not None:
            yield before, Answered(is_over=False, place=place)
        before, place = following


def _objects(state: ControlState, data: bytes) -> flight_pull.Messages:
    ticket = read_ticket(data)
    if not isinstance(ticket, ObjectTicket | NamesTicket):
        raise UsageError("Expected the ticket of an object or of names, came another.")
    yield from flight_objects.messages(state, ticket)


def _episodes(state: ControlState, streams: Streams, data: bytes) -> flight_pull.Messages:
    ticket = read_ticket(data)
    if isinstance(ticket, TailTicket) and not ticket.follow:
        yield from flight_pull.tail(state, streams, ticket)
    elif isinstance(ticket, EpisodesTicket):
        yield from flight_pull.episodes(state, ticket)
    else:
        raise UsageError("Expected the ticket of episodes or of a tail that ends; use DoGet.")


def _tickets(reader: Any) -> Iterator[bytes]:
    while True:
        try:
            chunk = reader.read_chunk()
        except (StopIteration, pa.ArrowException, OSError):
            return  # a client that went away looks like one that is done, or is an error
        if chunk.data is not None or chunk.app_metadata is None:
            raise UsageError("Expected tickets in messages without a batch, came others.")
        yield chunk.app_metadata.to_pybytes()
