"""What goes with the steps that an actor sends: the header of a put, and an episode's facts.

A *put* is one Arrow record batch of rows of one episode (`schemas.puts`) and this header. Client
and service use the same documents; texts and numbers are bounded, because a header may come from
anybody.

A producer numbers its puts 0, 1, 2, ... within an *epoch*, and begins a larger epoch whenever it
connects anew or is told to send again. Then it sends every open episode from its first step: what
it had sent of them in an earlier epoch is forgotten.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AwareDatetime, ConfigDict, Field, TypeAdapter, ValidationError

from schemas.document import Document
from schemas.episode import Episode, FinalObservation, Kind
from schemas.errors import PutError, TooLargeError

HEADER_KEY = b"penstock"
"""Of a batch's custom metadata, where puts go over HTTP: its header as JSON."""
HEADER_BYTES = 1 << 20
"""The longest header that is read."""

Text = Annotated[str, Field(max_length=4096)]
Producer = Annotated[str, Field(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._:-]{0,127}\z")]
EpisodeId = Annotated[str, Field(min_length=1, max_length=1024)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Whole = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Value = bool | Whole | float | Annotated[str, Field(max_length=65536)]
Values = Annotated[Mapping[Annotated[str, Field(max_length=256)], Value], Field(max_length=1024)]


_PRODUCER: TypeAdapter[str] = TypeAdapter(Producer)
_EPISODE_ID: TypeAdapter[str] = TypeAdapter(EpisodeId)


class _Strict(Document):
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=True, ser_json_inf_nan="constants"
    )


class EpisodeFacts(_Strict):
    """Everything about an episode but its id and its arrays; sent with its last put."""

    final_observation: FinalObservation
    task: Text | None = None
    kind: Kind = "rollout"
    policy: Text | None = None
    policy_version: Text | None = None
    seed: Whole | None = None
    success: bool | None = None
    collected_at: AwareDatetime | None = None
    fps: Annotated[float, Field(allow_inf_nan=False)] | None = None
    columns: Values = Field(default_factory=dict)
    labels: Values = Field(default_factory=dict)
    source: Text | None = None
    source_key: Text | None = None

    @classmethod
    def of(cls, episode: Episode) -> EpisodeFacts:
        """Returns an episode's facts.

        Raises:
            PutError: if one of them is too long to be sent.
        """
        try:
            return cls(**{name: getattr(episode, name) for name in cls.model_fields})
        except ValidationError as error:
            raise PutError(_said("facts", error), where=episode.episode_id) from None


def is_producer(name: str) -> bool:
    """True for what may name who sends."""
    return _fits(_PRODUCER, name)


def check_episode_id(episode_id: str) -> None:
    """Makes sure that an id may be sent.

    Raises:
        PutError: if it is empty, or too long.
    """
    if not _fits(_EPISODE_ID, episode_id):
        raise PutError(
            f"Expected an episode's id of 1 to 1,024 characters, came "
            f"{episode_id[:40] + '...' if len(episode_id) > 40 else episode_id!r}.",
            where=episode_id[:40],
        )


def _fits(kind: TypeAdapter[str], text: str) -> bool:
    try:
        kind.validate_python(text, strict=True)
    except ValidationError:
        return False
    return True


class PutHeader(_Strict):
    """What a put is of, and where it belongs."""

    producer: Producer
    """Who sends: an actor. One stream at a time has a producer's newest epoch."""
    epoch: Count
    """Grows whenever the producer connects anew; a clock's nanoseconds will do."""
    sequence: Count
    """Number of this put within the epoch, from 0 without gaps."""
    episode_id: EpisodeId
    start: Count
    """Number of the batch's first row within the episode; 0 begins it."""
    end: bool = False
    """True for the episode's last put, and only this ends an episode: a stream that breaks off
    looks like one that is over."""
    facts: EpisodeFacts | None = None
    """There with `end`, and only then."""

    def model_post_init(self, _context: object) -> None:
        """Holds `end` and `facts` together."""
        if self.end != (self.facts is not None):
            raise ValueError("facts go with the last put of an episode, and only with it")

    @classmethod
    def of(cls, **values: Any) -> PutHeader:
        """Returns a header of one's own making.

        Raises:
            PutError: if a value is none that a header may have.
        """
        try:
            return cls(**values)
        except ValidationError as error:
            raise PutError(_said("a put's header", error)) from None

    def encoded(self) -> bytes:
        """Returns the header as JSON."""
        return self.model_dump_json(exclude_defaults=True).encode()


def read_header(data: bytes | memoryview) -> PutHeader:
    """Returns the header that some JSON is.

    Raises:
        TooLargeError: for more than `HEADER_BYTES`.
        PutError: if it is no header.
    """
    if len(data) > HEADER_BYTES:
        raise TooLargeError(
            f"Expected a put's header of at most {HEADER_BYTES} bytes, came {len(data)}; send "
            f"long values as arrays."
        )
    try:
        return PutHeader.model_validate_json(bytes(data))
    except ValidationError as error:
        raise PutError(_said("a put's header", error)) from None


def _said(what: str, error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    at = ".".join(str(part)[:64] for part in first["loc"])
    return f"Expected {what} as documented, came one with {at or 'a fault'}: {first['msg'][:200]}."


def utc(value: dt.datetime | None) -> dt.datetime | None:
    """Returns a time in UTC."""
    return None if value is None else value.astimezone(dt.UTC)
