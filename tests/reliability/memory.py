"""Objects in memory, with a clock that a test can move: for many short-lived stores."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping

from pipeline.store.catalog import Catalog
from pipeline.store.objects import TEMPORARY, Entry
from pipeline.store.store import Store

EPOCH = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


class MemoryObjects:
    """`Objects` in a dictionary."""

    url = "memory"

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.modified: dict[str, dt.datetime] = {}
        self.clock = EPOCH

    def read(self, key: str) -> bytes:
        try:
            return self.files[key]
        except KeyError:
            raise FileNotFoundError(key) from None

    def exists(self, key: str) -> bool:
        return key in self.files

    def put(self, files: Mapping[str, bytes]) -> None:
        for key, data in files.items():
            assert key not in self.files, f"{key} is written twice"
            self._write(key, data)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        if key in self.files:
            return False
        self._write(key, data)
        return True

    def settle(self, key: str) -> None:
        pass

    def overwrite(self, key: str, data: bytes) -> None:
        self._write(key, data)

    def names(self, prefix: str) -> Iterator[str]:
        start = f"{prefix}/"
        found = {key[len(start) :].partition("/")[0] for key in self.files if key.startswith(start)}
        return (name for name in sorted(found) if not name.startswith(TEMPORARY))

    def entries(self, prefix: str) -> Iterator[Entry]:
        start = f"{prefix}/"
        for key in sorted(self.files):
            if key.startswith(start):
                yield Entry(key, len(self.files[key]), self.modified[key])

    def now(self) -> dt.datetime:
        self.clock += dt.timedelta(microseconds=1)
        return self.clock

    def delete(self, key: str) -> None:
        self.files.pop(key, None)

    def wait(self, hours: float) -> None:
        """Lets time pass."""
        self.clock += dt.timedelta(hours=hours)

    def _write(self, key: str, data: bytes) -> None:
        self.files[key] = data
        self.modified[key] = self.now()


def memory_store() -> tuple[Store, MemoryObjects]:
    """A new store in memory, and its objects."""
    objects = MemoryObjects()
    return Store(Catalog(objects, create=True)), objects
