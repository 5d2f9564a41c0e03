"""Objects that lie elsewhere: what all such places share.

A place reached over a network is written to only after `writers.decide` has said how: by exclusive
creation, or, where a place has none, by the one process that its owner declared. Reading never asks
and never writes.
"""

from __future__ import annotations

import datetime as dt
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.store.objects import Entry
from pipeline.store.writers import Writers, decide


class RemoteObjects(ABC):
    """Objects below a URL; see `Objects` for the verbs."""

    def __init__(self, url: str, options: Mapping[str, Any], *, single_writer: bool) -> None:
        self.url = url
        self._options = dict(options)
        self._single_writer = single_writer
        self._writers: Writers | None = None

    def __reduce__(self) -> tuple[object, ...]:
        # Connections do not travel: every process makes its own.
        return (_reopen, (type(self), self.url, self._options, self._single_writer))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"  # options may hold credentials

    def writers(self) -> Writers:
        """Says how to write here; the first call of a process may probe the place.

        Raises:
            ConditionalWritesError: if writers here could overwrite one another's commits.
        """
        if self._writers is None:
            self._writers = decide(self, single_writer=self._single_writer)
        return self._writers

    def put(self, files: Mapping[str, bytes]) -> None:
        """See `Objects.put`."""
        self.writers()
        self.write_all(files)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """See `Objects.put_if_absent`."""
        if self.writers() is Writers.MANY:
            return self.create(key, data)
        if self.exists(key):
            return False
        self.write(key, data)
        return True

    def settle(self, key: str) -> None:  # noqa: B027 - nothing is left to do
        """See `Objects.settle`: what can be seen here is durable."""

    def overwrite(self, key: str, data: bytes) -> None:
        """See `Objects.overwrite`."""
        self.writers()
        self.write(key, data)

    def write(self, key: str, data: bytes) -> None:
        """Writes one object, whatever is there, without asking whether that is safe."""
        self.write_all({key: data})

    @property
    @abstractmethod
    def place(self) -> str:
        """The endpoint and bucket: what a probe's answer holds for."""

    @abstractmethod
    def write_all(self, files: Mapping[str, bytes]) -> None:
        """Writes objects, whatever is there, without asking whether that is safe."""

    @abstractmethod
    def create(self, key: str, data: bytes) -> bool:
        """Creates one object by one conditional request, without asking whether that is safe."""

    @abstractmethod
    def read(self, key: str) -> bytes:
        """See `Objects.read`."""

    @abstractmethod
    def exists(self, key: str) -> bool:
        """See `Objects.exists`."""

    @abstractmethod
    def names(self, prefix: str) -> Iterator[str]:
        """See `Objects.names`."""

    @abstractmethod
    def entries(self, prefix: str) -> Iterator[Entry]:
        """See `Objects.entries`."""

    @abstractmethod
    def now(self) -> dt.datetime:
        """See `Objects.now`."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """See `Objects.delete`."""


def _reopen(
    cls: type[RemoteObjects], url: str, options: Mapping[str, Any], single_writer: bool
) -> RemoteObjects:
    return cls(url, options, single_writer=single_writer)
