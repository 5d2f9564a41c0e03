"""What a Parquet file becomes when it is read, as its pages say, without letting Arrow near them.

Arrow believes a footer: a page of a kilobyte may inflate to gigabytes, and a dictionary of one long
text may stand for a million of them. It also ends the process where the sizes that a damaged footer
states do not fit each other (pyarrow 21, `ColumnChunkMetaData`). So footer and page headers are
decoded here, from Thrift's compact protocol, and added up before a value is read.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

_MAGIC = b"PAR1"
_DEPTH = 32
_HEADER_BYTES = 1 << 20
"""Read at once for a page's header, which may bring statistics; most take some 30 bytes."""
_FIRST_BYTES = 512
_FIXED = {0: 1, 1: 4, 2: 8, 3: 12, 4: 4, 5: 8}
_BYTE_ARRAY, _FIXED_BYTES = 6, 7
_DICTIONARY_PAGE = 2
_DELTA_BYTE_ARRAY = 7
_CODECS = {1: "snappy", 2: "gzip", 4: "brotli", 6: "zstd", 7: "lz4_raw"}

# Numbers of the fields in parquet.thrift.
_SCHEMA, _GROUPS = 2, 4
_TYPE, _WIDTH, _NAME = 1, 2, 4
_COLUMNS = 1
_FILE_PATH, _META = 1, 3
_PHYSICAL, _PATH, _CODEC, _VALUES, _STORED, _DATA_AT, _DICTIONARY_AT = 1, 3, 4, 5, 7, 9, 11
_PAGE, _INFLATED, _DEFLATED, _DATA, _DATA_2 = 1, 2, 3, 5, 8
_COUNT, _ENCODING, _ENCODING_2 = 1, 2, 4


