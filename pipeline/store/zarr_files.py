"""Arrays as the files of a Zarr v3 group, byte for byte those that zarr-python writes.

zarr-python spends five times as much on getting to each chunk as its codecs spend on it, and copies
a chunk several times over. Here the same codecs are called on the rows where they lie; the
documents (`zarr.json`) are still zarr-python's own, made once per kind of array. A test holds the
two to equal bytes.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import google_crc32c
import numcodecs  # type: ignore[import-untyped]
import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec
from zarr.storage import MemoryStore

_ABSENT = 2**64 - 1
"""Offset and size of a chunk that a shard does not hold."""


@dataclass(frozen=True)
class Codec:
    """How the chunks of an array are compressed; every chunk ends in its CRC32C."""

    name: Literal["none", "lz4", "zstd"]
    level: int = 1
    """Of Zstd."""
    itemsize: int = 1
    """Of the values whose bytes LZ4's shuffle sorts by significance."""

    def encode(self, rows: np.ndarray) -> bytes | memoryview:
        """Returns the compressed bytes of contiguous rows, or those rows themselves."""
        if self.name == "none":
            return rows.reshape(-1).view(np.uint8).data
        made: bytes = _encoder(self).encode(rows)
        return made

    def in_zarr(self) -> list[Any]:
        """The codecs by zarr-python's own classes."""
        if self.name == "none":
            return [Crc32cCodec()]
        if self.name == "zstd":
            return [ZstdCodec(level=self.level), Crc32cCodec()]
        shuffle: Any = "shuffle" if self.itemsize > 1 else "noshuffle"
        blosc = BloscCodec(cname="lz4", clevel=5, shuffle=shuffle, typesize=self.itemsize)
        return [blosc, Crc32cCodec()]


@dataclass(frozen=True)
class ArrayKind:
    """What the documents of arrays have in common, whatever their rows and attributes."""

    dtype: str
    shape: tuple[int, ...]
    """Of one row."""
    chunk: int
    """Rows per chunk."""
    shard: int | None
    """Rows per file, whole chunks; None makes each chunk a file."""
    codec: Codec
    dimensions: tuple[str, ...]


def group_file(attributes: Mapping[str, Any]) -> bytes:
    """Returns the `zarr.json` of a group."""
    document = {"attributes": dict(attributes), "zarr_format": 3, "node_type": "group"}
    return json.dumps(document, indent=2).encode()


def add_group(files: dict[str, bytes], path: str, attributes: Mapping[str, Any]) -> None:
    """Adds a group and, where they are not there yet, those above it."""
    _add_groups_above(files, path)
    files[f"{path}/zarr.json"] = group_file(attributes)


def add_array(
    files: dict[str, bytes],
    path: str,
    values: np.ndarray,
    kind: ArrayKind,
    attributes: Mapping[str, Any] | None = None,
) -> None:
    """Adds an array and, where they are not there yet, the groups above it.

    Args:
        files: of the group, by key; added to.
        path: where in the group.
        values: (rows, *shape).
        kind: how they are kept.
        attributes: of the array.
    """
    _add_groups_above(files, path)
    told = json.dumps(dict(attributes or {}))
    files[f"{path}/zarr.json"] = _array_file(kind, len(values), told)
    values = np.ascontiguousarray(values, kind.dtype)
    if not values.size:
        return
    per_file = kind.shard or kind.chunk
    inner = ".0" * len(kind.shape)
    for number, start in enumerate(range(0, len(values), per_file)):
        rows = values[start : start + per_file]
        key = f"{path}/c.{number}{inner}"
        files[key] = b"".join(_chunk(rows, kind) if kind.shard is None else _shard(rows, kind))


def pays(values: np.ndarray, codec: Codec, rows: int, saving: float) -> bool:
    """True if compressing some rows from the middle takes away that share of their bytes."""
    start = max(0, (len(values) - rows) // 2)
    some = np.ascontiguousarray(values[start : start + rows])
    return len(codec.encode(some)) <= (1 - saving) * some.nbytes


# -- within --------------------------------------------------------------------------------------


def _add_groups_above(files: dict[str, bytes], path: str) -> None:
    parts = path.split("/")
    for depth in range(1, len(parts)):
        files.setdefault("/".join([*parts[:depth], "zarr.json"]), group_file({}))


def _chunk(rows: np.ndarray, kind: ArrayKind) -> tuple[bytes | memoryview, bytes]:
    """A chunk's compressed rows and their checksum; rows past the end are zeros."""
    if len(rows) < kind.chunk:
        filled = np.zeros((kind.chunk, *kind.shape), rows.dtype)
        filled[: len(rows)] = rows
        rows = filled
    data = kind.codec.encode(rows)
    return data, _checksum(data)


def _shard(rows: np.ndarray, kind: ArrayKind) -> Iterator[bytes | memoryview]:
    """The chunks of one file, then where each of them is (offset and size, uint64).

    Chunks wholly past the end of the array are not there.
    """
    assert kind.shard is not None
    index = [(_ABSENT, _ABSENT)] * (kind.shard // kind.chunk)
    offset = 0
    for number, start in enumerate(range(0, len(rows), kind.chunk)):
        data, crc = _chunk(rows[start : start + kind.chunk], kind)
        yield data
        yield crc
        size = len(data) + len(crc)
        index[number] = (offset, size)
        offset += size
    table = np.array(index, "<u8").tobytes()
    yield table
    yield _checksum(table)


def _checksum(data: bytes | memoryview) -> bytes:
    # The library knows bytes and arrays, not memory views.
    value: int = google_crc32c.value(np.frombuffer(data, np.uint8))
    return value.to_bytes(4, "little")


@functools.lru_cache(maxsize=16)
def _encoder(codec: Codec) -> Any:
    if codec.name == "zstd":
        return numcodecs.Zstd(level=codec.level)
    shuffle = numcodecs.Blosc.SHUFFLE if codec.itemsize > 1 else numcodecs.Blosc.NOSHUFFLE
    return numcodecs.Blosc("lz4", clevel=5, shuffle=shuffle, typesize=codec.itemsize)


@functools.lru_cache(maxsize=1024)
def _array_file(kind: ArrayKind, rows: int, attributes: str) -> bytes:
    """The `zarr.json` of an array: blocks of one dataset mostly have the same."""
    document = json.loads(_document(kind))
    document["shape"][0] = rows
    document["attributes"] = json.loads(attributes)
    return json.dumps(document, indent=2).encode()


@functools.lru_cache(maxsize=1024)
def _document(kind: ArrayKind) -> str:
    """The `zarr.json` of one such array as zarr-python writes it."""
    files: dict[str, Any] = {}
    inner = tuple(max(size, 1) for size in kind.shape)
    zarr.create_array(
        MemoryStore(files),
        shape=(kind.shard or kind.chunk, *kind.shape),
        dtype=kind.dtype,
        chunks=(kind.chunk, *inner),
        shards=None if kind.shard is None else (kind.shard, *inner),
        compressors=kind.codec.in_zarr(),
        fill_value=0,
        chunk_key_encoding={"name": "default", "separator": "."},
        dimension_names=kind.dimensions,
        attributes={},
        zarr_format=3,
    )
    text: str = files["zarr.json"].to_bytes().decode()
    return text
