"""Records of the log: framed, numbered and checksummed, so that a torn end is told from damage.

A record is a header of 40 bytes, a payload, and zeros up to a multiple of 8. The header says how
long the payload is, its number in the log (its *offset*), and below which offset everything was
durable when the record was written. That last number is what tells apart two broken records: one
that was never acknowledged, because the machine stopped while it was written, and one that a later
record knows to have been whole.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import NamedTuple, TypeAlias

import google_crc32c
import pyarrow as pa

MAGIC = b"\x9dpWL"
_START = struct.Struct("<4sIQQB3xI")
"""Magic, length of the payload, offset, durable, kind, crc32c of the payload."""
_CHECK = struct.Struct("<I4x")
"""crc32c of what is before it in the header."""
_HEADER = struct.Struct(_START.format + _CHECK.format[1:])
HEADER_BYTES = _HEADER.size
COPIED_BYTES = 1 << 14
"""Payloads up to so many bytes are copied to be read: to share them takes longer."""
ALIGNMENT = 8
MAX_PAYLOAD = 1 << 28
"""The longest payload; longer ones are refused unread."""

Bytes: TypeAlias = "bytes | memoryview | pa.Buffer"


class Kind(IntEnum):
    """What a record is."""

    SEGMENT = 1
    """The first of a segment: what the segments before it amount to."""
    PUT = 2
    SEAL = 3
    """Episodes up to an offset are in the store."""
    ABANDON = 4
    """An episode that will not be ended."""


class Record(NamedTuple):
    """A whole record, as it was read; a restart makes very many, and tuples are made fast."""

    offset: int
    kind: Kind
    durable: int
    """Records of smaller offsets were durable when this one was written."""
    payload: bytes | memoryview
    position: int
    """Of the payload in its segment."""

    @property
    def end(self) -> int:
        """Position in the segment after it."""
        return self.position + _padded(len(self.payload))


def checksum(parts: Sequence[Bytes]) -> int:
    """Returns the crc32c of some bytes, one after the other."""
    value = 0
    for part in parts:
        # The library takes read-only buffers, but no memoryview.
        plain = pa.py_buffer(part) if isinstance(part, memoryview) else part
        value = google_crc32c.extend(value, plain)
    return int(value)


def header(kind: Kind, length: int, offset: int, durable: int, payload_crc: int) -> bytes:
    """Returns the header of a record."""
    start = _START.pack(MAGIC, length, offset, durable, kind, payload_crc)
    return start + _CHECK.pack(google_crc32c.value(start))


def padding(length: int) -> bytes:
    """Returns the zeros that go behind a payload."""
    return bytes(_padded(length) - length)


def record_bytes(length: int) -> int:
    """Returns how many bytes a record with a payload of some length takes."""
    return HEADER_BYTES + _padded(length)


def read_records(data: bytes, first: int) -> Iterator[Record]:
    """Yields whole records with consecutive offsets, up to the first that is not.

    Args:
        data: a segment.
        first: offset of its first record.
    """
    position = 0
    while True:
        record = record_at(data, position)
        if record is None or record.offset != first:
            return
        yield record
        position = record.position + _padded(len(record.payload))
        first += 1


def record_at(data: bytes, at: int) -> Record | None:
    """Returns the record that begins at a position; None if none does, or it is not whole."""
    position = at + HEADER_BYTES
    if position > len(data):
        return None
    magic, length, offset, durable, kind, payload_crc, check = _HEADER.unpack_from(data, at)
    if magic != MAGIC or length > MAX_PAYLOAD:
        return None
    if google_crc32c.value(data[at : at + _START.size]) != check:
        return None
    if position + _padded(length) > len(data) or kind not in _KINDS:
        return None
    payload: bytes | memoryview
    if length <= COPIED_BYTES:
        payload = data[position : position + length]
        came = google_crc32c.value(payload)
    else:
        payload = memoryview(data)[position : position + length]
        came = checksum([payload])
    return Record(offset, _KINDS[kind], durable, payload, position) if came == payload_crc else None


def durable_after(data: bytes, at: int) -> int:
    """Returns below which offset the whole records behind a position knew all to be durable."""
    known = 0
    at = data.find(MAGIC, at)
    while at >= 0:
        record = record_at(data, at) if at % ALIGNMENT == 0 else None
        if record is not None:
            known = max(known, record.durable)
        at = data.find(MAGIC, at + 1 if record is None else record.end)
    return known


_KINDS = {int(kind): kind for kind in Kind}


def _padded(length: int) -> int:
    return -(-length // ALIGNMENT) * ALIGNMENT
