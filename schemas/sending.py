"""An episode's rows as one record batch, for whoever sends one episode at a time.

The columns are those of `schemas.arrow.rows_to_table`. What follows from the layout alone is made
once, and pyarrow is handed buffers, not NumPy's arrays: to look at one of those it imports pandas,
if there is one, which takes longer than all else that an actor does when it starts.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pyarrow as pa

from schemas.arrow import arrow_schema
from schemas.episode import Episode
from schemas.errors import EpisodeError
from schemas.packed import Packed, Rows, Video, pad_row, spec_of
from schemas.rows import FLAGS, RowLayout
from schemas.spec import DatasetSpec, FieldSpec

KNOWN_ROWS = 1024
"""Of so few rows flags are remembered."""
_Key: TypeAlias = tuple[str, FieldSpec | str, tuple[int, ...], bool]


@dataclass(frozen=True)
class _Plan:
    """What episodes of one layout have in common."""

    layout: RowLayout
    schema: pa.Schema
    columns: tuple[tuple[str, pa.DataType, pa.DataType | None], ...]
    """Name, type, and the type of the numbers in its lists, if it is of such."""


def batch_of(episode: Episode) -> tuple[pa.RecordBatch, RowLayout]:
    """Returns the T+1 rows of an episode, in memory of their own, and their layout.

    Whoever records into buffers that are used again may do so at once, whenever the rows are sent.

    Raises:
        EpisodeError: with code `bad_dtype`, for an episode with a video.
    """
    arrays, count = episode.arrays, episode.length + 1
    plan = _plan(tuple([_key(name, array, count, episode) for name, array in arrays.items()]))
    columns = []
    for name, kind, values in plan.columns:
        if name in FLAGS:
            columns.append(_flag(name, episode, count))
            continue
        rows = arrays[name]
        if len(rows) < count:
            rows = pad_row(rows)
        elif isinstance(rows, np.ndarray):
            rows = rows.copy()
        columns.append(_column(rows, kind, values))
    return pa.RecordBatch.from_arrays(columns, schema=plan.schema), plan.layout


def _key(name: str, rows: Rows, count: int, episode: Episode) -> _Key:
    """What the layout takes from one array; hashed in no time."""
    if isinstance(rows, Video):
        raise EpisodeError(
            f"Expected arrays, pictures, texts or ragged rows to send, came a video in "
            f"{name!r}; decode it, or append the episode to the store.",
            code="bad_dtype",
            where=episode.episode_id,
        )
    is_full = len(rows) == count
    return (
        (name, rows.spec, (), is_full)
        if isinstance(rows, Packed)
        else (
            name,
            rows.dtype.str,
            rows.shape[1:],
            is_full,
        )
    )


@functools.lru_cache(maxsize=64)
def _plan(keys: tuple[_Key, ...]) -> _Plan:
    fields: dict[str, FieldSpec] = {}
    for name, kind, shape, _ in keys:
        if isinstance(kind, str):
            kind = spec_of(np.empty((0, *shape), np.dtype(kind)))
        fields[name] = kind
    extras = {name: field for name, field in fields.items() if name.startswith("extras/")}
    full = frozenset(name for name, _, _, is_full in keys if name in extras and is_full)
    spec = DatasetSpec({name: field for name, field in fields.items() if name not in extras})
    layout = RowLayout(spec, extras, full)
    schema = arrow_schema(layout)
    return _Plan(layout, schema, tuple((one.name, one.type, _within(one.type)) for one in schema))


def _within(kind: pa.DataType) -> pa.DataType | None:
    return kind.value_type if pa.types.is_fixed_size_list(kind) else None


def _column(rows: Rows, kind: pa.DataType, values: pa.DataType | None) -> pa.Array:
    count = len(rows)
    if isinstance(rows, Packed):
        held = [np.array(rows.offsets, order="C"), np.array(rows.data, order="C")]  # copies
        return pa.Array.from_buffers(kind, count, [None, *map(pa.py_buffer, held)], 0)
    assert isinstance(rows, np.ndarray)
    if values is None:
        return _numbers(rows, kind)
    if not kind.list_size:
        return pa.array([[]] * count, kind)
    return pa.Array.from_buffers(kind, count, [None], 0, children=[_numbers(rows, values)])


def _numbers(rows: np.ndarray, kind: pa.DataType) -> pa.Array:
    held = np.packbits(rows.reshape(-1), bitorder="little") if rows.dtype == bool else rows
    return pa.Array.from_buffers(
        kind, rows.size, [None, pa.py_buffer(np.ascontiguousarray(held))], 0
    )


def _flag(name: str, episode: Episode, count: int) -> pa.Array:
    if name == "valid":
        return _ones_but(count, is_last=False)
    if name == "observation_valid":
        return _ones_but(count, is_last=episode.final_observation == "present")
    flags = np.zeros(count, bool)
    flags[:-1] = getattr(episode, name)
    return _known_flags(flags.tobytes()) if count <= KNOWN_ROWS else _numbers(flags, pa.bool_())


@functools.lru_cache(maxsize=256)
def _known_flags(held: bytes) -> pa.Array:
    """Returns flags that are remembered by their bytes: most episodes have the same."""
    return _numbers(np.frombuffer(held, bool), pa.bool_())


@functools.lru_cache(maxsize=256)
def _ones_but(count: int, *, is_last: bool) -> pa.Array:
    """Returns ones, with the last one as it is said."""
    flags = np.ones(count, bool)
    flags[-1] = is_last
    return _numbers(flags, pa.bool_())
