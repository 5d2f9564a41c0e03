"""Record files as TensorFlow Datasets writes them, TFRecord and ArrayRecord, without TensorFlow.

A TFRecord file is a run of `length (8 bytes) | crc of the length | payload | crc of the payload`.
Both checksums are checked, and a length is compared with the bytes that are left before anything
is allocated. A payload with a wrong checksum costs one record; a length that cannot be trusted
hides all records behind it.

An ArrayRecord file is read by the package `array_record`, from its own index at the end of the
file: one that was cut short cannot be read at all. The headers of its compressed chunks are walked
here first, because a few bytes may claim to inflate into gigabytes.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import google_crc32c
import numpy as np

from schemas.errors import EpisodeError, SourceError, missing_extra

RecordFormat = Literal["tfrecord", "array_record"]

FREE_BYTES = 64 * 2**20
"""What compressed data may always inflate to."""
RATIO = 200
"""Beyond that: inflated bytes per stored byte."""
HEADER = struct.Struct("<QI")
_CRC = struct.Struct("<I")
_BLOCK, _BLOCK_HEADER = 65_536, 24  # Riegeli, the container below ArrayRecord
_CHUNK_HEADER = struct.Struct("<5Q")
_CHUNK_RECORDS = 1_000_000
_RANDOM_ACCESS = "readahead_buffer_size:0,max_parallelism:0"


@dataclass(frozen=True)
class RecordIndex:
    """Where the records of one file lie."""

    sizes: np.ndarray
    """(records,) int64 payload bytes."""
    offsets: np.ndarray
    """(records + 1,) int64 where each begins, then where the last one ends; zeros for ArrayRecord,
    which has an index of its own."""
    damage: str | None = None
    """Why nothing can be found behind the last record, where that is so."""


def may_inflate(size: int, stored: int) -> bool:
    """True if `stored` bytes may claim to become `size` bytes."""
    return size <= max(FREE_BYTES, RATIO * stored)


def masked_crc(data: bytes) -> int:
    """Returns TFRecord's checksum: CRC-32C, rotated and shifted so that it can be nested."""
    crc = int(google_crc32c.value(data))
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def frame(record: bytes) -> bytes:
    """Returns a record as it stands in a TFRecord file."""
    length = struct.pack("<Q", len(record))
    crcs = _CRC.pack(masked_crc(length)), _CRC.pack(masked_crc(record))
    return b"".join((length, crcs[0], record, crcs[1]))


def index_records(path: Path, record_format: RecordFormat) -> RecordIndex:
    """Finds the records of a file without reading their payloads.

    Raises:
        SourceError: if an ArrayRecord file is damaged or claims to inflate beyond measure.
        MissingExtraError: for ArrayRecord, if its package is not installed.
    """
    if record_format == "array_record":
        return _index_array_record(path)
    sizes, offsets, damage = [], [0], None
    with path.open("rb", buffering=0) as file:
        end = path.stat().st_size
        while offsets[-1] < end:
            size = _length_at(file, offsets[-1], end)
            if isinstance(size, str):
                damage = size
                break
            sizes.append(size)
            offsets.append(offsets[-1] + HEADER.size + size + _CRC.size)
    return RecordIndex(np.array(sizes, np.int64), np.array(offsets, np.int64), damage)


def read_records(
    path: Path, record_format: RecordFormat, start: int, stop: int, offset: int
) -> Iterator[bytes | EpisodeError]:
    """Yields records `start:stop` of a file; one that is damaged as its error.

    Args:
        path: the file.
        record_format: how it is framed.
        start: number of the first record.
        stop: one past the last.
        offset: where the first record begins in a TFRecord file.
    """
    if record_format == "array_record":
        yield from _read_array_record(path, start, stop)
        return
    with path.open("rb", buffering=0) as file:
        end = path.stat().st_size
        for number in range(start, stop):
            size = _length_at(file, offset, end)
            if isinstance(size, str):
                said = f"{size}, so no record behind it can be found"
                yield from (_unreadable(said, path, one) for one in range(number, stop))
                return
            payload = os.pread(file.fileno(), size + _CRC.size, offset + HEADER.size)
            offset += HEADER.size + size + _CRC.size
            record = payload[:size]
            if len(payload) < size + _CRC.size or payload[size:] != _CRC.pack(masked_crc(record)):
                yield _unreadable("its checksum does not fit its content", path, number)
            else:
                yield record


class RecordWriter:
    """Writes one new file of records."""

    def __init__(self, path: Path, record_format: RecordFormat) -> None:
        self._file: Any
        if record_format == "array_record":
            # TFDS' own grouping: every record can be read without its neighbours.
            self._file = array_record_module().ArrayRecordWriter(str(path), "group_size:1")
        else:
            self._file = path.open("wb")
        self._is_framed = record_format == "tfrecord"

    def write(self, record: bytes) -> None:
        """Appends a record."""
        self._file.write(frame(record) if self._is_framed else record)

    def close(self) -> None:
        """Finishes the file; an ArrayRecord file has its index only then."""
        self._file.close()


