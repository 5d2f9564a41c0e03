"""The wire format of `tf.train.Example`: named lists of int64, float32 or bytes.

Decoded by hand, because the message is tiny: packed lists become arrays at once (protobuf's own
containers make a Python object of every number), no length is believed beyond its message, and
nothing of TensorFlow is needed. Numbers of a message are `field << 3 | wire type`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeAlias

import numpy as np

from schemas.errors import EpisodeError

Values: TypeAlias = np.ndarray | list[bytes]
"""(n,) int64, (n,) float32, or byte strings."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_VARINT = 10
_BLOCK_VALUES = 65_536
_FIRST = 1 << 3 | _BYTES  # field 1 with a length: features, map entry, name, packed list
_SECOND = 2 << 3 | _BYTES
_BYTES_LIST, _FLOAT_LIST, _INT64_LIST = 1, 2, 3


def split_example(record: bytes, where: str) -> dict[str, memoryview]:
    """Returns the encoded feature of each name; nothing is copied.

    Raises:
        EpisodeError: with code `unreadable`, if the record is no Example or names a feature twice.
    """
    found: dict[str, memoryview] = {}
    for entry in _members(memoryview(record), where):
        parts = dict(_fields(entry, where))
        name = bytes(parts.get(1, b"")).decode("utf-8", "replace")
        if name in found:
            raise _malformed(f"the feature {name!r} is there twice", where)
        found[name] = parts.get(2, memoryview(b""))
    return found


def values_of(feature: memoryview, where: str) -> Values:
    """Returns the list of one encoded feature; an empty int64 array where it holds none.

    Raises:
        EpisodeError: with code `unreadable`, if it is not one list of one kind.
    """
    lists = list(_fields(feature, where))
    if not lists:
        return np.zeros(0, np.int64)
    if len(lists) > 1 or lists[0][0] not in (_BYTES_LIST, _FLOAT_LIST, _INT64_LIST):
        raise _malformed("a feature is not one list of bytes, floats or integers", where)
    kind, content = lists[0]
    if kind == _BYTES_LIST:
        return _byte_strings(bytes(content), where)
    chunks = [value for _, value in _fields(content, where, is_scalar_list=True)]
    data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
    if kind == _INT64_LIST:
        return _varints(np.frombuffer(data, np.uint8), where)
    if len(data) % 4:
        raise _malformed("a list of floats ends within a number", where)
    return np.frombuffer(data, "<f4").astype(np.float32, copy=False)


def encode_feature(name: str, values: Values) -> bytes:
    """Returns one named list as an entry of an Example."""
    if isinstance(values, list):
        content = b"".join(_tagged(_FIRST, value) for value in values)
        kind = _BYTES_LIST
    elif values.dtype.kind == "f":
        content, kind = _tagged(_FIRST, np.ascontiguousarray(values, "<f4").tobytes()), _FLOAT_LIST
    else:
        content, kind = _tagged(_FIRST, _encode_varints(values)), _INT64_LIST
    return wrap_feature(name, _tagged(kind << 3 | _BYTES, content))


def wrap_feature(name: str, feature: bytes | memoryview) -> bytes:
    """Returns an encoded feature as an entry of an Example."""
    return _tagged(_FIRST, _tagged(_FIRST, name.encode()) + _tagged(_SECOND, bytes(feature)))


def join_example(entries: Iterable[bytes]) -> bytes:
    """Returns the Example of some encoded features."""
    return _tagged(_FIRST, b"".join(entries))


def _members(record: memoryview, where: str) -> Iterator[memoryview]:
    for number, features in _fields(record, where):
        if number == 1:
            for inner, entry in _fields(features, where):
                if inner == 1:
                    yield entry


