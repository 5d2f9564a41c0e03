"""Objects at any other fsspec URL: for reading, or for one declared writer.

fsspec has no exclusive creation that holds between processes, so a store at such a URL is written
only where its owner has declared a single writer.
"""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

import fsspec

from pipeline.store import layout
from pipeline.store.objects import TEMPORARY, Entry
from pipeline.store.remote import RemoteObjects
from schemas.errors import (
    AccessDeniedError,
    ConditionalWritesError,
    MissingExtraError,
    TransientError,
    UsageError,
)

T = TypeVar("T")


class FsspecObjects(RemoteObjects):
    """Objects below a URL, through its fsspec file system."""

    def __init__(
        self, url: str, options: Mapping[str, Any] | None = None, *, single_writer: bool = False
    ) -> None:
        super().__init__(url, options or {}, single_writer=single_writer)
        self._connection: tuple[int, Any, str] | None = None

    @property
    def place(self) -> str:
        """See `RemoteObjects.place`."""
        return self.url

    def read(self, key: str) -> bytes:
        """See `Objects.read`."""
        return bytes(self._typed(key, lambda fs, path: fs.cat_file(path)))

    def exists(self, key: str) -> bool:
        """See `Objects.exists`.

        By reading: some file systems say "no" for whatever they could not ask. What is asked for
        is small.
        """
        try:
            self.read(key)
        except FileNotFoundError:
            return False
        return True

    def names(self, prefix: str) -> Iterator[str]:
        """See `Objects.names`."""
        try:
            found = self._typed(prefix, lambda fs, path: fs.ls(path, detail=False, refresh=True))
        except FileNotFoundError:
            return
        for path in found:
            yield str(path).rstrip("/").rsplit("/", 1)[-1]

    def entries(self, prefix: str) -> Iterator[Entry]:
        """See `Objects.entries`."""
        root = self._typed("", lambda _, path: path)
        found = self._typed(prefix, lambda fs, path: fs.find(path, detail=True, refresh=True))
        for path, facts in found.items():
            key = str(path)[len(root) :].lstrip("/")
            yield Entry(key, int(facts["size"]), self._modified(key))

    def now(self) -> dt.datetime:
        """See `Objects.now`: an object is written and looked at."""
        key = f"{TEMPORARY}{layout.new_id()}"
        self.overwrite(key, b"")
        try:
            return self._modified(key)
        finally:
            self.delete(key)

    def create(self, key: str, data: bytes) -> bool:
        """See `RemoteObjects.create`."""
        scheme = self.url.partition("://")[0]
        raise ConditionalWritesError(
            f"{scheme}:// URLs have no exclusive creation", where=f"{self.url}/{key}"
        )

    def write_all(self, files: Mapping[str, bytes]) -> None:
        """See `RemoteObjects.write_all`."""
        for key, data in files.items():
            self._typed(key, partial(_write, data=data))

    def delete(self, key: str) -> None:
        """See `Objects.delete`."""
        try:
            self._typed(key, lambda fs, path: fs.rm_file(path))
        except FileNotFoundError:
            return

    def _modified(self, key: str) -> dt.datetime:
        told: dt.datetime = self._typed(key, lambda fs, path: fs.modified(path))
        return told.replace(tzinfo=told.tzinfo or dt.UTC).astimezone(dt.UTC)

    def _typed(self, key: str, work: Callable[[Any, str], T]) -> T:
        """Does one thing to an object; what goes wrong becomes an error of our tree."""
        where = f"{self.url}/{key}" if key else self.url
        fs, root = self._fs()
        try:
            return work(fs, f"{root}/{key}" if key else root)
        except FileNotFoundError:
            raise FileNotFoundError(f"no object {where}") from None
        except PermissionError as error:
            raise AccessDeniedError(
                f"Expected leave to use the object, came the refusal {error}; check the "
                f"credentials and their rights.",
                where=where,
            ) from error
        except NotImplementedError as error:
            raise UsageError(
                "This kind of URL can be read only, or tells no ages; copy the store to other "
                "storage.",
                where=where,
            ) from error
        except Exception as error:  # every file system has a tree of errors of its own
            raise TransientError(
                f"Could not use the storage: {type(error).__name__}: {error}; run it again later.",
                where=where,
            ) from error

    def _fs(self) -> tuple[Any, str]:
        if self._connection is None or self._connection[0] != os.getpid():
            try:
                fs, root = fsspec.url_to_fs(self.url, **self._options)
            except ImportError as error:
                raise MissingExtraError(f"This kind of URL needs a package: {error}") from error
            except (TypeError, ValueError) as error:
                raise UsageError(
                    f"Could not open the URL: {error}; check it and the storage_options.",
                    where=self.url,
                ) from error
            self._connection = (os.getpid(), fs, str(root).rstrip("/"))
        return self._connection[1:]


def _write(fs: Any, path: str, *, data: bytes) -> None:
    fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
    fs.pipe_file(path, data)
