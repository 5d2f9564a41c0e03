"""What goes over the data port besides puts: how a stream begins, its acknowledgements, tickets.

Each is a small JSON document of known keys. Client and service use the same ones; what they say is
bounded, because it may come from anybody.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

import pyarrow as pa
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from schemas.arrow import FACTS_KEY, episode_from_table, episode_to_table
from schemas.document import DataFile, Document
from schemas.episode import Episode
from schemas.errors import EpisodeError, PutError, TooLargeError, UsageError
from schemas.puts import PutLimits, check_rows, episode_of, plain_layout
from schemas.rollouts import EpisodeFacts, EpisodeId

TICKET_BYTES = 1 << 16
"""The longest document that is read."""
EPISODES = pa.schema({"offset": pa.int64(), "episode": pa.large_binary()})
"""Of a stream of episodes: the offset in the log of each one's end, or a smaller one after which
whoever breaks off misses nothing (-1 for those of a version), and the episode as an Arrow IPC
stream (`encode_episode`)."""
FILES = pa.schema({"key": pa.utf8(), "data": pa.large_binary()})
"""Of a block's files: pieces in order, those of one file one after the other."""
VERSIONS = pa.schema(
    {
        "version": pa.utf8(),
        "branch": pa.utf8(),
        "number": pa.int64(),
        "episodes": pa.int64(),
        "steps": pa.int64(),
        "created_at": pa.timestamp("us", "UTC"),
        "message": pa.utf8(),
    }
)
_END_OF_STREAM = b"\xff\xff\xff\xff" + bytes(4)
"""How an Arrow IPC stream ends."""
_REF = r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,127}(:[0-9]{1,12})?\z"
Ref = Annotated[str, Field(pattern=_REF)]
Offset = Annotated[int, Field(ge=-1, lt=2**63)]


class _Said(Document):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def encoded(self) -> bytes:
        """Returns the document as JSON."""
        return self.model_dump_json(exclude_defaults=False).encode()


# -- puts --------------------------------------------------------------------------------------


class PutStream(_Said):
    """How a stream of puts begins: the command of its descriptor."""

    ack: Literal["received", "durable", "store"] = "durable"
    """When puts are acknowledged: checked and queued; as safe as the disk; ended episodes when they
    are in a version."""


class Fault(_Said):
    """What goes with an error."""

    kind: str
    """As of `schemas.errors`; `bug` for a fault of the service's own."""
    message: str
    retry_after: float | None = None
    """Seconds after which a try makes sense."""
    episode_id: str | None = None
    """Of the put that was refused."""


class Ack(_Said):
    """What a stream of puts answers: every put through this one is as safe as asked."""

    sequence: int
    offset: int
    """Where the log has it. Offsets are of one server's log."""
    server: str
    is_draining: bool = False
    """True if the service is about to end: send no more on this stream."""
    error: Fault | None = None
    """Why none after it will be acknowledged: the stream is over."""


# -- gets --------------------------------------------------------------------------------------


class PullStream(_Said):
    """How a stream of small pulls begins: the command of its descriptor.

    Then each message of the client is a ticket, `tail` that does not follow or `episodes`, and is
    answered by messages with `Answered`, each with a batch, but for one that tells of an error.
    """

    answers: Literal["episodes", "objects"] = "episodes"
    """What answers are made of: `EPISODES`, or `FILES` for the tickets `object` and `names`."""


class Place(_Said):
    """Where the log stands: goes with every message of a tail."""

    server: str
    through: int
    """Every episode whose end has this offset or a smaller one was sent, or is older than asked."""


class Answered(_Said):
    """What goes with each message of an answer on a stream of pulls."""

    is_over: bool = True
    """True for the answer's last message; the stream goes on."""
    place: Place | None = None
    """In the answer to a tail."""
    error: Fault | None = None
    """Why there is no more of it."""


class TailTicket(_Said):
    """Episodes as they become durable, in the order of their ends."""

    type: Literal["tail"] = "tail"
    server: str | None = Field(default=None, max_length=64)
    """Whose offsets `after` and `min_offset` are; another server refuses them."""
    after: Offset = -1
    """Only episodes whose end has a larger offset."""
    min_offset: Offset | None = None
    """Wait until this offset is durable: whoever pushed it reads it."""
    follow: bool = False
    """Go on as episodes come; otherwise the stream ends with what is there."""
    wait_seconds: float = Field(default=30.0, ge=0, le=3600)
    """How long to wait for `min_offset`; following, how long for another episode until the stream
    ends."""
    version: Ref | None = None
    """Only episodes that this version, of the branch where this log seals, does not have."""


class EpisodesTicket(_Said):
    """Episodes of a version."""

    type: Literal["episodes"] = "episodes"
    ref: Ref = "main"
    where: Annotated[str, Field(max_length=16384)] | None = None
    """A filter."""
    episode_id: EpisodeId | None = None
    """One alone."""


