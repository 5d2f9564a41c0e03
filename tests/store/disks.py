"""Stand-ins for the disk: quick, recording, failing; and for storage that loses its replies."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

from pipeline.store.catalog import Catalog
from pipeline.store.disk import Disk
from pipeline.store.objects import LocalObjects
from pipeline.store.store import Store


class QuickDisk(Disk):
    """Does everything but sync; for tests that make many commits and crash none."""

    def create(self, path: Path, data: bytes) -> None:
        with path.open("xb") as file:
            file.write(data)

    def sync_dir(self, path: Path) -> None:
        assert path.is_dir()


class DurableDisk(Disk):
    """Knows which names a power cut would lose, and demands all of them before a link."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.made: set[Path] = set()
        self.lost: set[Path] = set()
        self.links: list[str] = []
        self.lost_at_link: list[tuple[str, set[str]]] = []

    def mkdir(self, path: Path) -> bool:
        made = super().mkdir(path)
        if made:
            self._make(path)
        return made

    def create(self, path: Path, data: bytes) -> None:
        super().create(path, data)
        self._make(path)

    def link(self, path: Path, name: Path) -> bool:
        linked = super().link(path, name)
        if linked:
            lost = {str(one.relative_to(self.root.parent)) for one in self.lost - {path}}
            self.links.append(str(name.relative_to(self.root)))
            self.lost_at_link.append((self.links[-1], lost))
            self._make(name)
        return linked

    def unlink(self, path: Path) -> None:
        super().unlink(path)
        self.lost.discard(path)

    def rename(self, path: Path, name: Path) -> None:
        super().rename(path, name)
        self.lost.discard(path)

    def sync_dir(self, path: Path) -> None:
        super().sync_dir(path)
        self.lost = {one for one in self.lost if one.parent != path}

    def _make(self, path: Path) -> None:
        self.made.add(path)
        self.lost.add(path)


class FailingDisk(QuickDisk):
    """Lets the n-th call fail; counts calls."""

    def __init__(self, fail_at: int, code: int = errno.EIO, *, is_half_done: bool = False) -> None:
        self.calls: list[str] = []
        self._fail_at = fail_at
        self._code = code
        self._is_half_done = is_half_done

    def mkdir(self, path: Path) -> bool:
        self._call("mkdir", path)
        return super().mkdir(path)

    def create(self, path: Path, data: bytes) -> None:
        if len(self.calls) == self._fail_at and self._is_half_done:
            super().create(path, data[: len(data) // 2])
        self._call("create", path)
        super().create(path, data)

    def link(self, path: Path, name: Path) -> bool:
        self._call("link", path)
        return super().link(path, name)

    def rename(self, path: Path, name: Path) -> None:
        self._call("rename", path)
        super().rename(path, name)

    def unlink(self, path: Path) -> None:
        self._call("unlink", path)
        super().unlink(path)

    def sync_dir(self, path: Path) -> None:
        self._call("sync_dir", path)
        super().sync_dir(path)

    def _call(self, name: str, path: Path) -> None:
        self.calls.append(name)
        if len(self.calls) - 1 == self._fail_at:
            raise OSError(self._code, os.strerror(self._code), str(path))


class LostReplies(LocalObjects):
    """Creates what it is asked to, and says that the key exists."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        super().put_if_absent(key, data)
        return False


class Interrupted(LocalObjects):
    """Lets something happen just before the first creation of a key that contains a text."""

    def __init__(self, root: Path, key: str, happen: Callable[[], object]) -> None:
        super().__init__(root)
        self._key = key
        self._happen: Callable[[], object] | None = happen

    def put_if_absent(self, key: str, data: bytes) -> bool:
        if self._key in key and self._happen is not None:
            happen, self._happen = self._happen, None
            happen()
        return super().put_if_absent(key, data)


class CountingObjects(LocalObjects):
    """Counts what is read and asked for."""

    def __init__(self, root: Path, disk: Disk | None = None) -> None:
        super().__init__(root, disk)
        self.reads: list[str] = []
        self.asked: list[str] = []

    def read(self, key: str) -> bytes:
        self.reads.append(key)
        return super().read(key)

    def exists(self, key: str) -> bool:
        self.asked.append(key)
        return super().exists(key)


def store_on(objects: LocalObjects, *, create: bool = True) -> Store:
    return Store(Catalog(objects, create=create))


def quick_store(root: Path) -> Store:
    return store_on(LocalObjects(root, QuickDisk()))
