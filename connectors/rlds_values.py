"""Values of a record as rows of an episode, and rows as values of a record.

Nothing is allocated that the record does not hold: counts are compared with the lists that are
there, and compressed values may inflate only as far as `rlds_records.may_inflate` says.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from connectors.rlds_example import Values, values_of
from connectors.rlds_features import Leaf
from connectors.rlds_records import may_inflate
from schemas.errors import EpisodeError, missing_extra
from schemas.media import decode_pictures, picture_shape
from schemas.packed import TEXT, Packed, Rows
from schemas.spec import FieldSpec

Encoded = Mapping[str, memoryview]
"""A record: encoded features by path."""
FLAT, LENGTHS = "ragged_flat_values", "ragged_row_lengths_0"
"""Where lists within steps lie: all their values, and how many each step has."""


def decode_rows(leaf: Leaf, record: Encoded, where: str) -> Rows:
    """Returns a leaf's rows, one per step.

    Raises:
        EpisodeError: if they are absent, of another kind, or not what the leaf says.
    """
    if leaf.is_list:
        return _decode_lists(leaf, record, where)
    values = _values(leaf, leaf.path, record, where)
    if leaf.kind == "text":
        texts = _byte_list(values, leaf)
        for text in set(texts):  # mostly one, repeated in every step
            _utf8(text, leaf, where)
        return Packed.of(TEXT, texts)
    if leaf.kind == "image":
        return _decode_pictures(leaf, _byte_list(values, leaf), where)
    if leaf.shape[:1] == (-1,):
        rows = _raw_rows(leaf, _byte_list(values, leaf), where)
        return Packed.of(FieldSpec(leaf.dtype, leaf.shape, "ragged"), rows)
    return _decode_numbers(leaf, values, where)


def decode_metadata(leaf: Leaf, record: Encoded, where: str) -> Any:
    """Returns a fact as a plain value: bool, int, float, str, or lists of them; None if absent."""
    if leaf.path not in record or leaf.kind == "image":
        return None
    values = _values(leaf, leaf.path, record, where)
    if leaf.kind == "text":
        texts = [_utf8(value, leaf, where).decode() for value in _byte_list(values, leaf)]
        return texts if leaf.is_list else _single(texts, leaf, where)
    if leaf.shape[:1] == (-1,):
        raw = b"".join(_raw_rows(leaf, _byte_list(values, leaf), where))
        return np.frombuffer(raw, leaf.dtype).reshape(leaf.shape).tolist()
    found = _decode_numbers(leaf, values, where).tolist()
    return found if leaf.is_list else _single(found, leaf, where)


def encode_rows(leaf: Leaf, rows: Rows) -> dict[str, Values]:
    """Returns the lists that hold a leaf's rows; inverse of `decode_rows`."""
    if isinstance(rows, Packed) and leaf.is_list:
        width = leaf.value_count * np.dtype(leaf.dtype).itemsize
        flat = np.frombuffer(rows.data, leaf.dtype).reshape(-1, *leaf.shape)
        lengths = np.diff(rows.offsets) // width
        values = encode_numbers(leaf, flat)
        return {f"{leaf.path}/{FLAT}": values, f"{leaf.path}/{LENGTHS}": lengths}
    if isinstance(rows, Packed):
        return {leaf.path: list(rows)}
    return {leaf.path: encode_numbers(leaf, np.asarray(rows))}


def encode_numbers(leaf: Leaf, values: np.ndarray) -> Values:
    """Returns (n, *shape) numbers as a list of numbers, or of each value's bytes."""
    little = np.ascontiguousarray(values, np.dtype(leaf.dtype))
    if leaf.encoding == "none":
        return little.reshape(-1)
    width = leaf.value_count * little.dtype.itemsize
    data = little.tobytes()
    return [data[at : at + width] for at in range(0, len(data), width)]


