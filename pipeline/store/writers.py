"""Who may write where: the check that a place refuses a second creation of one object.

A commit is the exclusive creation of an object. Some look-alikes of S3 take the condition, ignore
it, and let every racing writer win, so that all but one lose what they were told is safe. Before a
process first writes to a place it therefore creates an object twice; a place that accepts both is
refused, unless its owner has declared that only one process at a time will ever write there.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import logging
from enum import Enum
from typing import Protocol

from pipeline.store import layout
from schemas.errors import ConditionalWritesError, PenstockError

logger = logging.getLogger(__name__)
_PROVEN: set[str] = set()
"""Places that this process has seen refuse a second creation."""


class Writers(Enum):
    """How many may write to a store at once."""

    MANY = "many"
    ONE = "one"


class Place(Protocol):
    """What the check needs of a place; none of these asks the check first."""

    url: str

    @property
    def place(self) -> str:
        """The endpoint and bucket, for which an answer holds."""
        ...

    def create(self, key: str, data: bytes) -> bool:
        """Creates an object on the condition that there is none."""
        ...

    def write(self, key: str, data: bytes) -> None:
        """Writes an object, whatever is there."""
        ...

    def exists(self, key: str) -> bool:
        """True if there is such an object."""
        ...

    def delete(self, key: str) -> None:
        """Removes an object."""
        ...


def decide(place: Place, *, single_writer: bool) -> Writers:
    """Says how to write to a place, and writes down a declaration that is needed.

    Args:
        place: where.
        single_writer: the caller declares that nobody else writes to this store at the same time.

    Raises:
        ConditionalWritesError: if the place ignores conditions and nobody declared anything.
    """
    if place.place in _PROVEN:
        return Writers.MANY
    reason = _fault_of(place)
    if reason is None:
        _PROVEN.add(place.place)
        return Writers.MANY
    if single_writer:
        said = {"declared_at": dt.datetime.now(dt.UTC).isoformat(), "reason": reason}
        place.write(layout.SINGLE_WRITER, json.dumps(said, indent=1).encode())
        return Writers.ONE
    if place.exists(layout.SINGLE_WRITER):
        logger.warning(
            "%s is declared single-writer (%s): no other process may write to it now.",
            place.url,
            reason,
        )
        return Writers.ONE
    raise ConditionalWritesError(
        f"Expected storage that refuses to create an object twice, came one where {reason}: "
        f"writers would overwrite one another's commits; use other storage, or declare with "
        f"--single-writer (single_writer=True) that one process at a time writes to this store.",
        where=place.url,
    )


def _fault_of(place: Place) -> str | None:
    """Returns what is wrong with a place's conditional writes, or None."""
    key = f"{layout.PROBES}/{layout.new_id()}"
    try:
        if not place.create(key, b"first"):
            return "a fresh object could not be created"
        if place.create(key, b"second"):
            return "the condition If-None-Match was ignored"
    except ConditionalWritesError as error:
        return error.message
    finally:
        # A leftover is a few bytes below `probes/`, which nothing reads.
        with contextlib.suppress(PenstockError):
            place.delete(key)
    return None
