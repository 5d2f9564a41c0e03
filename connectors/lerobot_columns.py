"""Parquet columns as rows of an episode: numbers, texts and encoded pictures, whole units at once.

What a column holds is checked against its feature: the number of values in every row, no nulls, a
dtype we hold. Pictures are taken as bytes only; a path in the place of bytes is never followed.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from connectors.lerobot_features import Feature
from connectors.picture_headers import packed_pictures
from schemas.errors import EpisodeError
from schemas.packed import TEXT, Packed, Rows
from schemas.spec import RAW_KINDS, FieldSpec


def to_rows(column: pa.ChunkedArray, feature: Feature, where: str) -> Rows:
    """Returns a column as rows of its feature.

    Args:
        column: of any length.
        feature: what `info.json` says of it.
        where: said in errors.

    Raises:
        EpisodeError: with code `unreadable`, `bad_dtype` or `length_mismatch`.
    """
    # A single chunk is used where it lies; pyarrow would copy it.
    array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # no chunks, or too long for one
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], column.type)
    place = f"{feature.name} of {where}"
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if feature.dtype == "string":
        return _texts(array, place)
    if feature.dtype == "image":
        return _pictures(array, feature.shape, place)
    return _numbers(array, feature, place)


def _numbers(array: pa.Array, feature: Feature, where: str) -> np.ndarray:
    """Lists of any depth as one array; every row must have the feature's shape."""
    rows, values = len(array), array
    sizes = []
    while not pa.types.is_primitive(values.type):
        _refuse_nulls(values, where)
        values, size = _flat(values, where)
        sizes.append(size)
    _refuse_nulls(values, where)
    shape = () if feature.is_scalar else feature.shape
    came = tuple(sizes)
    is_single = shape in ((), (1,)) and came in ((), (1,))  # LeRobot stores both as plain values
    if rows and came != shape and not is_single:
        raise EpisodeError(
            f"Expected rows of shape {list(feature.shape)} in {where}, came {list(came)}.",
            code="length_mismatch",
            where=where,
        )
    found = np.asarray(values.to_numpy(zero_copy_only=False))
    if found.dtype.kind not in RAW_KINDS:
        raise EpisodeError(
            f"Expected numbers in {where}, came {array.type}.", code="bad_dtype", where=where
        )
    return found.reshape(rows, *shape)


def _flat(array: pa.Array, where: str) -> tuple[pa.Array, int]:
    """Returns the values of lists that all have one length, and that length."""
    kind = array.type
    if pa.types.is_fixed_size_list(kind):
        return array.flatten(), int(kind.list_size)
    if not pa.types.is_list(kind) and not pa.types.is_large_list(kind):
        raise EpisodeError(
            f"Expected numbers or lists of them in {where}, came {kind}.",
            code="bad_dtype",
            where=where,
        )
    if len(array) == 0:
        return array.flatten(), 0
    bounds = pc.min_max(pc.list_value_length(array)).as_py()
    if bounds["min"] != bounds["max"]:
        raise EpisodeError(
            f"Expected rows of one length in {where}, came {bounds['min']} to {bounds['max']}.",
            code="length_mismatch",
            where=where,
        )
    return array.flatten(), int(bounds["min"])


def _texts(array: pa.Array, where: str) -> Packed:
    if not pa.types.is_string(array.type) and not pa.types.is_large_string(array.type):
        raise EpisodeError(
            f"Expected texts in {where}, came {array.type}.", code="bad_dtype", where=where
        )
    _refuse_nulls(array, where)
    offsets, data = _bytes(array)
    return Packed(TEXT, offsets, data)


def _pictures(array: pa.Array, shape: tuple[int, ...], where: str) -> Packed:
    kind = array.type
    is_picture = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    if is_picture:
        encoded = pc.struct_field(array, "bytes")
        is_picture = pa.types.is_binary(encoded.type) or pa.types.is_large_binary(encoded.type)
    if not is_picture:
        raise EpisodeError(
            f"Expected pictures as bytes in {where}, came {kind}.", code="bad_dtype", where=where
        )
    if array.null_count or encoded.null_count:
        raise EpisodeError(
            f"Expected the bytes of every picture in {where}, {encoded.null_count} rows have none; "
            f"a path in their place is not followed.",
            code="unreadable",
            where=where,
        )
    offsets, data = _bytes(encoded)
    if len(encoded) == 0:
        return Packed(FieldSpec("|u1", shape, "frames"), offsets, data)
    found = packed_pictures(offsets, data, where)
    if not is_shape(shape, found.spec.shape):
        raise EpisodeError(
            f"Expected pictures of {list(shape)} in {where}, came {list(found.spec.shape)}.",
            code="unreadable",
            where=where,
        )
    return found


def is_shape(stated: tuple[int, ...], came: tuple[int, ...]) -> bool:
    """True if pictures of a shape are what a feature says, in either order of its axes."""
    full = came if len(came) == 3 else (*came, 1)
    return stated in (came, full, (full[2], *full[:2]))


def _bytes(array: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Returns offsets that begin at 0, and the bytes between the first and the last."""
    wide = array.cast(pa.large_binary())
    _, starts, data = wide.buffers()
    if len(wide) == 0:
        return np.zeros(1, np.int64), np.zeros(0, np.uint8)
    offsets = np.frombuffer(starts, np.int64)[wide.offset : wide.offset + len(wide) + 1]
    whole = np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)
    return offsets - offsets[0], whole[offsets[0] : offsets[-1]]


def _refuse_nulls(array: pa.Array, where: str) -> None:
    if array.null_count:
        raise EpisodeError(
            f"Expected a value in every row of {where}, came {array.null_count} nulls.",
            code="unreadable",
            where=where,
        )