def encode_pictures(pixels: np.ndarray) -> Packed:
    """Returns (rows, H, W, 3 or 4) uint8 as PNG rows.

    Raises:
        MissingExtraError: if Pillow is not installed.
    """
    try:
        from PIL import Image  # noqa: PLC0415 (an optional extra)
    except ModuleNotFoundError as error:
        raise missing_extra("images", "pillow") from error
    rows = []
    for frame in pixels:
        sink = io.BytesIO()
        Image.fromarray(frame).save(sink, "PNG")
        rows.append(sink.getvalue())
    return Packed.of(FieldSpec("|u1", tuple(pixels.shape[1:]), "frames"), rows)


def _decode_lists(leaf: Leaf, record: Encoded, where: str) -> Rows:
    flat = _decode_numbers(leaf, _values(leaf, f"{leaf.path}/{FLAT}", record, where), where)
    lengths = _values(leaf, f"{leaf.path}/{LENGTHS}", record, where)
    if isinstance(lengths, list) or lengths.dtype.kind != "i":
        raise _unreadable(f"Expected lengths of the lists {leaf.path} in {where}, came others")
    counts = [int(length) for length in lengths]  # of any size: their sum must not overflow
    if min(counts, default=0) < 0 or sum(counts) != len(flat):
        raise EpisodeError(
            f"Expected lists {leaf.path} of {len(flat)} values together in {where}, came lengths "
            f"that sum up to {sum(counts)}.",
            code="length_mismatch",
            where=where,
        )
    if leaf.list_length > 0:
        if set(counts) - {leaf.list_length}:
            raise EpisodeError(
                f"Expected lists {leaf.path} of {leaf.list_length} values in {where}, came others.",
                code="length_mismatch",
                where=where,
            )
        return flat.reshape(len(counts), leaf.list_length, *leaf.shape)
    width = leaf.value_count * flat.dtype.itemsize
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64) * width
    spec = FieldSpec(leaf.dtype, (-1, *leaf.shape), "ragged")
    return Packed(spec, offsets, np.frombuffer(flat.tobytes(), np.uint8))


def _values(leaf: Leaf, name: str, record: Encoded, where: str) -> Values:
    if name not in record:
        raise _unreadable(f"Expected the feature {name} in {where}, there is none")
    values = values_of(record[name], where)
    is_bytes = leaf.kind != "numbers" or leaf.encoding != "none"
    if len(values) and not name.endswith(f"/{LENGTHS}") and isinstance(values, list) != is_bytes:
        came = "byte strings" if isinstance(values, list) else "numbers"
        raise _unreadable(f"Expected {leaf.path} as {leaf.kind} in {where}, came {came}")
    return values


def _byte_list(values: Values, leaf: Leaf) -> list[bytes]:
    """A list without values does not say of what it would be one."""
    return values if isinstance(values, list) else []


def _decode_numbers(leaf: Leaf, values: Values, where: str) -> np.ndarray:
    """Returns (n, *shape) of the leaf's dtype."""
    dtype = np.dtype(leaf.dtype)
    if leaf.encoding != "none":
        data = b"".join(_raw_rows(leaf, _byte_list(values, leaf), where))
        raw = np.frombuffer(data, np.uint8 if dtype.kind == "b" else dtype)
        return _rows(leaf, _flags(raw, leaf, where) if dtype.kind == "b" else raw, where)
    array = np.asarray(values)
    if not len(array):
        return np.zeros((0, *leaf.shape), dtype)
    if array.dtype.kind != ("f" if dtype.kind == "f" else "i"):
        raise _unreadable(f"Expected {leaf.path} as {dtype} in {where}, came {array.dtype}")
    if dtype.kind == "b":
        return _rows(leaf, _flags(array, leaf, where), where)
    if dtype == np.uint64:  # kept as the int64 of the same bits
        return _rows(leaf, array.view(np.uint64), where)
    with np.errstate(over="ignore"):
        found = array.astype(dtype, copy=False)
    if dtype.kind in "iu" and not np.array_equal(found, array):
        raise EpisodeError(
            f"Expected {leaf.path} as {dtype} in {where}, came {array.min()}..{array.max()}.",
            code="bad_dtype",
            where=where,
        )
    return _rows(leaf, found, where)


def _flags(values: np.ndarray, leaf: Leaf, where: str) -> np.ndarray:
    if ((values != 0) & (values != 1)).any():
        raise EpisodeError(
            f"Expected {leaf.path} of 0 and 1 in {where}, came others.",
            code="bad_dtype",
            where=where,
        )
    return values.astype(bool)


