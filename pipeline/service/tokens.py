"""Who may do what: a token, its scopes, the streams it is held to and what it may use at a time.

Of a token's text only the SHA-256 is kept; the text is shown once, when it is made.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import re
import secrets
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, model_validator

from schemas.document import Document
from schemas.errors import ForbiddenError, UnauthenticatedError

Scope = Literal["push", "pull", "curate", "admin"]
SCOPES: tuple[Scope, ...] = ("push", "pull", "curate", "admin")
PREFIX = "pnk"
MAX_TEXT = 256
_TEXT = re.compile(rf"{PREFIX}_(?P<id>[0-9a-f]{{12}})_[A-Za-z0-9_-]{{43}}")
_NAME = r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,127}\z"


class Quota(Document):
    """What one token may use at a time; None is no limit of its own."""

    max_streams: int | None = Field(default=None, ge=1)
    """Open streams."""
    bytes_per_second: int | None = Field(default=None, ge=1)
    """Of what it pushes, as a mean over some seconds."""
    unsealed_bytes: int | None = Field(default=None, ge=1)
    """Of what it pushed and what is not in the store yet."""


class Token(Document):
    """One token as the book holds it."""

    id: str = Field(pattern=r"\A[0-9a-f]{12}\z")
    name: str = Field(pattern=_NAME)
    """Who has it, for people and the audit log."""
    sha256: str = Field(pattern=r"\A[0-9a-f]{64}\z")
    """Of the token's whole text."""
    scopes: tuple[Scope, ...] = Field(min_length=1)
    streams: tuple[Annotated[str, Field(pattern=_NAME)], ...] = ()
    """Streams that it may push to; none of them named, all."""
    quota: Quota = Quota()
    created_at: AwareDatetime
    expires_at: AwareDatetime | None = None
    revoked_at: AwareDatetime | None = None

    @model_validator(mode="after")
    def _restricts_pushes_only(self) -> Token:
        if self.streams and self.scopes != ("push",):
            raise ValueError("only a token whose one scope is push can be held to streams")
        return self

    def allows(self, scope: Scope) -> bool:
        """True if it has the scope; `admin` has all."""
        return scope in self.scopes or "admin" in self.scopes

    def state(self, now: dt.datetime) -> Literal["valid", "expired", "revoked"]:
        """Returns whether it can be used."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now else "valid"


def new_text() -> str:
    """Returns the text of a new token: a prefix that scanners know, an id, 256 random bits."""
    return f"{PREFIX}_{secrets.token_hex(6)}_{secrets.token_urlsafe(32)}"


def id_in(text: str) -> str | None:
    """Returns the id that a token's text names; None if it is no token's text."""
    match = _TEXT.fullmatch(text) if len(text) <= MAX_TEXT else None
    return match["id"] if match else None


def bearer(header: str | None) -> str:
    """Returns the token's text of an `Authorization` header; None stands for no header.

    Raises:
        UnauthenticatedError: if it holds none.
    """
    if header is None:
        raise UnauthenticatedError(
            "Expected a token (`Authorization: Bearer TOKEN`), came none; the service's token file "
            "holds one, `penstock token create` makes more."
        )
    scheme, _, text = header.partition(" ")
    if scheme.lower() != "bearer":
        raise UnauthenticatedError("Expected `Authorization: Bearer TOKEN`, came another scheme.")
    return text.strip()


def check_scope(token: Token | None, scopes: Sequence[Scope]) -> None:
    """Checks that a token has one of some scopes; None stands for a service without tokens.

    Raises:
        ForbiddenError: if it has not.
    """
    if token is not None and not any(token.allows(scope) for scope in scopes):
        raise ForbiddenError(
            f"Expected a token with the scope {' or '.join(scopes)}, came {token.id} "
            f"({token.name}) with {', '.join(token.scopes)}."
        )


def stream_of(producer: str) -> str:
    """Returns the stream of a producer: what its name has before the first colon, or all of it."""
    return producer.partition(":")[0]


def check_producer(token: Token | None, producer: str) -> None:
    """Checks that a token may push as a producer.

    Raises:
        ForbiddenError: if it may not.
    """
    stream = stream_of(producer)
    check_scope(token, ("push",))
    if token is not None and token.streams and stream not in token.streams:
        raise ForbiddenError(
            f"Expected a stream of the token {token.id} ({token.name}): "
            f"{', '.join(token.streams)}; came {stream[:128]!r}."
        )


def digest(text: str) -> str:
    """Returns the SHA-256 of a token's text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
