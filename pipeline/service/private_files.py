"""Small files of the service that only its own user may read, replaced as a whole."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


def write_private(path: Path, data: bytes) -> None:
    """Puts a file of mode 0600 in a place at once and durably, in that of another too."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        try:
            os.fchmod(handle, 0o600)
            _give(handle, path if path.exists() else path.parent)
            view = memoryview(data)
            while view:
                view = view[os.write(handle, view) :]
            os.fsync(handle)
        finally:
            os.close(handle)
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _give(handle: int, like: Path) -> None:
    """Gives what root makes to the owner of a file or folder: to the user of the service."""
    if os.geteuid() == 0:
        stat = like.stat()
        os.fchown(handle, stat.st_uid, stat.st_gid)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keeps all other processes and threads out that ask for the same lock file."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        _give(handle, path.parent)
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def signature(path: Path) -> tuple[int, ...]:
    """What changes with every replacement of a file; nothing if it is not there."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return ()
    return stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size