def _fields(
    message: memoryview, where: str, *, is_scalar_list: bool = False
) -> Iterator[tuple[int, memoryview]]:
    """Yields `(field number, content)`; only a list of numbers may have them unpacked."""
    position, end = 0, len(message)
    while position < end:
        tag, position = _varint(message, position, where)
        number, wire = tag >> 3, tag & 7
        if wire == _BYTES:
            size, position = _varint(message, position, where)
        elif is_scalar_list and wire == _VARINT:
            _, after = _varint(message, position, where)
            size = after - position
        elif is_scalar_list and wire == _FIXED32:
            size = 4
        else:
            raise _malformed(f"field {number} has the unexpected wire type {wire}", where)
        if size > end - position:
            raise _malformed(f"field {number} claims {size} of {end - position} bytes", where)
        yield number, message[position : position + size]
        position += size


def _byte_strings(content: bytes, where: str) -> list[bytes]:
    """What `_fields` would give, at half its cost: there is a value for each step."""
    found = []
    position, end = 0, len(content)
    while position < end:
        size = content[position + 1] if position + 1 < end else 0x80
        after = position + 2
        if content[position] != _FIRST:
            raise _malformed("a list of bytes holds something else", where)
        if size >= 0x80:
            size, after = _varint(memoryview(content), position + 1, where)
        position = after + size
        if position > end:
            raise _malformed(f"a value claims {size} of {end - after} bytes", where)
        found.append(content[after:position])
    return found


def _varint(message: memoryview, position: int, where: str) -> tuple[int, int]:
    value = 0
    for at, byte in enumerate(message[position : position + _MAX_VARINT]):
        value |= (byte & 0x7F) << (7 * at)
        if byte < 0x80:
            return value, position + at + 1
    raise _malformed("a number does not end", where)


def _varints(data: np.ndarray, where: str) -> np.ndarray:
    """Decodes a run of varints into (n,) int64."""
    if not len(data):
        return np.zeros(0, np.int64)
    ends = np.flatnonzero(data < 0x80)
    if len(ends) == len(data):  # flags and small numbers: a byte each
        return data.astype(np.int64)
    if not len(ends) or ends[-1] != len(data) - 1:
        raise _malformed("a list of integers ends within a number", where)
    starts = np.concatenate([[0], ends[:-1] + 1])
    widths = ends - starts + 1
    if widths.max() > _MAX_VARINT:
        raise _malformed("an integer has more than 10 bytes", where)
    values = np.zeros(len(ends), np.uint64)
    for at in range(int(widths.max())):
        has = np.flatnonzero(widths > at)
        part = (data[starts[has] + at] & 0x7F).astype(np.uint64)
        values[has] |= part << np.uint64(7 * at)
    return values.view(np.int64)


def _encode_varints(values: np.ndarray) -> bytes:
    if not len(values):
        return b""
    if values.dtype.kind == "b" or (values.min() >= 0 and values.max() < 0x80):
        return bytes(values.astype(np.uint8).tobytes())
    whole = values.astype(np.int64).view(np.uint64)
    blocks = range(0, len(whole), _BLOCK_VALUES)
    return b"".join(_encode_block(whole[start : start + _BLOCK_VALUES]) for start in blocks)


def _encode_block(values: np.ndarray) -> bytes:
    at = np.arange(_MAX_VARINT, dtype=np.uint64)
    groups = (values[:, None] >> (at * np.uint64(7))).astype(np.uint8) & np.uint8(0x7F)
    groups[:, -1] &= 1  # of 70 bits, 64 are there
    widths = np.maximum(_MAX_VARINT - (groups[:, ::-1] != 0).argmax(axis=1), 1)
    widths[values == 0] = 1
    groups |= np.where(at < (widths - 1)[:, None], np.uint8(0x80), np.uint8(0))
    return bytes(groups[at < widths[:, None]].tobytes())


def _tagged(tag: int, content: bytes) -> bytes:
    size = len(content)
    head = [tag]
    while size > 0x7F:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([*head, size]) + content


def _malformed(said: str, where: str) -> EpisodeError:
    return EpisodeError(
        f"Expected a tf.train.Example in {where}, {said}.", code="unreadable", where=where
    )