def _length_at(file: BinaryIO, offset: int, end: int) -> int | str:
    """Payload bytes of the record at an offset, or why that cannot be told."""
    header = os.pread(file.fileno(), HEADER.size, offset)
    if len(header) < HEADER.size:
        return f"the file ends within the header at byte {offset}"
    size, crc = HEADER.unpack(header)
    if crc != masked_crc(header[:8]):
        return f"the checksum of the length at byte {offset} is wrong"
    left = end - offset - HEADER.size - _CRC.size
    if size > left:
        return f"the length at byte {offset} is {size} bytes, {max(0, left)} are left"
    return int(size)


def _index_array_record(path: Path) -> RecordIndex:
    reader = open_array_record(path)
    try:
        records = reader.num_records()
    finally:
        reader.close()
    sizes: list[int] = []
    with path.open("rb", buffering=0) as file:
        for count, size in _chunks(file, path):
            sizes += [size // count] * min(count, records - len(sizes)) if count else []
            if len(sizes) == records:
                break
    if len(sizes) < records:
        raise _damaged(path, f"its index names {records} records, {len(sizes)} are there")
    return RecordIndex(np.array(sizes, np.int64), np.zeros(records + 1, np.int64))


def open_array_record(path: Path) -> Any:
    """Opens an ArrayRecord file, after a look at what it claims to inflate to.

    Raises:
        SourceError: if it is not a whole ArrayRecord file or inflates beyond measure.
        MissingExtraError: if its package is not installed.
    """
    with path.open("rb", buffering=0) as file:
        for _ in _chunks(file, path):
            pass
    try:
        reader = array_record_module().ArrayRecordReader(str(path), _RANDOM_ACCESS)
        is_whole = reader.ok()
    except RuntimeError as error:
        raise _damaged(path, str(error)) from error
    if not is_whole:
        raise _damaged(path, "its index cannot be read")
    return reader


def _chunks(file: BinaryIO, path: Path) -> Iterator[tuple[int, int]]:
    """Yields `(records, inflated bytes)` of each chunk, checked against what it stores.

    Every 64 KiB stands a block header, wherever it cuts a chunk.
    """
    position, end = 0, path.stat().st_size
    while position < end:
        header = b""
        while len(header) < _CHUNK_HEADER.size:
            position += _BLOCK_HEADER if position % _BLOCK == 0 else 0
            wanted = min(_CHUNK_HEADER.size - len(header), _BLOCK - position % _BLOCK)
            piece = os.pread(file.fileno(), wanted, position)
            if len(piece) < wanted:
                raise _damaged(path, "it ends within a chunk")
            header += piece
            position += wanted
        _, stored, _, kind, inflated = _CHUNK_HEADER.unpack(header)
        position = _after(position, stored)
        count = kind >> 8
        if position > end:
            raise _damaged(path, f"a chunk of {stored} bytes goes beyond its end")
        if not may_inflate(inflated, stored) or count > _CHUNK_RECORDS:
            raise _damaged(path, f"{stored} bytes claim {count} records of {inflated} bytes")
        yield count, inflated


def _after(position: int, size: int) -> int:
    """Where `size` bytes from a position end, block headers among them counted."""
    if not size:
        return position
    usable = _BLOCK - _BLOCK_HEADER
    within = max(0, position % _BLOCK - _BLOCK_HEADER)
    blocks, last = divmod(within + size - 1, usable)
    return position - position % _BLOCK + blocks * _BLOCK + _BLOCK_HEADER + last + 1


def _read_array_record(path: Path, start: int, stop: int) -> Iterator[bytes | EpisodeError]:
    reader = open_array_record(path)
    try:
        for number in range(start, stop):
            try:
                [record] = reader.read([number])
            except (RuntimeError, IndexError, ValueError) as error:
                yield _unreadable(str(error), path, number)
            else:
                yield bytes(record)
    finally:
        reader.close()


def array_record_module() -> Any:
    """Returns the package's module; it comes with the extra `rlds`."""
    try:
        from array_record.python import array_record_module as module  # noqa: PLC0415 (an extra)
    except ModuleNotFoundError as error:
        raise missing_extra("rlds", "array_record") from error
    return module


def _damaged(path: Path, said: str) -> SourceError:
    return SourceError(
        f"Expected a whole ArrayRecord file in {path}, {said}; fetch it again.", where=str(path)
    )


def _unreadable(said: str, path: Path, number: int) -> EpisodeError:
    where = f"{path.name} record {number}"
    return EpisodeError(
        f"Expected a whole record {number} in {path.name}, {said}; fetch the file again.",
        code="unreadable",
        where=where,
    )