def _rows(leaf: Leaf, values: np.ndarray, where: str) -> np.ndarray:
    if values.size % leaf.value_count:
        raise EpisodeError(
            f"Expected {leaf.path} with rows of shape {leaf.shape} in {where}, came {values.size} "
            f"values.",
            code="length_mismatch",
            where=where,
        )
    return values.reshape(-1, *leaf.shape)


def _raw_rows(leaf: Leaf, stored: list[bytes], where: str) -> list[bytes]:
    """Returns the raw bytes of each value; of one size, or a multiple of it where it varies."""
    width = leaf.value_count * np.dtype(leaf.dtype).itemsize
    varies = leaf.shape[:1] == (-1,)
    if leaf.encoding == "zlib":
        stored = _inflate(leaf, stored, 0 if varies else width, where)
    if any(len(row) % width if varies else len(row) != width for row in stored):
        raise EpisodeError(
            f"Expected {leaf.path} as {width} bytes per value in {where}, came others.",
            code="length_mismatch",
            where=where,
        )
    return stored


def _inflate(leaf: Leaf, stored: list[bytes], width: int, where: str) -> list[bytes]:
    """Inflates each value, together at most as far as their size allows."""
    total, size = sum(map(len, stored)), 0
    rows = []
    for data in stored:
        size += width
        most = width
        if not width:
            most = 1
            while may_inflate(size + 2 * most, total):
                most *= 2
        elif not may_inflate(size, total):
            raise _unreadable(f"Expected {leaf.path} in {where} to inflate within bounds")
        inflater = zlib.decompressobj()
        try:
            row = inflater.decompress(data, most + 1)
        except zlib.error as error:
            raise _unreadable(f"Could not inflate {leaf.path} in {where}: {error}") from error
        if len(row) > most or not inflater.eof:
            raise _unreadable(f"Expected {leaf.path} in {where} to inflate to {most} bytes")
        size += 0 if width else len(row)
        rows.append(row)
    return rows


def _decode_pictures(leaf: Leaf, frames: list[bytes], where: str) -> Rows:
    """Keeps pictures as they came, once their headers fit; float32 ones are decoded.

    TFDS has no float pictures: it stores the four bytes of a float32 as the four channels of a PNG.
    """
    is_float = leaf.dtype == "<f4"
    sides = (*leaf.shape[:2], 4) if is_float else leaf.shape
    spec = FieldSpec("|u1" if is_float else leaf.dtype, sides[:2] if sides[2] == 1 else sides)
    for at, frame in enumerate(frames):
        shape, dtype = picture_shape(frame, f"{where}, {leaf.path} frame {at}")
        pairs = zip(spec.shape, shape, strict=False)
        if (
            len(shape) != len(spec.shape)
            or dtype != spec.dtype
            or any(side not in (-1, came) for side, came in pairs)
        ):
            raise _unreadable(
                f"Expected pictures of {spec} as {leaf.path} in {where}, frame {at} is "
                f"{np.dtype(dtype).name}{list(shape)}"
            )
    if not is_float:
        return Packed.of(FieldSpec(spec.dtype, spec.shape, "frames"), frames)
    if not may_inflate(len(frames) * spec.row_bytes, sum(map(len, frames))):
        raise _unreadable(f"Expected {leaf.path} in {where} to decode within bounds")
    return decode_pictures(frames, spec, where).view("<f4")


def _utf8(value: bytes, leaf: Leaf, where: str) -> bytes:
    try:
        value.decode()
    except UnicodeDecodeError as error:
        raise _unreadable(f"Expected UTF-8 text as {leaf.path} in {where}: {error}") from error
    return value


def _single(values: list[Any], leaf: Leaf, where: str) -> Any:
    if len(values) != 1:
        raise EpisodeError(
            f"Expected one value of {leaf.path} in {where}, came {len(values)}.",
            code="length_mismatch",
            where=where,
        )
    return values[0]


def _unreadable(said: str) -> EpisodeError:
    return EpisodeError(f"{said}.", code="unreadable")
