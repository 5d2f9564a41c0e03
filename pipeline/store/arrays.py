"""Arrays of a version: whole episodes, and one field across all of them as a dask array."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import dask
import dask.array as da
import numpy as np
import pyarrow as pa

from pipeline.store.catalog import Catalog
from schemas.arrow import episode_from_rows
from schemas.episode import Episode
from schemas.errors import UnknownNameError, UsageError, suggest
from schemas.packed import Rows, join, own, plain, spec_of
from schemas.rows import FLAGS, RowLayout
from schemas.spec import FieldSpec
from schemas.table import own_columns
from schemas.version import Block

FEW = 4
"""Up to so many episodes of a block are read by their rows; for more, the block is read whole."""
DECODED_BYTES = 64 << 20
"""Encoded rows that one task decodes take about so much, unless one episode takes more."""


def read_episodes(
    catalog: Catalog, blocks: Mapping[str, Block], table: pa.Table
) -> Iterator[Episode]:
    """Yields the episodes of some rows of an episode table, in order.

    Neighbouring episodes of one block are cut from one reading of it.
    """
    names = {role: own_columns(table.schema, role) for role in ("columns", "labels")}
    order = table["_block"].to_pylist()
    first = 0
    while first < len(order):
        last = first
        while last < len(order) and order[last] == order[first]:
            last += 1
        block = blocks[order[first]]
        layout = catalog.block_layout(block)
        facts = [_facts(row, names) for row in table.slice(first, last - first).to_pylist()]
        whole = catalog.read_block(block) if last - first > FEW else None
        for fact in facts:
            rows = slice(fact["_row"], fact["_row"] + fact["length"] + 1)
            if whole is None:
                cut = catalog.read_block(block, rows=rows)
            else:
                cut = {name: array[rows] for name, array in whole.items()}
            # Copies, so that one kept episode does not keep the block, and can be written to.
            yield episode_from_rows({n: own(rows) for n, rows in cut.items()}, layout, fact)
        first = last


def field_array(
    catalog: Catalog, blocks: Mapping[str, Block], table: pa.Table, name: str, raw: bool
) -> da.Array:
    """Returns one field of the table's episodes in order, one dask chunk per run of a block.

    Encoded fields are decoded within the tasks, in runs of about `DECODED_BYTES`; texts, ragged
    rows and pictures of varying size become objects.

    Args:
        catalog: the store.
        blocks: the version's blocks by id.
        table: episode rows with their places.
        name: full field name.
        raw: True for T+1 rows per episode, padding included.

    Raises:
        UnknownNameError: if no block has the field.
        UsageError: if some kept episodes have it and others do not, or have it otherwise.
    """
    field, runs = _runs(catalog, blocks, table, name, raw)
    kind, shape = (field.numpy_dtype, field.shape) if field.is_regular else (np.dtype(object), ())
    pieces = []
    for run in runs:
        task = dask.delayed(_decoded)(catalog, run)
        pieces.append(da.from_delayed(task, (int(run.counts.sum()), *shape), dtype=kind))
    if not pieces:
        return da.from_array(np.empty((0, *shape), kind))
    return da.concatenate(pieces)


def stored_field(
    catalog: Catalog, blocks: Mapping[str, Block], table: pa.Table, name: str
) -> Iterator[Rows]:
    """Yields the real entries of one field as they are stored, encoded or not, run by run.

    Args and errors are those of `field_array`.
    """
    for run in _runs(catalog, blocks, table, name, raw=False)[1]:
        yield _stored(catalog, run)


@dataclass(frozen=True)
class _Run:
    """Episodes that lie in one block, and how many rows of one field each has."""

    block: Block
    name: str
    starts: np.ndarray  # (E,) int64
    counts: np.ndarray  # (E,) int64


def _runs(
    catalog: Catalog, blocks: Mapping[str, Block], table: pa.Table, name: str, raw: bool
) -> tuple[FieldSpec, list[_Run]]:
    """Splits episodes into runs that lie in one block, and that fit in memory once decoded."""
    order = np.array(table["_block"].to_pylist(), dtype=object)
    starts, lengths = table["_row"].to_numpy(), table["length"].to_numpy()
    finals = np.array(table["final_observation"].to_pylist(), dtype=object)
    layouts = {block: catalog.block_layout(blocks[block]) for block in dict.fromkeys(order)}
    field = _field_of(layouts, name)
    if not len(order):
        return field, []
    is_cut = order[1:] != order[:-1]
    if field.encoding != "raw":
        bins = np.cumsum((lengths + 1) * field.row_bytes) // DECODED_BYTES
        is_cut |= bins[1:] != bins[:-1]
    found = []
    for run in np.split(np.arange(len(order)), np.flatnonzero(is_cut) + 1):
        block = order[run[0]]
        padding = 0 if raw else _cut(name, layouts[block], finals[run])
        found.append(_Run(blocks[block], name, starts[run], lengths[run] + 1 - padding))
    return field, found


def to_xarray(xarray: ModuleType, episode: Episode) -> Any:
    """Returns an episode as an xarray dataset; `step` counts T steps, `time` T+1 moments."""
    variables = {}
    for name, array in {
        **episode.arrays,
        "terminated": episode.terminated,
        "truncated": episode.truncated,
    }.items():
        axis = "step" if len(array) == episode.length else "time"
        decoded = plain(array)
        dims = (axis, *(f"{name}_{k}" for k in range(decoded.ndim - 1)))
        variables[name] = (dims, decoded)
    facts = {"episode_id": episode.episode_id, "task": episode.task, "kind": episode.kind}
    return xarray.Dataset(variables, attrs={**facts, **episode.columns})


def _facts(row: Mapping[str, Any], names: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    facts = dict(row)
    collected_at = row["collected_at"]
    facts["collected_at"] = collected_at.isoformat() if collected_at else None
    for role, stored in names.items():
        facts[role] = {
            name: row[column] for column, name in stored.items() if row[column] is not None
        }
    return facts


def _field_of(layouts: Mapping[str, RowLayout], name: str) -> Any:
    found = {block: layout.fields.get(name) for block, layout in layouts.items()}
    known = {field for layout in layouts.values() for field in layout.fields}
    if name not in known:
        raise UnknownNameError(f"Expected a field, came {name!r}; {suggest(name, known)}")
    missing = sum(field is None for field in found.values())
    if missing:
        raise UsageError(
            f"Expected the field {name!r} in every kept episode, came {missing} of {len(found)} "
            f"blocks without it; select the episodes that have it first."
        )
    kinds = set(found.values())
    if len(kinds) > 1:
        raise UsageError(
            f"Expected {name!r} with one dtype and shape in every kept episode, came "
            f"{', '.join(sorted(map(str, kinds)))}; select the episodes of one kind first."
        )
    return next(iter(kinds))


def _cut(name: str, layout: RowLayout, finals: np.ndarray) -> np.ndarray:
    """How many padded rows end each episode: 0 or 1."""
    if name.startswith("observations") and name not in FLAGS:
        return np.asarray(finals == "missing", np.int64)
    return np.full(len(finals), 0 if name in layout.full_extras else 1, np.int64)


def _stored(catalog: Catalog, run: _Run) -> Rows:
    first, last = int(run.starts.min()), int((run.starts + run.counts).max())
    rows = catalog.read_block(run.block, [run.name], rows=slice(first, last))[run.name]
    spans = zip(run.starts - first, run.counts, strict=True)
    return join([rows[start : start + count] for start, count in spans])


def _decoded(catalog: Catalog, run: _Run) -> np.ndarray:
    rows = _stored(catalog, run)
    return plain(rows) if spec_of(rows).is_regular else plain(rows).astype(object)
