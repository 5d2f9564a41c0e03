"""Event files that TensorBoard shows: the rows of a run's tables under the same names.

The tables stay the truth; an event file is written anew from them when a run goes on. Its format is
a sequence of TFRecords (length, masked CRC-32C of it, data, masked CRC-32C of that), each of which
holds one `Event` of `tensorflow/core/util/event.proto`. Both have not changed in ten years, and are
short enough that writing them needs no TensorFlow and no TensorBoard.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import google_crc32c

FOLDER = "tensorboard"
"""Within a run's folder; a run with this folder has event files."""
_VARINT, _DOUBLE, _BYTES, _FLOAT = 0, 1, 2, 5
"""Wire types of protocol buffers."""


class Board:
    """The event file of one table, in a folder of its own.

    TensorBoard follows the newest file of a folder only, so two tables cannot share one.

    Args:
        folder: of the event file; files of an earlier part of the run there are replaced.
        rows: (step, values) that the table has already.
    """

    def __init__(self, folder: Path, rows: Sequence[tuple[int, Mapping[str, object]]]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        older = list(folder.glob("events.out.tfevents.*"))
        newest = max((int(path.name.split(".")[3]) for path in older), default=0)
        self.path = (
            folder / f"events.out.tfevents.{max(int(time.time()), newest + 1):010d}.penstock"
        )
        began = _event(_string(3, "brain.Event:2"))
        self.path.write_bytes(b"".join([_record(began), *(_row(*row) for row in rows)]))
        for path in older:
            path.unlink()

    def add(self, step: int, values: Mapping[str, object]) -> None:
        """Appends one row; what is no number is left out."""
        with self.path.open("ab") as file:
            file.write(_row(step, values))


def _row(step: int, values: Mapping[str, object]) -> bytes:
    numbers = {name: found for name in values if (found := _number(values[name])) is not None}
    summary = b"".join(
        _string(1, _string(1, name) + _key(2, _FLOAT) + struct.pack("<f", number))
        for name, number in numbers.items()
    )
    return _record(_event(_key(2, _VARINT) + _varint(step) + _string(5, summary)))


def _number(value: object) -> float | None:
    if isinstance(value, str):  # of a table that was read again
        try:
            return float(value)
        except ValueError:
            return None
    return float(value) if isinstance(value, int | float) else None


def _record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + _checksum(length) + data + _checksum(data)


def _checksum(data: bytes) -> bytes:
    """CRC-32C, turned and shifted as TFRecords have it, so that it differs from one of itself."""
    crc = google_crc32c.value(data)
    turned = (crc >> 15 | crc << 17) + 0xA282EAD8
    return struct.pack("<I", turned & 0xFFFFFFFF)


def _event(fields: bytes) -> bytes:
    return _key(1, _DOUBLE) + struct.pack("<d", time.time()) + fields


def _string(field: int, content: str | bytes) -> bytes:
    data = content.encode() if isinstance(content, str) else content
    return _key(field, _BYTES) + _varint(len(data)) + data


def _key(field: int, wire: int) -> bytes:
    return _varint(field << 3 | wire)


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)
