"""Objects by key: durable puts, exclusive creates, whole reads.

The whole store stands on these few verbs. `put` returns only when files *and* the names that lead
to them are durable; `put_if_absent` is the one atomic act that a commit is.
"""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

from pipeline.store.disk import Disk
from schemas.errors import TransientError

TEMPORARY = ".tmp-"


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

    def overwrite(self, key: str, data: bytes) -> None:
        """Replaces an advisory object; not durable."""
        ...

    def names(self, prefix: str) -> Iterator[str]:
        """Names directly below a prefix, folders and objects, in no order."""
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

    def read(self, key: str) -> bytes:
        """See `Objects.read`."""
        return (self.root / key).read_bytes()

    def exists(self, key: str) -> bool:
        """See `Objects.exists`."""
        return (self.root / key).is_file()

    def put(self, files: Mapping[str, bytes]) -> None:
        """See `Objects.put`."""
        with _typed_errors(self.url):
            touched = set()
            for key, data in files.items():
                path = self.root / key
                touched |= self._make_folders(path.parent)
                self._disk.create(path, data)
                touched.add(path.parent)
            # Deepest first: a name is durable only if every folder above it is.
            for folder in sorted(touched, key=lambda folder: -len(folder.parts)):
                self._disk.sync_dir(folder)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """See `Objects.put_if_absent`.

        The content is written and synced under a temporary name first, so that a crash never
        leaves half an object under its real one; `link` fails where `rename` would overwrite.
        """
        path = self.root / key
        temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
        with _typed_errors(self.url):
            for folder in sorted(self._make_folders(path.parent), key=lambda f: -len(f.parts)):
                self._disk.sync_dir(folder)
            try:
                self._disk.create(temporary, data)
                created = self._disk.link(temporary, path)
                self._disk.sync_dir(path.parent)
            finally:
                self._disk.unlink(temporary)
        return created

    def overwrite(self, key: str, data: bytes) -> None:
        """See `Objects.overwrite`."""
        path = self.root / key
        temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
        with _typed_errors(self.url):
            self._disk.create(temporary, data)
            self._disk.rename(temporary, path)

    def names(self, prefix: str) -> Iterator[str]:
        """See `Objects.names`."""
        folder = self.root / prefix
        if folder.is_dir():
            for entry in os.scandir(folder):
                if not entry.name.startswith(TEMPORARY):
                    yield entry.name

    def delete(self, key: str) -> None:
        """See `Objects.delete`."""
        self._disk.unlink(self.root / key)

    def _make_folders(self, folder: Path) -> set[Path]:
        """Makes missing folders up to the root; returns the parents whose names changed."""
        missing = []
        while not folder.is_dir():
            missing.append(folder)
            folder = folder.parent
        changed = set()
        for path in reversed(missing):
            if self._disk.mkdir(path):
                changed.add(path.parent)
        # Racing writers may have made a folder whose name is not durable yet: sync it as well.
        changed.update(path.parent for path in missing)
        return changed


class _typed_errors:  # noqa: N801 - a context manager that reads like a function
    """Turns storage failures into errors of our tree; a failed sync is never taken for success."""

    def __init__(self, where: str) -> None:
        self._where = where

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            advice = {
                errno.ENOSPC: "free some space and run it again",
                errno.EDQUOT: "free some of the quota and run it again",
                errno.EROFS: "mount the store writable",
                errno.EACCES: "give this user write access",
            }.get(error.errno or 0, "check the disk, then run it again")
            raise TransientError(
                f"Could not write to the store: {error.strerror or error}; nothing of this "
                f"commit is visible; {advice}.",
                where=str(error.filename or self._where),
            ) from error
