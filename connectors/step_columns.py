"""Columns of a table of steps: which field each one holds, and its values as rows of an episode.

Names: `episode_id`, `step`, `reward`, `terminated`, `truncated`; `observation` or, for several
arrays, `observation/<name>` or `observation.<name>`; `action` and `next_observation` likewise.
Every other column is an extra of its own name, or of the name after `extra/`, and
`next_extra/<name>` holds the last of an extra's T+1 rows.

Values: numbers; lists of numbers, nested or flat, of one length within an episode; texts; binary
columns of PNG or JPEG pictures. What a column's type does not tell (the shape of a flat list, that
rows are ragged) its Arrow metadata may: `penstock.field`, a JSON list of dtype, shape and encoding.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from connectors.picture_headers import packed_pictures
from schemas.errors import EpisodeError, SourceError, suggest
from schemas.packed import TEXT, Packed, Rows, plain, spec_of
from schemas.spec import FieldSpec

FIELD_KEY = b"penstock.field"
ID, STEP = "episode_id", "step"
FLAGS = ("terminated", "truncated")
EXTRA, NEXT_EXTRA, NEXT = "extra/", "next_extra/", "next_"
_ROOTS = {"observation": "observations", "action": "actions"}

Role = Literal["observation", "action", "reward", "flag", "extra", "next"]


@dataclass(frozen=True)
class StepColumn:
    """What one column of a table of steps holds."""

    name: str
    role: Role
    field: str
    """Full name of the episode's field: `observations/x`, `rewards`, `extras/q`, `terminated`; for
    a `next` column that of the field whose last row it holds."""
    spec: FieldSpec | None
    """As the column's metadata state it."""


def step_columns(schema: pa.Schema, where: str) -> tuple[list[StepColumn], list[str]]:
    """Returns the columns that fields are read from, and the names of those left out.

    Raises:
        SourceError: if a column that must be there is not, or is of a type that is no field's.
    """
    for name in (ID, STEP):
        if name not in schema.names:
            raise SourceError(
                f"Expected the column {name!r} in {where}, {suggest(name, schema.names)}",
                where=where,
            )
    if not pa.types.is_integer(schema.field(STEP).type):
        raise SourceError(
            f"Expected whole numbers in the column {STEP!r} of {where}, came "
            f"{schema.field(STEP).type}.",
            where=where,
        )
    found, left_out = [], []
    for column in schema:
        if column.name in (ID, STEP):
            continue
        one = _step_column(column, where)
        if _kind(column.type) is not None:
            found.append(one)
        elif one.role == "extra":
            left_out.append(column.name)
        else:
            raise SourceError(
                f"Expected numbers, lists of numbers, texts or pictures in the column "
                f"{column.name!r} of {where}, came {column.type}.",
                where=where,
            )
    roles = [(one.role, one.field) for one in found]
    doubled = sorted({field for role, field in roles if roles.count((role, field)) > 1})
    if doubled or not any(role == "observation" for role, _ in roles):
        what = f"{', '.join(doubled)} doubled" if doubled else suggest("observation", schema.names)
        raise SourceError(
            f"Expected one column for each field and an observation in {where}, {what}", where=where
        )
    return found, left_out


def column_name(field: str) -> str:
    """Returns the name of the column that a field is written to."""
    root, _, rest = field.partition("/")
    if root == "extras":
        is_taken = rest in (ID, STEP, "reward", "task", *FLAGS, *_ROOTS) or rest.startswith(
            (EXTRA, NEXT, *(f"{name}{mark}" for name in _ROOTS for mark in "/."))
        )
        return f"{EXTRA}{rest}" if is_taken else rest
    if field == "rewards":
        return "reward"
    return "/".join(
        [next(new for new, old in _ROOTS.items() if old == root), *([rest] * bool(rest))]
    )


def next_name(field: str) -> str:
    """Returns the name of the column that a field's last row of T+1 is written to."""
    if field.startswith("extras/"):
        return f"{NEXT_EXTRA}{field.removeprefix('extras/')}"
    return f"{NEXT}{column_name(field)}"