class BlockTicket(_Said):
    """The files of one block of a version, as the store has them."""

    type: Literal["block"] = "block"
    ref: Ref
    block: Annotated[str, Field(max_length=128)]


class VersionsTicket(_Said):
    """The history of a reference, newest first."""

    type: Literal["versions"] = "versions"
    ref: Ref = "main"
    limit: int = Field(default=50, ge=1, le=10_000)


Key = Annotated[str, Field(min_length=1, max_length=4096)]


class ObjectTicket(_Said):
    """One object of the store, as it lies there; `not_found` if there is none."""

    type: Literal["object"] = "object"
    key: Key
    only_whether: bool = False
    """Only whether it is there: the answer has no bytes."""


class NamesTicket(_Said):
    """The names directly below a prefix of the store's keys, one a row."""

    type: Literal["names"] = "names"
    prefix: Key


class BlockFiles(_Said):
    """What a block is made of, and how to know that it is whole."""

    block: str
    rows: int
    container: str
    files: tuple[DataFile, ...]


Ticket = Annotated[
    TailTicket | EpisodesTicket | BlockTicket | VersionsTicket | ObjectTicket | NamesTicket,
    Field(discriminator="type"),
]
_TICKETS: TypeAdapter[Any] = TypeAdapter(Ticket)
_D = TypeVar("_D", bound=_Said)


def read_ticket(
    data: bytes,
) -> TailTicket | EpisodesTicket | BlockTicket | VersionsTicket | ObjectTicket | NamesTicket:
    """Returns the ticket that some JSON is.

    Raises:
        UsageError: if it is none.
    """
    _check_length(data)
    try:
        return _TICKETS.validate_json(data)  # type: ignore[no-any-return]
    except ValidationError as error:
        raise _refusal("a ticket", error) from None


def read_said(kind: type[_D], data: bytes) -> _D:
    """Returns the document of a kind that some JSON is.

    Raises:
        UsageError: if it is none.
    """
    _check_length(data)
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise _refusal(kind.__name__, error) from None


def _check_length(data: bytes) -> None:
    if len(data) > TICKET_BYTES:
        raise UsageError(f"Expected at most {TICKET_BYTES} bytes of JSON, came {len(data)}.")


def _refusal(what: str, error: ValidationError) -> UsageError:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    at = ".".join(str(part)[:64] for part in first["loc"]) or "it"
    return UsageError(f"Expected {what} as documented, came a fault in {at}: {first['msg'][:200]}.")


# -- episodes ----------------------------------------------------------------------------------


class _NamedFacts(EpisodeFacts):
    """An episode's facts as its stream says them."""

    episode_id: EpisodeId


def encode_episode(episode: Episode) -> pa.Buffer:
    """Returns an episode as an Arrow IPC stream."""
    table = episode_to_table(episode)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def encode_puts(episode_id: str, facts: EpisodeFacts, puts: Sequence[pa.RecordBatch]) -> pa.Buffer:
    """Returns an episode as an Arrow IPC stream, from the checked rows of all its puts.

    The rows are sent as they came; no episode is made of them.
    """
    named = _NamedFacts.model_construct(episode_id=episode_id, **facts.__dict__)
    schema = puts[0].schema
    metadata = {**schema.metadata, FACTS_KEY: named.model_dump_json().encode()}
    schema = schema.with_metadata(metadata)
    pieces = [schema.serialize(), *[rows.serialize() for rows in puts], _END_OF_STREAM]
    return pa.py_buffer(b"".join(pieces))


def decode_episode(data: pa.Buffer) -> Episode:
    """Inverse of `encode_episode`; numbers are not copied.

    Raises:
        EpisodeError: if the bytes are no episode.
    """
    try:
        with pa.ipc.open_stream(data) as reader:
            schema, batches = reader.schema, list(reader)
    except (pa.ArrowException, OSError) as error:
        raise EpisodeError(
            f"Expected an episode as an Arrow stream, came {str(error)[:200]}.", code="unreadable"
        ) from None
    try:
        made = _as_sent(batches[0]) if len(batches) == 1 else None
        return made or episode_from_table(pa.Table.from_batches(batches, schema))
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise EpisodeError(
            "Expected an Arrow stream with the metadata of an episode, came one with others.",
            code="unreadable",
        ) from error


def _as_sent(rows: pa.RecordBatch) -> Episode | None:
    """Returns the episode that rows make which could have been sent as a put; None for others."""
    metadata = rows.schema.metadata or {}
    try:
        layout = plain_layout(rows.schema)
        named = _NamedFacts.model_validate_json(metadata.get(FACTS_KEY, b""))
        if layout is None:
            return None
        check_rows(rows, layout, PutLimits())
    except (PutError, TooLargeError, ValidationError):
        return None
    return episode_of(named.episode_id, layout, named, [rows])
