"""The store's own objects over the data port, for learners that cannot reach it: to read, no more.

Whoever may pull may read what versions are made of, not the log or the tokens that may lie in the
same folder. The one thing that such a learner leaves in the store is what its run reads, so that
nobody deletes it and the run can be drawn again.
"""

from __future__ import annotations

from pydantic import ValidationError

from pipeline.service.flight_pull import PIECE_BYTES, Messages, piece_of
from pipeline.service.state import ControlState
from pipeline.store import layout, runs
from schemas.errors import NotFoundError, UsageError
from schemas.pulls import NamesTicket, ObjectTicket

OPEN = (
    *(layout.STORE, layout.SINGLE_WRITER, layout.POLICIES, layout.MARKS),
    *(layout.BRANCHES, layout.TAGS, layout.ERASURES, layout.RUNS),
    *layout.DATA,
)
"""What may be read: these objects, and all below these prefixes."""
REFERENCE_BYTES = 1 << 20


def messages(state: ControlState, ticket: ObjectTicket | NamesTicket) -> Messages:
    """Yields an object in pieces, or names.

    Raises:
        NotFoundError: if there is none, or none that may be read.
    """
    objects = state.store.catalog.objects
    if isinstance(ticket, NamesTicket):
        for name in objects.names(_checked(ticket.prefix)):
            yield piece_of(name, b""), None
        return
    key = _checked(ticket.key)
    try:
        # One that is there may be deleted the next moment, so both ask for it once.
        if ticket.only_whether:
            if not objects.exists(key):
                raise FileNotFoundError
            data = b""
        else:
            data = objects.read(key)
    except FileNotFoundError:
        raise NotFoundError(
            f"Expected an object of the store, there is no {key[:200]!r}."
        ) from None
    for at in range(0, max(len(data), 1), PIECE_BYTES):
        piece = memoryview(data)[at : at + PIECE_BYTES]
        state.metrics.pull_bytes.inc(len(piece))
        yield piece_of("", piece), None


def _checked(key: str) -> str:
    """Returns a key that leads nowhere but to what may be read."""
    parts = key.split("/")
    is_odd = any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in parts)
    if is_odd or not any(key == one or key.startswith(f"{one}/") for one in OPEN):
        raise NotFoundError(f"Expected an object of the store, there is no {key[:200]!r}.")
    return key


def refer(state: ControlState, data: bytes) -> bytes:
    """Says what a run reads from a step on, unless that is said already.

    Args:
        state: of the service.
        data: a `RunReference` as JSON.

    Returns:
        What is said now, likewise.

    Raises:
        UsageError: if it is none.
        NotFoundError: if a version is not there.
        FilesExpiredError: if its files are marked for deletion.
    """
    if len(data) > REFERENCE_BYTES:
        raise UsageError(f"Expected at most {REFERENCE_BYTES} bytes, came {len(data)}.")
    try:
        asked = runs.RunReference.model_validate_json(data)
    except ValidationError as error:
        said = error.errors(include_url=False, include_input=False, include_context=False)[0]
        raise UsageError(f"Expected what a run reads, came {said['msg'][:200]}.") from None
    catalog = state.store.catalog
    commits = [catalog.refs.read(one.branch, one.number) for one in asked.versions]
    for one, commit in zip(asked.versions, commits, strict=True):
        if commit.id != one.id:
            raise NotFoundError(f"Expected a version of this store, came {one.id[:32]!r}.")
    found = runs.refer(catalog, asked.run, asked.step, commits, asked.streams, asked.mixture)
    return found.model_dump_json().encode()
