"""Locks of jobs: one run of a job at a time, and a dead run's lock is free.

They save work, no more: two runs of one job would still commit each episode once. On a disk the
kernel holds the lock (`flock`), so that it ends with the process, however that ends. Elsewhere a
run holds a turn that it renews while it lives; it is free when the turn runs out, or at once where
the next one can see that its holder is gone.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import fcntl
import hashlib
import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from pipeline.store import layout
from pipeline.store.objects import LocalObjects, Objects
from schemas.document import Document
from schemas.errors import LockHeldError, PenstockError

logger = logging.getLogger(__name__)
FOLDER = f"{layout.LEASES}/jobs"
TURN = dt.timedelta(seconds=90)
RENEW_SECONDS = 20.0
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)
_ours: set[int] = set()
"""Open lock files of this process: a forked child closes them, or it would hold them too."""


class Holder(Document):
    """Who holds a lock, so that others can tell people, and whether it lives."""

    name: str
    """The job."""
    host: str
    pid: int
    birth: str
    """Boot and process namespace, and when the process began: no other process has the same."""
    since: dt.datetime
    expires_at: dt.datetime | None = None
    ended: bool = False


@contextmanager
def lock(objects: Objects, name: str) -> Iterator[None]:
    """Holds a job's lock while the context lasts.

    Args:
        objects: the store's.
        name: of the job, whatever it contains.

    Raises:
        LockHeldError: if another run holds it.
    """
    key = f"{FOLDER}/{hashlib.sha256(name.encode()).hexdigest()[:32]}"
    if not isinstance(objects, LocalObjects):
        with _turn(objects, key, name):
            yield
        return
    path = objects.root / f"{key}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    # Never removed: another run may be waiting for this very file.
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    _ours.add(file)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _held(_read(os.pread(file, 4096, 0)), name, objects.url) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            with _turn(objects, key, name):
                yield
            return
        os.ftruncate(file, 0)
        os.pwrite(file, _me(name).model_dump_json().encode(), 0)
        yield
    finally:
        _ours.discard(file)
        os.close(file)


def _close_in_child() -> None:
    for file in _ours:
        with contextlib.suppress(OSError):
            os.close(file)
    _ours.clear()


os.register_at_fork(after_in_child=_close_in_child)


# -- turns that are renewed ----------------------------------------------------------------------


@contextmanager
def _turn(objects: Objects, folder: str, name: str) -> Iterator[None]:
    last = _last(objects, folder)
    if last:
        held = _read(objects.read(_number(folder, last)))
        now = objects.now()
        is_over = held is None or held.ended or (held.expires_at or now) <= now or _is_dead(held)
        if not is_over:
            raise _held(held, name, objects.url)
    mine = _Turn(objects, folder, name, last)
    try:
        yield
    finally:
        mine.end()


class _Turn:
    """A turn and the thread that renews it."""

    def __init__(self, objects: Objects, folder: str, name: str, last: int) -> None:
        self._objects = objects
        self._folder = folder
        self._name = name
        self._number = last
        if not self._advance(ended=False):
            raise _held(None, name, objects.url)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Gives the turn back."""
        self._over.set()
        self._thread.join()
        with contextlib.suppress(PenstockError):  # it runs out by itself
            self._advance(ended=True)

    def _renew(self) -> None:
        while not self._over.wait(RENEW_SECONDS):
            try:
                if not self._advance(ended=False):
                    logger.warning("Another run took the lock of the job %r.", self._name)
                    return
            except PenstockError as error:
                logger.warning("The lock of the job %r was not renewed: %s", self._name, error)

    def _advance(self, *, ended: bool) -> bool:
        """Creates the next number; nobody else can have it."""
        me = _me(self._name, expires_at=self._objects.now() + TURN, ended=ended)
        key = _number(self._folder, self._number + 1)
        if not self._objects.put_if_absent(key, me.model_dump_json().encode()):
            return False
        if self._number:
            self._objects.delete(_number(self._folder, self._number))
        self._number += 1
        return True


def _last(objects: Objects, folder: str) -> int:
    numbers = [int(name[:12]) for name in objects.names(folder) if name[:12].isdigit()]
    return max(numbers, default=0)


def _number(folder: str, number: int) -> str:
    return f"{folder}/{number:012d}.json"


# -- who -----------------------------------------------------------------------------------------


def _me(name: str, *, expires_at: dt.datetime | None = None, ended: bool = False) -> Holder:
    return Holder(
        name=name,
        host=socket.gethostname(),
        pid=os.getpid(),
        birth=_birth(os.getpid()) or "",
        since=dt.datetime.now(dt.UTC),
        expires_at=expires_at,
        ended=ended,
    )


def _birth(pid: int) -> str | None:
    """Returns what tells this process from all others of this kernel; None if there is none."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = str(Path("/proc/self/ns/pid").readlink())
        # The 22nd field; the second one, in parentheses, may hold anything.
        began = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
    return f"{boot} {space} {began}"


def _is_dead(held: Holder) -> bool:
    """True if the holder was a process that we would see, and do not."""
    mine = _birth(os.getpid())
    if not mine or not held.birth:
        return False
    ours, theirs = mine.split(), held.birth.split()
    if ours[0] != theirs[0]:
        return held.host == socket.gethostname()  # this host was started again since
    return ours[1] == theirs[1] and _birth(held.pid) != held.birth


def _read(data: bytes) -> Holder | None:
    try:
        return Holder.model_validate_json(data.rstrip(b"\0"))
    except ValidationError:
        return None


def _held(held: Holder | None, name: str, where: str) -> LockHeldError:
    by = (
        f"process {held.pid} on {held.host} since {held.since.isoformat(timespec='seconds')}"
        if held
        else "another process"
    )
    return LockHeldError(
        f"Expected no other run of the job {name!r}, it is held by {by}; wait until that ends.",
        where=where,
    )
