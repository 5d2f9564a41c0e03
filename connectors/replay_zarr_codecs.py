"""What a Zarr array's metadata say about its codecs, and what its stored chunks claim.

Only codecs that can neither run code nor hide a size are let through: at most one compressor, whose
claim is compared with the size of a chunk before Zarr decodes it.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from schemas.errors import SourceError

COMPRESSORS = ("blosc", "zlib", "gzip", "zstd", "lz4")
_FILTERS = ("delta", "shuffle", "crc32", "crc32c", "adler32")
_DTYPES_V3 = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64"),
)
_OBJECT_CODECS = ("pickle", "json", "json2", "msgpack", "msgpack2", "vlen", "categorize")
_IMAGE_CODECS = ("jpeg", "jxl", "png", "webp", "imagecodecs", "avif", "heif")
_FREE_BYTES = 64 * 2**20
_DEFLATE_RATIO = 1032
_ABSENT = 2**64 - 1
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"

Reader = Callable[[int, int], bytes]
"""Returns `length` bytes (all for -1) at a position of a stored chunk."""


@dataclass(frozen=True)
class Shard:
    """How a shard lists its chunks."""

    inner: tuple[int, ...]
    """Shape of a chunk."""
    grid: tuple[int, ...]
    """Chunks in a shard along every axis."""
    is_index_last: bool
    has_checksum: bool


@dataclass(frozen=True)
class Codecs:
    """What decodes one chunk."""

    compressor: str | None
    chunk_bytes: int
    """Bytes of one decoded chunk; of one within the shard, where there are shards."""
    shard: Shard | None = None

    def check(self, read: Reader, size: int) -> None:
        """Compares what a stored chunk of `size` bytes claims with the most that it may become.

        Raises:
            ValueError: if it claims more, or its first bytes are not the codec's.
        """
        most, claimed = self.chunk_bytes, size
        if self.compressor == "blosc":
            claimed = _unpack("<4xI", read(0, 16))
        elif self.compressor == "lz4":
            claimed = _unpack("<I", read(0, 4))
        elif self.compressor in ("zlib", "gzip"):
            is_small = size * _DEFLATE_RATIO <= max(_FREE_BYTES, most)
            claimed = 0 if is_small else _inflated(read(0, size), most)
        elif self.compressor == "zstd":
            claimed = _zstd_size(read, size, most)
        if claimed > most:
            raise ValueError(
                f"it claims {claimed:,} bytes where at most {most:,} fit (a decompression bomb?)"
            )


def dtype_of(value: Any, where: str) -> np.dtype[Any]:
    """Returns the dtype that metadata state.

    Raises:
        SourceError: unless it is of bool, integers or floats of at most 8 bytes.
    """
    is_v2 = isinstance(value, str) and len(value) == 3 and value[0] in "<>|" and value[1] in "biuf"
    if is_v2 or (isinstance(value, str) and value in _DTYPES_V3):
        try:
            found: np.dtype[Any] = np.dtype(value)
            return found
        except TypeError:
            pass
    raise SourceError(
        f"Expected bool, integers or floats in {where}, came dtype {value!r}; it is refused "
        f"(objects would need a codec that runs code).",
        where=where,
    )


def codecs_v2(
    stated: Mapping[str, Any], chunks: tuple[int, ...], dtype: np.dtype[Any], where: str
) -> Codecs:
    """Returns what a `.zarray` says of its compressor and filters."""
    compressor = stated.get("compressor")
    filters = stated.get("filters") or []
    if not isinstance(filters, list):
        raise _refused(filters, where)
    width = dtype.itemsize
    for one in filters:
        if not isinstance(one, dict) or one.get("id") not in _FILTERS:
            raise _refused(one.get("id") if isinstance(one, dict) else one, where)
        for key in ("dtype", "astype"):
            if one.get(key) is not None:
                width = max(width, dtype_of(one[key], where).itemsize)
    name = None
    if compressor is not None:
        name = compressor.get("id") if isinstance(compressor, dict) else compressor
        if name not in COMPRESSORS:
            raise _refused(name, where)
    return Codecs(name, _bytes(chunks, width, where) + 16 * len(filters))


def codecs_v3(stated: Any, chunks: tuple[int, ...], dtype: np.dtype[Any], where: str) -> Codecs:
    """Returns what a `zarr.json` says of its codecs, one level of shards included."""
    names = _codec_names(stated, where)
    if names != ["sharding_indexed"]:
        return Codecs(_compressor(names, where), _bytes(chunks, dtype.itemsize, where) + 16)
    inside = stated[0].get("configuration")
    inside = inside if isinstance(inside, dict) else {}
    inner = inside.get("chunk_shape")
    inner = inner if isinstance(inner, list) else []
    is_even = (
        bool(inner)
        and len(inner) == len(chunks)
        and all(isinstance(n, int) and n > 0 for n in inner)
        and all(outer % n == 0 for outer, n in zip(chunks, inner, strict=True))
    )
    index = _codec_names(inside.get("index_codecs"), where) if is_even else []
    location = inside.get("index_location", "end") if is_even else ""
    if (
        index[:1] != ["bytes"]
        or index[1:] not in ([], ["crc32c"])
        or location
        not in (
            "start",
            "end",
        )
    ):
        raise SourceError(
            f"Expected shards of {chunks} that hold whole chunks with a plain index in {where}, "
            f"came {inside!r}.",
            where=where,
        )
    endian = (inside["index_codecs"][0].get("configuration") or {}).get("endian", "little")
    if endian != "little":
        raise _refused(f"an index of {endian} endian", where)
    grid = tuple(outer // n for outer, n in zip(chunks, inner, strict=True))
    compressor = _compressor(_codec_names(inside.get("codecs"), where), where)
    size = _bytes(tuple(inner), dtype.itemsize, where) + 16
    return Codecs(compressor, size, Shard(tuple(inner), grid, location == "end", len(index) == 2))


def shard_parts(
    shard: Shard, size: int, read: Reader, room: tuple[int, ...]
) -> Iterator[tuple[int, int]]:
    """Yields position and length of every chunk in a shard that holds rows.

    Args:
        shard: how it lists them.
        size: bytes of the shard.
        read: reads from it.
        room: from its first value to the array's end along every axis; what lies beyond has no
            chunk.

    Raises:
        ValueError: if the index is damaged or a chunk is missing.
    """
    count = math.prod(shard.grid)
    length = 16 * count + 4 * shard.has_checksum
    if length > size:
        raise ValueError(f"a shard of {size:,} bytes has no room for its index of {length:,}")
    index = read(size - length if shard.is_index_last else 0, 16 * count)
    entries = np.frombuffer(index, "<u8").reshape(-1, 2)
    needed = np.ones(1, bool)
    for inner, number, left in zip(shard.inner, shard.grid, room, strict=True):
        needed = np.logical_and.outer(needed, np.arange(number) * inner < left)
    for begin, stored in entries[needed.reshape(-1)].tolist():
        if _ABSENT in (begin, stored):
            raise ValueError("a chunk is missing in the shard, and Zarr would read fill values")
        if begin + stored > size:
            raise ValueError("a chunk ends after its shard")
        yield begin, stored


def _codec_names(stated: Any, where: str) -> list[str]:
    if not isinstance(stated, list) or not all(isinstance(one, dict) for one in stated):
        raise SourceError(f"Expected a list of codecs in {where}, came {stated!r}.", where=where)
    return [str(one.get("name")) for one in stated]


def _compressor(names: list[str], where: str) -> str | None:
    allowed = ("bytes", "transpose", "crc32c", *COMPRESSORS)
    for name in names:
        if name not in allowed:
            raise _refused(name, where)
    found = [name for name in names if name in COMPRESSORS]
    if len(found) > 1:
        raise _refused(f"compression in compression, {', '.join(found)},", where)
    return found[0] if found else None


def _bytes(chunks: tuple[int, ...], itemsize: int, where: str) -> int:
    size = math.prod(chunks) * itemsize
    if size <= 0:
        raise SourceError(f"Expected chunks with rows in {where}, came {chunks}.", where=where)
    return size


def _unpack(layout: str, head: bytes) -> int:
    try:
        return int(struct.unpack_from(layout, head)[0])
    except struct.error as error:
        raise ValueError(f"it is only {len(head)} bytes long") from error


def _inflated(data: bytes, most: int) -> int:
    """Bytes that deflate streams, one after the other, become; counted to one past the most."""
    total = 0
    try:
        while data and total <= most:
            stream = zlib.decompressobj(zlib.MAX_WBITS | 32)
            total += len(stream.decompress(data, most + 1))
            data = stream.unused_data
        return total
    except zlib.error as error:
        raise ValueError(f"it does not inflate ({error})") from error


def _zstd_size(read: Reader, size: int, most: int) -> int:
    """Bytes that a Zstandard frame states, or becomes where it states none."""
    head = read(0, min(size, 18))
    if head[:4] != _ZSTD_MAGIC or len(head) < 6:
        raise ValueError("it does not begin like Zstandard")
    descriptor = head[4]
    is_single = bool(descriptor & 0x20)
    width = (1 if is_single else 0, 2, 4, 8)[descriptor >> 6]
    at = 5 + (not is_single) + (0, 1, 2, 4)[descriptor & 3]
    if width:
        stated = int.from_bytes(head[at : at + width], "little")
        return stated + 256 * (width == 2)
    try:
        stream = pa.CompressedInputStream(pa.BufferReader(read(0, size)), "zstd")
        return len(stream.read(most + 1))
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"it does not decompress ({error})") from error


def _refused(codec: Any, where: str) -> SourceError:
    name = str(codec)
    if any(name.startswith(word) for word in _OBJECT_CODECS):
        reason = "it makes objects, which may run code"
    elif any(word in name for word in _IMAGE_CODECS):
        reason = (
            "pictures in Zarr are read only where they are raw; write the array again without it"
        )
    else:
        reason = f"these are read: {', '.join((*COMPRESSORS, *_FILTERS))}, shards"
    return SourceError(
        f"Expected known codecs in {where}, {name} is refused: {reason}.", where=where
    )
