"""Copies of what is at URLs, one set per process, in a spool folder.

Each process copies a URL once per state of its files, whole, to a spool folder of its own under
`$PENSTOCK_SPOOL` or the temporary directory. Before the first byte, the size that the listing
states is held against the room there is: copies that nobody reads are dropped, longest unused
first, then the copy is refused. Copies go when the process ends.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from connectors.urls import RemoteFile, file_system, plain_name, remote_files, state_of, typed
from schemas.errors import DiskFullError, SourceError

_RESERVE = 64 * 2**20
"""Bytes of the disk that no copy takes."""


@dataclass
class _Copy:
    """A URL's files in one state, here."""

    path: Path
    size: int
    readers: int = 0


class Spool:
    """The copies of this process."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._root: Path | None = None
        self._owner = 0
        self._copies: dict[tuple[str, str], _Copy] = {}

    @contextmanager
    def borrow(self, url: str, state: str | None = None) -> Iterator[tuple[str, str]]:
        """Yields the path of a copy, kept while the context lasts, and its state.

        Args:
            url: a file or a folder.
            state: what the caller expects it to be in; a copy of it is taken without asking.

        Raises:
            SourceError: if it is in another state by now.
            DiskFullError: if it does not fit.
        """
        with self._lock:
            key = (url, state or "")
            if key not in self._copies or self._owner != os.getpid():
                files = remote_files(url)
                key = (url, state_of(files))
                if state is not None and key[1] != state:
                    raise SourceError(
                        f"Expected {url} as it was listed, its files are others now: it changed "
                        f"while it was read; start again.",
                        where=url,
                    )
                if key not in self._copies or self._owner != os.getpid():
                    self._fetch(key, files)
            copy = self._copies.pop(key)
            self._copies[key] = copy  # the last one used goes last
            copy.readers += 1
        try:
            yield str(copy.path), key[1]
        finally:
            with self._lock:
                copy.readers -= 1

    def _fetch(self, key: tuple[str, str], files: list[RemoteFile]) -> None:
        url = key[0]
        folder = self._folder() / hashlib.sha256("\0".join(key).encode()).hexdigest()[:16]
        size = sum(file.size for file in files)
        self._make_room(url, size)
        system, _ = file_system(url)
        target = folder / plain_name(url, PurePosixPath(url.rstrip("/")).name)
        try:
            for file in files:
                path = target / file.name if file.name else target
                path.parent.mkdir(parents=True, exist_ok=True)
                with typed(url):
                    system.get_file(file.path, str(path))
                if path.stat().st_size != file.size:
                    raise SourceError(
                        f"Expected {file.size:,} bytes of {file.name or url}, came "
                        f"{path.stat().st_size:,}; the file changed or was cut off.",
                        where=url,
                    )
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self._copies[key] = _Copy(target, size)

    def _make_room(self, url: str, size: int) -> None:
        """Drops copies that nobody reads until `size` bytes fit."""
        budget = os.environ.get("PENSTOCK_SPOOL_BYTES")

        def room() -> int:
            free = shutil.disk_usage(self._folder()).free - _RESERVE
            held = sum(copy.size for copy in self._copies.values())
            return min(free, int(budget) - held) if budget else free

        for key, copy in list(self._copies.items()):
            if size <= room():
                return
            if not copy.readers:
                shutil.rmtree(copy.path.parent, ignore_errors=True)
                del self._copies[key]
        if size > room():
            raise DiskFullError(
                f"Expected room for the {size:,} bytes of {url} in {self._folder()}, there is room "
                f"for {max(0, room()):,}; free some, or name another folder in $PENSTOCK_SPOOL.",
                where=url,
            )

    def _folder(self) -> Path:
        """The folder of this process, made when first needed; a fork makes its own."""
        if self._root is None or self._owner != os.getpid():
            base = os.environ.get("PENSTOCK_SPOOL") or tempfile.gettempdir()
            Path(base).mkdir(parents=True, exist_ok=True)
            self._root = Path(tempfile.mkdtemp(prefix="penstock-spool-", dir=base))
            self._owner = os.getpid()
            self._copies = {}
            atexit.register(_remove, self._root, self._owner)
        return self._root


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


SPOOL = Spool()