def to_rows(values: pa.Array, spec: FieldSpec | None, where: str) -> Rows:
    """Returns the rows of one column of one episode.

    Raises:
        EpisodeError: if there are nulls among them, or they do not fit one another or their spec.
    """
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if values.null_count:
        row = int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0])
        raise EpisodeError(
            f"Expected a value in every row of {where}, row {row} has none; a null is no number.",
            code="unreadable",
            where=where,
        )
    if spec is not None and spec.encoding == "ragged":
        return _ragged(values, spec, where)
    match _kind(values.type):
        case "text":
            return Packed(TEXT, *_offsets_and_bytes(values))
        case "bytes":
            packed = packed_pictures(*_offsets_and_bytes(values), where)
            is_stated = spec is not None and spec.encoding == "frames"
            if spec is not None and is_stated and spec != packed.spec:
                raise _unlike(where, str(spec), str(packed.spec))
            return packed
    rows = _numbers(values, where)
    if spec is None or spec.encoding != "raw" or spec.shape == rows.shape[1:]:
        return rows
    if math.prod(spec.shape) * len(rows) != rows.size:
        raise _unlike(where, f"rows of shape {spec.shape}", str(rows.shape[1:]))
    return rows.reshape(len(rows), *spec.shape)


def stored_spec(rows: Rows) -> FieldSpec:
    """Returns the spec of rows as they are written: frames of a video are, decoded."""
    spec = spec_of(rows)
    return FieldSpec(spec.dtype, spec.shape) if spec.encoding == "video" else spec


def arrow_field(name: str, spec: FieldSpec) -> pa.Field:
    """Returns the Arrow field of a column that holds rows of one spec."""
    kind: Any = pa.string() if spec.encoding == "text" else pa.binary()
    if spec.encoding in ("raw", "ragged"):
        kind = pa.from_numpy_dtype(spec.numpy_dtype)
        kind = pa.list_(kind) if spec.shape else kind
    said = json.dumps([spec.dtype, list(spec.shape), spec.encoding])
    return pa.field(name, kind, metadata={FIELD_KEY: said.encode()})


def to_arrow(rows: Rows, field: pa.Field) -> pa.Array:
    """Returns some rows as a column; inverse of `to_rows`."""
    if isinstance(rows, Packed) and rows.spec.encoding != "ragged":
        buffers = [None, pa.py_buffer(rows.offsets.astype(np.int32)), pa.py_buffer(rows.data)]
        return pa.Array.from_buffers(field.type, len(rows), buffers)
    if isinstance(rows, Packed):
        values = np.frombuffer(rows.data.tobytes(), rows.dtype)
        offsets = rows.offsets // rows.dtype.itemsize
    else:
        numbers = np.ascontiguousarray(plain(rows))
        values = numbers.reshape(-1)
        if numbers.ndim == 1:
            return pa.array(values)
        offsets = np.arange(len(numbers) + 1) * math.prod(numbers.shape[1:])
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values))


def _step_column(column: pa.Field, where: str) -> StepColumn:
    name: str = column.name
    spec = _stated_spec(column, where)
    if name in FLAGS:
        return StepColumn(name, "flag", name, spec)
    if name == "reward":
        return StepColumn(name, "reward", "rewards", spec)
    if name.startswith(NEXT_EXTRA):
        return StepColumn(name, "next", f"extras/{name.removeprefix(NEXT_EXTRA)}", spec)
    is_next = name.startswith(f"{NEXT}observation")
    bare = name.removeprefix(NEXT) if is_next else name
    for root, plural in _ROOTS.items():
        if bare != root and not bare.startswith((f"{root}/", f"{root}.")):
            continue
        field = plural if bare == root else f"{plural}/{bare[len(root) + 1 :]}"
        role: Role = "observation" if root == "observation" else "action"
        return StepColumn(name, "next" if is_next else role, field, spec)
    return StepColumn(name, "extra", f"extras/{name.removeprefix(EXTRA)}", spec)


