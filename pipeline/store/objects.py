"""Objects by key: durable puts, exclusive creates, whole reads.

The whole store stands on these few verbs. `put` returns only when files *and* the names that lead
to them are durable; `put_if_absent` is the one atomic act that a commit is.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline.store.disk import Disk
from schemas.errors import (
    AccessDeniedError,
    DiskFullError,
    PenstockError,
    TransientError,
)

TEMPORARY = ".tmp-"


@dataclass(frozen=True)
class Entry:
    """What a listing says of one object."""

    key: str
    bytes: int
    modified: dt.datetime
    """By the clock of the place that holds it."""


class Objects(Protocol):
    """Where a store's files live."""

    url: str

    def read(self, key: str) -> bytes:
        """Returns a whole object.

        Raises:
            FileNotFoundError: if there is none.
        """
        ...

    def exists(self, key: str) -> bool:
        """True if the object is there."""
        ...

    def put(self, files: Mapping[str, bytes]) -> None:
        """Writes new objects; when it returns they are durable."""
        ...

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Creates one object durably, or returns False because the key exists."""
        ...

    def settle(self, key: str) -> None:
        """Makes an object durable that is there, but whose maker may not be done with it."""
        ...

    def overwrite(self, key: str, data: bytes) -> None:
        """Replaces an advisory object; not durable."""
        ...

    def names(self, prefix: str) -> Iterator[str]:
        """Names directly below a prefix, folders and objects, in no order."""
        ...

    def entries(self, prefix: str) -> Iterator[Entry]:
        """Every object below a prefix however deep, in no order.

        Leftovers of writers that died (`TEMPORARY`) are among them; what goes away meanwhile may
        be left out.
        """
        ...

    def now(self) -> dt.datetime:
        """The time by the clock that `Entry.modified` is told by."""
        ...

    def delete(self, key: str) -> None:
        """Removes an object; no error if it is gone."""
        ...


class LocalObjects:
    """Objects as files below one folder."""

    def __init__(self, root: Path, disk: Disk | None = None) -> None:
        self.root = root
        self.url = str(root)
        self._disk = disk or Disk()
        self._durable: set[Path] = set()
        """Folders whose names this process has synced."""

    def read(self, key: str) -> bytes:
        """See `Objects.read`."""
        path = self.root / key
        try:
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from None
        except OSError as error:
            raise TransientError(
                f"Could not read from the store: {error.strerror or error}; check the disk and "
                f"this user's rights, then run it again.",
                where=str(path),
            ) from error

    def exists(self, key: str) -> bool:
        """See `Objects.exists`."""
        return (self.root / key).is_file()

    def put(self, files: Mapping[str, bytes]) -> None:
        """See `Objects.put`."""
        with _typed_errors(self.url):
            made: set[Path] = set()
            touched: dict[str, Path] = {}
            for key, data in files.items():
                name, _, file = key.rpartition("/")
                if name not in touched:
                    touched[name] = self.root / name
                    made |= self._make_folders(touched[name])
                self._disk.create(touched[name] / file, data)
            self._sync(made, touched.values())

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """See `Objects.put_if_absent`.

        The content is written and synced under a temporary name first, so that a crash never
        leaves half an object under its real one; `link` fails where `rename` would overwrite.
        """
        path = self.root / key
        temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
        with _typed_errors(self.url):
            self._sync(self._make_folders(path.parent))
            try:
                self._disk.create(temporary, data)
                created = self._disk.link(temporary, path)
                self._disk.sync_dir(path.parent)
            finally:
                with contextlib.suppress(OSError):  # a leftover temporary name harms nobody
                    self._disk.unlink(temporary)
        return created

    def settle(self, key: str) -> None:
        """See `Objects.settle`."""
        folder = (self.root / key).parent
        with _typed_errors(self.url):
            self._sync(self._make_folders(folder), [folder])

    def overwrite(self, key: str, data: bytes) -> None:
        """See `Objects.overwrite`."""
        path = self.root / key
        temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
        with _typed_errors(self.url):
            try:
                self._disk.create(temporary, data)
                self._disk.rename(temporary, path)
            except OSError:
                with contextlib.suppress(OSError):
                    self._disk.unlink(temporary)
                raise

    def names(self, prefix: str) -> Iterator[str]:
        """See `Objects.names`."""
        folder = self.root / prefix
        if folder.is_dir():
            with os.scandir(folder) as found:
                names = [entry.name for entry in found]
            yield from (name for name in names if not name.startswith(TEMPORARY))

    def entries(self, prefix: str) -> Iterator[Entry]:
        """See `Objects.entries`."""
        for folder, _, names in os.walk(self.root / prefix):
            for name in names:
                path = Path(folder, name)
                try:
                    facts = path.stat()
                except FileNotFoundError:
                    continue
                modified = dt.datetime.fromtimestamp(facts.st_mtime, dt.UTC)
                yield Entry(path.relative_to(self.root).as_posix(), facts.st_size, modified)

    def now(self) -> dt.datetime:
        """See `Objects.now`: a network disk has a clock of its own, so a file is touched."""
        path = self.root / f"{TEMPORARY}{uuid.uuid4().hex}"
        with _typed_errors(self.url):
            path.touch(exist_ok=False)
            try:
                modified = path.stat().st_mtime
            finally:
                path.unlink()
        return dt.datetime.fromtimestamp(modified, dt.UTC)

    def delete(self, key: str) -> None:
        """See `Objects.delete`."""
        path = self.root / key
        with _typed_errors(self.url):
            self._disk.unlink(path)
            if path.parent.is_dir():
                self._disk.sync_dir(path.parent)

    def _make_folders(self, folder: Path) -> set[Path]:
        """Makes missing folders; returns those whose names are not known to be durable yet.

        A folder that is there already may have been made a moment ago by another writer who has
        not synced it: within the store this process syncs each name once itself.
        """
        missing = []
        at = folder
        while not at.is_dir():
            missing.append(at)
            at = at.parent
        for path in reversed(missing):
            self._disk.mkdir(path)
        within = [folder, *folder.parents][: len(folder.relative_to(self.root).parts)]
        above = self._above() if folder == self.root else []
        return {*missing, *within, *above} - self._durable

    def _above(self) -> list[Path]:
        """The store's folder and those above it: whoever creates a store makes sure of them all.

        One that another creator made a moment ago is ours, and open to us, as much as it is his.
        """
        folders = [self.root, *self.root.parents]
        mount = next(at for at, folder in enumerate(folders) if folder.is_mount())
        return [folder for folder in folders[:mount] if os.access(folder.parent, os.R_OK)]

    def _sync(self, made: set[Path], touched: Iterable[Path] = ()) -> None:
        """Makes the names of folders, and those within touched folders, durable."""
        changed = {*touched, *(folder.parent for folder in made)}
        # Deepest first: a name is durable only if every folder above it is.
        for folder in sorted(changed, key=lambda folder: -len(folder.parts)):
            self._disk.sync_dir(folder)
        self._durable |= made


class _typed_errors:  # noqa: N801 - a context manager that reads like a function
    """Turns storage failures into errors of our tree; a failed sync is never taken for success."""

    def __init__(self, where: str) -> None:
        self._where = where

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, OSError):
            advice = {
                errno.ENOSPC: "free some space and run it again",
                errno.EDQUOT: "free some of the quota and run it again",
                errno.EROFS: "mount the store writable",
                errno.EACCES: "give this user write access",
            }.get(error.errno or 0, "check the disk, then run it again")
            kind: type[PenstockError] = TransientError
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                kind = DiskFullError
            elif error.errno in (errno.EROFS, errno.EACCES):
                kind = AccessDeniedError
            raise kind(
                f"Could not write to the store: {error.strerror or error}; {advice} (what is "
                f"there already is not added twice).",
                where=str(error.filename or self._where),
            ) from error
