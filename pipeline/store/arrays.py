"""Arrays of a version: whole episodes, and one field across all of them as a dask array."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipeline.store.catalog import Catalog
from pipeline.store.step_arrays import StepArrays
from pipeline.store.tables import frame_ranges
from schemas.arrow import episode_from_rows
from schemas.episode import Episode
from schemas.errors import UnknownNameError, UsageError, suggest
from schemas.packed import Rows, join, own, plain, spec_of
from schemas.rows import FLAGS, RowLayout
from schemas.spec import FieldSpec
from schemas.table import own_columns
from schemas.version import Block

if TYPE_CHECKING:
    import dask.array as da

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
    catalog: Catalog,
    blocks: Mapping[str, Block],
    table: pa.Table,
    name: str,
    raw: bool,
    instead: Instead | None = None,
) -> da.Array:
    """Returns one field of the table's episodes in order, one dask chunk per run of a block.

    Encoded fields are decoded within the tasks, in runs of about `DECODED_BYTES`; texts, ragged
    rows and pictures of varying size become objects.

    Args:
        catalog: the store.
        blocks: the version's blocks by id.
        table: episode rows with their places.
        name: full field name.
        raw: True for T+1 rows per episode, padding included; else only the steps that are kept.
        instead: arrays by episode id that stand in for what blocks hold.

    Raises:
        UnknownNameError: if no block has the field.
        UsageError: if some kept episodes have it and others do not, or have it otherwise.
    """
    import dask  # noqa: PLC0415 (takes longer than most commands)
    import dask.array as da  # noqa: PLC0415

    field, runs = _runs(catalog, blocks, table, name, raw, instead)
    kind, shape = (field.numpy_dtype, field.shape) if field.is_regular else (np.dtype(object), ())
    pieces = []
    for run in runs:
        task = dask.delayed(_decoded)(catalog, run)
        pieces.append(da.from_delayed(task, (int(run.counts.sum()), *shape), dtype=kind))
    if not pieces:
        return da.from_array(np.empty((0, *shape), kind))
    return da.concatenate(pieces)


def stored_field(
    catalog: Catalog,
    blocks: Mapping[str, Block],
    table: pa.Table,
    name: str,
    instead: Instead | None = None,
) -> Iterator[Rows]:
    """Yields the real entries of one field as they are stored, encoded or not, run by run.

    Args and errors are those of `field_array`.
    """
    for run in _runs(catalog, blocks, table, name, False, instead)[1]:
        yield _stored(catalog, run)


Instead = Mapping[str, np.ndarray]
"""Arrays of one row per step, by episode id."""


def added_field(added: StepArrays, table: pa.Table, name: str, raw: bool) -> da.Array:
    """Returns arrays that were added to all of the table's episodes, as one dask chunk.

    Raises:
        UsageError: if some episodes have none, or raw rows are asked for, which they have not.
    """
    import dask.array as da  # noqa: PLC0415 (takes longer than most commands)

    names, lengths = table["episode_id"].to_pylist(), table["length"].to_pylist()
    missing = sum(one not in added for one in names)
    if missing or raw:
        raise UsageError(
            f"Expected {name!r} for every kept episode, came {missing} of {len(names)} without; "
            f"annotate them too, or select the others first."
            if missing
            else f"Expected a field of the rows, came {name!r}, which was added to steps."
        )
    ranges = frame_ranges(table)
    found = [added.of(one, length) for one, length in zip(names, lengths, strict=True)]
    if ranges is not None:
        found = [array[start:stop] for array, (start, stop) in zip(found, ranges, strict=True)]
    empty = np.empty((0, *added.field.shape), added.field.numpy_dtype)
    return da.from_array(np.concatenate([empty, *found]), chunks=-1)


@dataclass(frozen=True)
class _Run:
    """Episodes that lie in one block, and how many rows of one field each has."""

    block: Block
    name: str
    starts: np.ndarray  # (E,) int64
    counts: np.ndarray  # (E,) int64
    instead: tuple[np.ndarray | None, ...] = ()
    """What stands in for the first rows of each episode, where something does."""


def _runs(
    catalog: Catalog,
    blocks: Mapping[str, Block],
    table: pa.Table,
    name: str,
    raw: bool,
    instead: Instead | None,
) -> tuple[FieldSpec, list[_Run]]:
    """Splits episodes into runs that lie in one block, and that fit in memory once decoded."""
    order = np.array(table["_block"].to_pylist(), dtype=object)
    starts, lengths = table["_row"].to_numpy(), table["length"].to_numpy()
    finals = np.array(table["final_observation"].to_pylist(), dtype=object)
    ranges = None if raw else frame_ranges(table)
    keep = np.stack([0 * lengths, lengths], axis=1) if ranges is None else ranges
    names = table["episode_id"].to_pylist() if instead else []
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
        if name.startswith("observations") and name not in FLAGS:  # missing only at the very end
            padding = padding * (keep[run, 1] == lengths[run])
        counts = keep[run, 1] - keep[run, 0] + 1 - padding
        counts[(keep[run, 1] == keep[run, 0]) & (lengths[run] > 0)] = 0
        others = tuple(_standing_in(instead, names[at], keep[at]) for at in run) if instead else ()
        found.append(_Run(blocks[block], name, starts[run] + keep[run, 0], counts, others))
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
    pieces = [rows[start : start + count] for start, count in spans]
    for at, values in enumerate(run.instead):
        if values is not None:
            mine = np.array(pieces[at])
            mine[: len(values)] = values
            pieces[at] = mine
    return join(pieces)


def _standing_in(instead: Instead, episode_id: str, keep: np.ndarray) -> np.ndarray | None:
    """Returns what stands in for an episode's kept steps."""
    found = instead.get(episode_id)
    return None if found is None else found[keep[0] : keep[1]]


def _decoded(catalog: Catalog, run: _Run) -> np.ndarray:
    rows = _stored(catalog, run)
    return plain(rows) if spec_of(rows).is_regular else plain(rows).astype(object)
