"""Opens Zarr stores that we did not write ourselves, without trusting them.

Zarr reads zeros (the fill value) where a chunk is missing, follows links, runs whatever codec the
metadata names, and decodes a chunk to whatever size the chunk claims. So nothing in this project
hands somebody else's array to Zarr before this door has passed it:

* folders hold plain files and folders only, no links; zip entries are read where they lie, never
  extracted, and must be as large as they may;
* arrays are bool, integers or floats, chunked regularly, with codecs of a short list that can run
  no code: object codecs (pickle, JSON, texts) are refused, and so are image codecs by name;
* before rows are read, every chunk that they need must be there, inside shards too, and must not
  claim to decode to more than a chunk's size. What fails is `UnreadableError`, never zeros.

Zarr itself does the decoding. It notices damage only where the store has checksums.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import stat
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
from zarr.storage import LocalStore, ZipStore

from connectors.replay_zarr_codecs import (
    Codecs,
    codecs_v2,
    codecs_v3,
    dtype_of,
    shard_parts,
)
from schemas.errors import NotFoundError, SourceError

CHUNK_BYTES = 512 * 2**20
"""The most that one chunk may decode to."""
_METADATA_BYTES = 4 * 2**20
_FILES = 4_000_000
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_DEFLATE_RATIO = 1032
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError)


class UnreadableError(SourceError):
    """A chunk that is missing or damaged: damage, not malice."""


class ZarrFiles:
    """The files of a store, in a folder or a zip archive: names and sizes, bytes on request."""

    def __init__(self, where: str) -> None:
        self.where = where
        self._path = Path(where)
        if not os.path.lexists(where):
            raise NotFoundError(f"Expected a Zarr store, there is nothing at {where}.", where=where)
        self.is_zip = self._path.is_file()
        self._store: LocalStore | ZipStore | None = None
        self._archive = zipfile.ZipFile(self._path) if self.is_zip else None
        self.sizes = self._zip_sizes() if self._archive else self._folder_sizes()

    def close(self) -> None:
        """Closes what was opened."""
        if self._store is not None:
            self._store.close()
        if self._archive:
            self._archive.close()

    def paths(self) -> list[Path]:
        """Returns the real files, for a fingerprint."""
        return [self._path] if self.is_zip else [self._path / name for name in self.sizes]

    def store(self) -> LocalStore | ZipStore:
        """Returns the store for Zarr, read-only; opened once."""
        if self._store is None:
            self._store = (
                ZipStore(self._path, mode="r", read_only=True)
                if self.is_zip
                else LocalStore(self._path, read_only=True)
            )
        return self._store

    def read(self, name: str, start: int = 0, length: int = -1) -> bytes:
        """Returns some bytes of a file; of all of it by default."""
        try:
            with self._archive.open(name) if self._archive else self._open(name) as file:
                file.seek(start)
                return file.read(length)
        except (*_DAMAGE, OSError, ValueError, RuntimeError) as error:
            raise UnreadableError(
                f"Expected {name} in {self.where}, it cannot be read: {error}.", where=self.where
            ) from error

    def document(self, name: str) -> Mapping[str, Any]:
        """Returns a metadata file, a JSON mapping."""
        if self.sizes[name] > _METADATA_BYTES:
            raise self._refused(f"{name} is {self.sizes[name]:,} bytes of metadata")
        try:
            found = json.loads(self.read(name))
        except (ValueError, RecursionError) as error:
            raise self._refused(f"{name} is not JSON") from error
        if not isinstance(found, dict):
            raise self._refused(f"{name} is not a JSON mapping")
        return found

    def _open(self, name: str) -> Any:
        return open(self._path / name, "rb", opener=_no_link)

    def _folder_sizes(self) -> dict[str, int]:
        sizes: dict[str, int] = {}
        if self._path.is_symlink() and not self._path.is_dir():
            raise self._refused("it is a link that leads nowhere")
        for folder, below, files in os.walk(self._path):
            for name in (*below, *files):
                path = Path(folder, name)
                inside = path.relative_to(self._path).as_posix()
                status = path.lstat()
                if stat.S_ISREG(status.st_mode):
                    sizes[inside] = status.st_size
                elif not stat.S_ISDIR(status.st_mode):
                    raise self._refused(f"{inside!r} is a link or no plain file")
            self._bound(sizes)
        return sizes

    def _zip_sizes(self) -> dict[str, int]:
        sizes: dict[str, int] = {}
        for entry in self._archive.infolist() if self._archive else ():
            name = entry.filename
            if name.endswith("/"):
                continue
            kind = stat.S_IFMT(entry.external_attr >> 16)
            parts = name.split("/")
            if name in sizes or "" in parts or ".." in parts or kind not in (0, stat.S_IFREG):
                raise self._refused(f"the entry {name!r} is doubled, a link or leads elsewhere")
            if entry.compress_type not in _METHODS or entry.flag_bits & 1:
                raise self._refused(
                    f"the entry {name!r} is encrypted or neither stored nor deflated"
                )
            is_stored = entry.compress_type == zipfile.ZIP_STORED
            most = entry.compress_size * (1 if is_stored else _DEFLATE_RATIO)
            if entry.file_size > min(most, CHUNK_BYTES * 2):
                raise self._refused(
                    f"the entry {name!r} claims {entry.file_size:,} bytes of "
                    f"{entry.compress_size:,} (a decompression bomb?)"
                )
            sizes[name] = entry.file_size
            self._bound(sizes)
        return sizes

    def _bound(self, sizes: Mapping[str, int]) -> None:
        if len(sizes) > _FILES:
            raise self._refused(f"it has more than {_FILES:,} files")

    def _refused(self, what: str) -> SourceError:
        return SourceError(
            f"Expected a plain Zarr store at {self.where}, {what}; it is refused.", where=self.where
        )


@dataclass(frozen=True)
class ZarrArray:
    """One array, its metadata checked."""

    files: ZarrFiles
    path: str
    zarr_format: Literal[2, 3]
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    """Shape of a stored chunk (of a shard, where there are shards)."""
    dtype: np.dtype[Any]
    key: tuple[str, str]
    """What a chunk's name begins with and what joins its indices."""
    codecs: Codecs

    @property
    def row_bytes(self) -> int:
        """Bytes of one entry along the first axis."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def where(self) -> str:
        """Store and array, for messages."""
        return f"{self.files.where}:{self.path}"

    def read(self, start: int, stop: int) -> np.ndarray:
        """Returns rows `start:stop`, in this machine's byte order.

        Raises:
            UnreadableError: if a chunk of theirs is missing or damaged.
        """
        for index in self._indices(start, stop):
            self._check(index)
        try:
            array = zarr.open_array(
                self.files.store(), path=self.path, mode="r", zarr_format=self.zarr_format
            )
            rows = np.asarray(array[start:stop])
        except Exception as error:  # whatever a codec raises on damaged bytes
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UnreadableError(
                f"Expected rows {start}:{stop} of {self.where}, a chunk does not decode: {said}.",
                where=self.where,
            ) from error
        if rows.shape != (stop - start, *self.shape[1:]) or rows.dtype.kind != self.dtype.kind:
            raise UnreadableError(
                f"Expected rows {start}:{stop} of {self.where} of shape {self.shape[1:]}, came "
                f"{rows.shape}: it changed while it was read.",
                where=self.where,
            )
        return rows.astype(self.dtype.newbyteorder("="), copy=False)

    def _indices(self, start: int, stop: int) -> Iterator[tuple[int, ...]]:
        ranges = [range(start // self.chunks[0], -(-stop // self.chunks[0]))]
        ranges += [range(-(-n // c)) for n, c in zip(self.shape[1:], self.chunks[1:], strict=True)]
        yield from itertools.product(*ranges)

    def _check(self, index: tuple[int, ...]) -> None:
        """Fails if a chunk is not there or would decode to more than its size."""
        prefix, separator = self.key
        name = f"{self.path}/{prefix}{separator.join(map(str, index))}".removeprefix("/")
        size = self.files.sizes.get(name)
        if size is None:
            raise UnreadableError(
                f"Expected the chunk {name} in {self.files.where}, it is missing, and Zarr would "
                f"read {self.path} as fill values there; restore it, or write the store with "
                f"write_empty_chunks if it was left out as empty.",
                where=self.where,
            )
        parts: Iterable[tuple[int, int]] = [(0, size)]
        if self.codecs.shard is not None:
            places = zip(self.shape, index, self.chunks, strict=True)
            room = tuple(axis - at * chunk for axis, at, chunk in places)
            parts = shard_parts(self.codecs.shard, size, partial(self._stored, name, 0), room)
        try:
            for begin, length in parts:
                self.codecs.check(partial(self._stored, name, begin), length)
        except ValueError as error:
            raise UnreadableError(
                f"Expected a whole chunk {name} in {self.files.where}: {error}.", where=self.where
            ) from error

    def _stored(self, name: str, begin: int, at: int, length: int) -> bytes:
        return self.files.read(name, begin + at, length)


@contextmanager
def open_zarr(where: str) -> Iterator[dict[str, ZarrArray]]:
    """Yields the arrays of a store by path; reads metadata only.

    Raises:
        NotFoundError: if there is nothing at `where`.
        SourceError: if it is not a plain Zarr store.
    """
    try:
        files = ZarrFiles(where)
    except zipfile.BadZipFile as error:
        raise SourceError(
            f"Expected a Zarr folder or zip, {where} is a file that is no whole zip: {error}.",
            where=where,
        ) from error
    try:
        yield _arrays(files)
    finally:
        files.close()


def _arrays(files: ZarrFiles) -> dict[str, ZarrArray]:
    found = {}
    for name in files.sizes:
        path, _, last = name.rpartition("/")
        if last == ".zarray":
            found[path] = _array_v2(files, path, files.document(name))
        elif last == "zarr.json":
            document = files.document(name)
            if document.get("node_type") == "array":
                found[path] = _array_v3(files, path, document)
    return found


def _array_v2(files: ZarrFiles, path: str, stated: Mapping[str, Any]) -> ZarrArray:
    where = f"{files.where}:{path}"
    shape, chunks = _shape(stated.get("shape"), where), _shape(stated.get("chunks"), where)
    dtype = dtype_of(stated.get("dtype"), where)
    separator = stated.get("dimension_separator", ".")
    return _checked(
        ZarrArray(
            files=files,
            path=path,
            zarr_format=2,
            shape=shape,
            chunks=chunks,
            dtype=dtype,
            key=("", separator),
            codecs=codecs_v2(stated, chunks, dtype, where),
        )
    )


def _array_v3(files: ZarrFiles, path: str, stated: Mapping[str, Any]) -> ZarrArray:
    where = f"{files.where}:{path}"
    grid, keys = stated.get("chunk_grid"), stated.get("chunk_key_encoding")
    if not isinstance(grid, dict) or not isinstance(keys, dict) or grid.get("name") != "regular":
        raise SourceError(f"Expected a regular chunk grid in {where}, came {grid!r}.", where=where)
    if keys.get("name") not in ("default", "v2") or stated.get("storage_transformers"):
        raise SourceError(f"Expected plain chunk keys in {where}, came {keys!r}.", where=where)
    is_default = keys["name"] == "default"
    separator = _settings(keys, where).get("separator", "/" if is_default else ".")
    chunks = _shape(_settings(grid, where).get("chunk_shape"), where)
    dtype = dtype_of(stated.get("data_type"), where)
    return _checked(
        ZarrArray(
            files=files,
            path=path,
            zarr_format=3,
            shape=_shape(stated.get("shape"), where),
            chunks=chunks,
            dtype=dtype,
            key=(f"c{separator}" if is_default else "", separator),
            codecs=codecs_v3(stated.get("codecs"), chunks, dtype, where),
        )
    )


def _settings(named: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """The `configuration` of a named part of the metadata, empty where there is none."""
    settings = named.get("configuration")
    if settings is not None and not isinstance(settings, dict):
        raise SourceError(
            f"Expected the configuration of {named['name']!r} in {where} as a mapping, came "
            f"{type(settings).__name__}.",
            where=where,
        )
    return settings or {}


def _checked(array: ZarrArray) -> ZarrArray:
    """Holds an array to what its files can be."""
    where = array.where
    if array.key[1] not in (".", "/") or len(array.shape) != len(array.chunks):
        raise SourceError(
            f"Expected {where} with chunks of {len(array.shape)} axes joined with '.' or '/', came "
            f"{array.chunks} joined with {array.key[1]!r}.",
            where=where,
        )
    if array.codecs.chunk_bytes > CHUNK_BYTES:
        raise SourceError(
            f"Expected chunks of at most {CHUNK_BYTES:,} bytes in {where}, one claims "
            f"{array.codecs.chunk_bytes:,}.",
            where=where,
        )
    count = math.prod(-(-n // c) for n, c in zip(array.shape[1:], array.chunks[1:], strict=True))
    if array.shape and count > len(array.files.sizes):
        raise SourceError(
            f"Expected {count:,} chunks per row of {where}, the store has "
            f"{len(array.files.sizes):,} files.",
            where=where,
        )
    return array


def _shape(value: Any, where: str) -> tuple[int, ...]:
    is_shape = isinstance(value, list) and all(
        isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 2**48 for n in value
    )
    if not is_shape:
        raise SourceError(f"Expected a list of sizes in {where}, came {value!r}.", where=where)
    return tuple(value)


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0))