def claimed_bytes(path: Path) -> int:
    """Returns how many bytes a file may become in memory; its pages are not inflated.

    Raises:
        ValueError: if its footer or pages cannot be.
    """
    status = path.stat()
    return _claimed(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _claimed(path: Path, size: int, _mtime: int) -> int:
    try:
        with path.open("rb") as file:
            footer = _footer(file, size)
            widths = _widths(footer)
            total = 0
            for group in _list(footer.get(_GROUPS)):
                for column in _list(group.get(_COLUMNS)):
                    if column.get(_FILE_PATH):
                        raise ValueError("a column that lies in another file")
                    total += _claimed_by_column(file, size, column[_META], widths)
            return total
    except (KeyError, TypeError, AttributeError, struct.error, IndexError) as error:
        raise ValueError(f"a footer that does not parse ({error!r})") from error


def _footer(file: BinaryIO, size: int) -> dict[int, Any]:
    file.seek(max(0, size - 8))
    tail = file.read(8)
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != _MAGIC or length > size - 12:
        raise ValueError("no footer")
    file.seek(size - 8 - length)
    return _Thrift(file.read(length)).struct()


def _widths(footer: dict[int, Any]) -> dict[bytes, int]:
    """Bytes of a value by a leaf's own name, the most where several have one name."""
    found: dict[bytes, int] = {}
    for element in _list(footer.get(_SCHEMA)):
        if element.get(_TYPE) == _FIXED_BYTES:
            name = element.get(_NAME, b"")
            found[name] = max(found.get(name, 0), int(element.get(_WIDTH, 0)))
    return found


def _claimed_by_column(
    file: BinaryIO, size: int, column: dict[int, Any], widths: dict[bytes, int]
) -> int:
    kind = column[_PHYSICAL]
    width = _FIXED.get(kind, 4)
    if kind == _FIXED_BYTES:
        width = widths.get(_list(column[_PATH])[-1], 0)
    values, inflated, longest, repeated = 0, 0, 0, 0
    for page, content in _pages(file, size, column):
        inflated += page[_INFLATED]
        if page.get(_PAGE) == _DICTIONARY_PAGE:
            longest = page[_INFLATED]
            if kind == _BYTE_ARRAY and longest * column[_VALUES] > 1 << 20:
                longest = _longest(file, content, page, column)
            continue
        data = page.get(_DATA) or page.get(_DATA_2) or {}
        count = max(0, int(data.get(_COUNT, 0)))
        values += count
        encoding = data.get(_ENCODING if _DATA in page else _ENCODING_2)
        if kind == _BYTE_ARRAY and encoding == _DELTA_BYTE_ARRAY:
            repeated += count * page[_INFLATED]  # each value may repeat all of the one before
    return int(max(inflated, values * width, values * longest * (kind == _BYTE_ARRAY), repeated))


def _pages(
    file: BinaryIO, size: int, column: dict[int, Any]
) -> Iterator[tuple[dict[int, Any], int]]:
    """Yields each page's header, and where its content begins."""
    at = column[_DATA_AT]
    if 0 < column.get(_DICTIONARY_AT, 0) < at:
        at = column[_DICTIONARY_AT]
    end = at + column[_STORED]
    if not 0 <= at <= end <= size:
        raise ValueError("a column that ends after the file")
    while at < end:
        page, length = _page(file, at, end)
        stored, inflated = page[_DEFLATED], page[_INFLATED]
        if stored < 0 or inflated < 0:
            raise ValueError("a page of a negative size")
        yield page, at + length
        at += length + stored


def _page(file: BinaryIO, at: int, end: int) -> tuple[dict[int, Any], int]:
    for most in (_FIRST_BYTES, _HEADER_BYTES):
        file.seek(at)
        thrift = _Thrift(file.read(min(most, end - at)))
        try:
            return thrift.struct(), thrift.at
        except (IndexError, struct.error):
            if most == _HEADER_BYTES:
                raise
    raise ValueError("a page without a header")


def _longest(file: BinaryIO, at: int, page: dict[int, Any], column: dict[int, Any]) -> int:
    """Bytes of the longest entry of a dictionary; of all of it where it cannot be inflated."""
    size = int(page[_INFLATED])
    file.seek(at)
    data = file.read(page[_DEFLATED])
    if column[_CODEC] in _CODECS and size <= 64 << 20:
        try:
            data = pa.Codec(_CODECS[column[_CODEC]]).decompress(data, size, asbytes=True)
        except (pa.ArrowException, OSError):
            return size
    elif column[_CODEC] != 0:
        return size
    longest, place = 0, 0
    while place + 4 <= len(data):
        length = int.from_bytes(data[place : place + 4], "little")
        longest = max(longest, min(length, size))
        place += 4 + length
    return longest


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


class _Thrift:
    """Decodes Thrift's compact protocol; fields by number, unknown ones too."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """The structure that begins here.

        Raises:
            ValueError: if it is nested too deep or of unknown types.
            IndexError: if it ends after the data.
        """
        if depth > _DEPTH:
            raise ValueError("structures that are nested too deep")
        found: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._signed()
            kind = head & 15
            found[number] = kind == 1 if kind in (1, 2) else self._value(kind, depth)
        return found

    def _value(self, kind: int, depth: int) -> Any:
        match kind:
            case 1 | 2 | 3:
                return self._byte()
            case 4 | 5 | 6:
                return self._signed()
            case 7:
                return self._bytes(8)
            case 8:
                return self._bytes(self._unsigned())
            case 9 | 10:
                head = self._byte()
                count = head >> 4 if head >> 4 < 15 else self._unsigned()
                return [self._value(head & 15, depth + 1) for _ in range(self._checked(count))]
            case 11:
                count = self._checked(self._unsigned())
                kinds = self._byte() if count else 0
                return [
                    (self._value(kinds >> 4, depth + 1), self._value(kinds & 15, depth + 1))
                    for _ in range(count)
                ]
            case 12:
                return self.struct(depth + 1)
            case 13:
                return self._bytes(16)
        raise ValueError(f"a value of the unknown type {kind}")

    def _checked(self, count: int) -> int:
        if count > len(self._data) - self.at:
            raise IndexError("a list that is longer than what holds it")
        return count

    def _byte(self) -> int:
        value = self._data[self.at]
        self.at += 1
        return value

    def _bytes(self, count: int) -> bytes:
        end = self.at + self._checked(count)
        found = self._data[self.at : end]
        self.at = end
        return found

    def _unsigned(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise ValueError("a number of more than 64 bits")

    def _signed(self) -> int:
        value = self._unsigned()
        return (value >> 1) ^ -(value & 1)