def _stated_spec(column: pa.Field, where: str) -> FieldSpec | None:
    said = (column.metadata or {}).get(FIELD_KEY)
    if said is None:
        return None
    try:
        dtype, shape, encoding = json.loads(said)
        spec = FieldSpec(dtype, tuple(shape), encoding)
        is_whole = all(isinstance(n, int) and -1 <= n < 2**31 for n in spec.shape)
        known = encoding in ("raw", "frames", "ragged", "text")
        if is_whole and known and (encoding == "text" or spec.numpy_dtype.kind in "biuf"):
            return spec
    except (ValueError, TypeError, RecursionError):
        pass
    raise SourceError(
        f"Expected dtype, shape and encoding in the metadata of the column {column.name!r} of "
        f"{where}, came {said[:80]!r}.",
        where=where,
    )


def _kind(kind: pa.DataType) -> Literal["numbers", "text", "bytes"] | None:
    """What a column of an Arrow type holds; None for what no field can."""
    types = pa.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_string(kind) or types.is_large_string(kind):
        return "text"
    if types.is_binary(kind) or types.is_large_binary(kind):
        return "bytes"
    while types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        kind = kind.value_type
    is_number = types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind)
    return "numbers" if is_number else None


def _numbers(values: pa.Array, where: str) -> np.ndarray:
    """Returns (rows, ...) numbers of primitive values or nested lists of one length."""
    shape = [len(values)]
    while not (pa.types.is_primitive(values.type) or pa.types.is_boolean(values.type)):
        if pa.types.is_fixed_size_list(values.type):
            shape.append(values.type.list_size)
        else:
            lengths = np.unique(np.diff(np.asarray(values.offsets)))
            if len(lengths) > 1:
                raise EpisodeError(
                    f"Expected lists of one length in {where}, came {lengths[0]} to {lengths[-1]}.",
                    code="length_mismatch",
                    where=where,
                )
            shape.append(int(lengths[0]) if len(lengths) else 0)
        values = values.flatten()
        if values.null_count:
            raise EpisodeError(
                f"Expected numbers in every list of {where}, there are nulls; a null is no number.",
                code="unreadable",
                where=where,
            )
    return np.asarray(values.to_numpy(zero_copy_only=False).reshape(shape))


def _ragged(values: pa.Array, spec: FieldSpec, where: str) -> Packed:
    width = math.prod(spec.shape[1:])
    is_list = pa.types.is_list(values.type) or pa.types.is_large_list(values.type)
    flat = values.flatten() if is_list else values
    offsets = np.asarray(values.offsets, np.int64) if is_list else np.zeros(1, np.int64)
    lengths = np.diff(offsets)
    fits = is_list and _kind(flat.type) == "numbers" and not flat.null_count
    if not fits or width <= 0 or (lengths % width).any() or spec.shape[:1] != (-1,):
        raise _unlike(where, f"lists of rows of {spec}", str(values.type))
    numbers = flat.to_numpy(zero_copy_only=False).astype(spec.numpy_dtype, copy=False)
    data = np.frombuffer(np.ascontiguousarray(numbers).tobytes(), np.uint8)
    return Packed(spec, (offsets - offsets[0]) * spec.numpy_dtype.itemsize, data)


def _unlike(where: str, expected: str, came: str) -> EpisodeError:
    return EpisodeError(
        f"Expected {expected} in {where}, came {came}.", code="length_mismatch", where=where
    )


def _offsets_and_bytes(values: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Returns (rows + 1,) int64 beginning at 0, and (bytes,) uint8."""
    large = values.cast(pa.large_binary())
    _, offsets, data = large.buffers()
    places = np.frombuffer(offsets, np.int64)[large.offset : large.offset + len(large) + 1]
    held = np.zeros(0, np.uint8) if data is None else np.frombuffer(data, np.uint8)
    return places - places[0], held[places[0] : places[-1]]
