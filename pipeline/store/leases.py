"""Leases: what keeps garbage collection away from work under way, and maintainers apart.

A job that may take longer than half the grace period holds a lease: versions it reads stay, and so
does every file made since it began. A *turn* is a role that one process has at a time (compaction);
turns are numbered and created exclusively, so nothing is ever overwritten. Time is the store's own.
"""

from __future__ import annotations

import datetime as dt
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import ValidationError

from pipeline.store import layout
from pipeline.store.objects import Objects
from schemas.document import Document
from schemas.errors import LockHeldError
from schemas.version import VersionRef

LEASE = dt.timedelta(hours=24)
TURN = dt.timedelta(minutes=15)
MAINTAINER = "maintainer"
"""The role of whoever rewrites files."""


class Lease(Document):
    """What a job under way holds."""

    id: str
    holder: str
    """Host and process, for people."""
    created_at: dt.datetime
    expires_at: dt.datetime
    versions: tuple[VersionRef, ...] = ()


class Turn(Document):
    """One process's turn at a role."""

    holder: str
    expires_at: dt.datetime
    ended: bool = False


def holder() -> str:
    """Names this process."""
    return f"{socket.gethostname()}:{os.getpid()}"


@contextmanager
def lease(objects: Objects, *versions: VersionRef, length: dt.timedelta = LEASE) -> Iterator[Lease]:
    """Holds a lease while the context lasts."""
    now = objects.now()
    held = Lease(
        id=layout.new_id(),
        holder=holder(),
        created_at=now,
        expires_at=now + length,
        versions=versions,
    )
    objects.put_if_absent(layout.lease(held.id), held.model_dump_json().encode())
    try:
        yield held
    finally:
        objects.delete(layout.lease(held.id))


def leases(objects: Objects, *, dead: bool = False) -> list[Lease]:
    """Returns the leases that have not expired, or those that have."""
    now = objects.now()
    found = []
    for name in objects.names(layout.LEASES):
        if not name.endswith(".json"):
            continue
        try:
            held = Lease.model_validate_json(objects.read(f"{layout.LEASES}/{name}"))
        except (FileNotFoundError, ValidationError):
            continue  # given back meanwhile, or not a lease
        if (held.expires_at <= now) == dead:
            found.append(held)
    return found


@contextmanager
def turn(objects: Objects, role: str, length: dt.timedelta = TURN) -> Iterator[None]:
    """Has a role while the context lasts; a dead holder's turn ends when it expires.

    Raises:
        LockHeldError: if another process has it.
    """
    folder = f"{layout.LEASES}/{role}"
    numbers = [int(name[:12]) for name in objects.names(folder) if name[:12].isdigit()]
    last = max(numbers, default=0)
    now = objects.now()
    if last:
        try:
            held = Turn.model_validate_json(objects.read(layout.turn(role, last)))
        except ValidationError:
            held = Turn(holder="unknown", expires_at=now)
        if not held.ended and held.expires_at > now:
            raise LockHeldError(
                f"Expected nobody else at {role}, came {held.holder} until "
                f"{held.expires_at.isoformat(timespec='seconds')}; try again later.",
                where=objects.url,
            )
    mine = Turn(holder=holder(), expires_at=now + length)
    if not objects.put_if_absent(layout.turn(role, last + 1), mine.model_dump_json().encode()):
        raise LockHeldError(
            f"Another process just began {role}; try again later.", where=objects.url
        )
    for number in numbers:
        if number < last:
            objects.delete(layout.turn(role, number))
    try:
        yield
    finally:
        ended = mine.model_copy(update={"ended": True})
        objects.put_if_absent(layout.turn(role, last + 2), ended.model_dump_json().encode())
