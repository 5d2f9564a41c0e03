"""The episode table of a version: parts, minus selections and erasures, plus overlay columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.store.catalog import Catalog
from pipeline.store.specs import FIRST
from schemas.errors import UnknownNameError, suggest
from schemas.identity import hash64
from schemas.table import FACT_COLUMNS, PLACE_COLUMNS, ROLE_KEY, concat, own_columns
from schemas.version import Commit, Overlay, Part, State

ORIGIN_COLUMNS = ("_part", "_part_row")
FIXED_COLUMNS = {
    *PLACE_COLUMNS.names,
    *ORIGIN_COLUMNS,
    *("episode_id", "length", "terminated", "truncated", "final_observation", "digest", "spec"),
}
"""What an episode is and where it lies: no column that is added later takes these names."""
KEEP_COLUMNS = ("keep_start", "keep_stop")
"""Labels that say which steps of an episode are used."""


def episode_table(catalog: Catalog, commit: Commit) -> pa.Table:
    """Returns one row per kept episode in version order, metric columns joined.

    Besides the public columns it has `_block` and `_row` (where the arrays lie) and `_part` and
    `_part_row` (position of the row in its part).
    """
    erased = catalog.erased()

    def make() -> pa.Table:
        state = catalog.refs.state(commit)
        return _with_overlays(catalog, state, stored_rows(catalog, state))

    return catalog.tables.get(f"{commit.id}-{len(erased)}", make)


def public_columns(table: pa.Table) -> list[str]:
    """Returns the columns of an episode table that people see."""
    hidden = {*PLACE_COLUMNS.names, *ORIGIN_COLUMNS}
    return [name for name in table.column_names if name not in hidden]


def pick_columns(table: pa.Table, columns: Sequence[str] | None) -> pa.Table:
    """Returns some public columns of an episode table, each once; None takes all.

    Raises:
        UnknownNameError: naming the nearest columns.
    """
    known = public_columns(table)
    for name in columns or ():
        if name not in known:
            raise UnknownNameError(
                f"Expected a column of this version, came {name!r}; {suggest(name, known)}"
            )
    return table.select(known if columns is None else list(dict.fromkeys(columns)))


def stored_rows(catalog: Catalog, state: State) -> pa.Table:
    """Returns one row per kept episode in version order, as stored: nothing joined."""
    tables = []
    for index, part in enumerate(state.parts):
        table = catalog.parquet(part.rows)
        rows = kept_positions(catalog, part, table.num_rows)
        table = table.take(rows) if part.selection else table
        table = _with_specs(table, part)
        table = table.append_column("_part", pa.array(np.full(len(rows), index, np.int32)))
        tables.append(table.append_column("_part_row", pa.array(rows)))
    table = concat(tables)
    if not tables:
        for name in ORIGIN_COLUMNS:
            table = table.append_column(name, pa.array([], pa.int64()))
    return drop_erased(table, catalog.erased()).combine_chunks()


def _with_specs(table: pa.Table, part: Part) -> pa.Table:
    """Names the spec of each row: that of its block, which a commit may have settled late."""
    named = {block.id: block.spec for block in part.blocks}
    if len(set(named.values())) == 1:
        (name,) = set(named.values())
        column = pa.repeat(pa.scalar(name, pa.string()), table.num_rows)
    else:
        column = pa.array(
            [named.get(block, FIRST) for block in table["_block"].to_pylist()], pa.string()
        )
    if "spec" not in table.column_names:
        return table.append_column("spec", column)
    return table.set_column(table.column_names.index("spec"), "spec", column)


def overlay_rows(catalog: Catalog, overlay: Overlay) -> pa.Table:
    """Returns what an overlay says, but for episodes that it no longer speaks of."""
    table = catalog.parquet(overlay.file)
    gone = {int(name) for file in overlay.without for name in catalog.id_index(file)[:, 0]}
    return drop_erased(table, gone)


def drop_erased(table: pa.Table, erased: set[int]) -> pa.Table:
    """Returns an episode table without erased episodes, whether or not their rows are blank yet."""
    if not erased:
        return table
    names = table["episode_id"].to_pylist()
    kept = [name is not None and hash64(name) not in erased for name in names]
    return table.filter(pa.array(kept, pa.bool_()))


def kept_positions(catalog: Catalog, part: Part, count: int) -> np.ndarray:
    """Returns which rows of a part a version keeps, ascending int64."""
    if part.selection is None:
        return np.arange(count, dtype=np.int64)
    table = catalog.parquet(part.selection)
    mine = table.filter(pc.equal(table["part"], part.id))
    return np.sort(mine["row"].to_numpy().astype(np.int64))


def _with_overlays(catalog: Catalog, state: State, table: pa.Table) -> pa.Table:
    """Joins the columns that were added later; the newest value of an episode counts."""
    columns: dict[str, list[pa.Table]] = {}
    labels: set[str] = set()
    for overlay in state.overlays:
        content = None
        for name in overlay.columns:
            shown = state.metrics.get(name)
            if overlay.score_set is not None and (
                shown is None or shown.score_set != overlay.score_set
            ):
                continue  # values of different score sets never mix
            if name in FIXED_COLUMNS or overlay.steps:
                continue
            content = content or overlay_rows(catalog, overlay)
            columns.setdefault(name, []).append(content.select(["episode_id", name]))
            if overlay.score_set is None:
                labels.add(name)
    for name, parts in columns.items():
        values = concat(list(reversed(parts)))
        ids = values["episode_id"].combine_chunks()
        at = pc.index_in(table["episode_id"], value_set=ids).combine_chunks()
        column = values[name].combine_chunks().take(at)
        if name in table.column_names:  # what it says of some episodes leaves the others alone
            field = table.schema.field(name)
            old, column = _of_one_type(table[name], column, field)
            column = pc.if_else(pc.is_valid(at), column, old)
            field = field.with_type(column.type)
            table = table.set_column(table.column_names.index(name), field, column)
        else:
            told = {ROLE_KEY: b"labels", b"name": name.encode()} if name in labels else None
            table = table.append_column(pa.field(name, column.type, metadata=told), column)
    return table


def _of_one_type(old: Any, new: Any, field: pa.Field) -> tuple[Any, Any]:
    """Returns two columns as one type: numbers as numbers, what else differs as text."""
    if new.type == field.type or pa.types.is_null(new.type) or field.name in FACT_COLUMNS.names:
        return old, new.cast(field.type)
    if pa.types.is_null(field.type):
        return old.cast(new.type), new
    is_number = [pa.types.is_integer(t) or pa.types.is_floating(t) for t in (field.type, new.type)]
    to = pa.float64() if all(is_number) else pa.string()
    return old.cast(to), new.cast(to)


def frame_ranges(table: pa.Table) -> np.ndarray | None:
    """Returns which steps of each episode are kept, (E, 2) int64 of first and one past the last.

    They are what the labels `keep_start` and `keep_stop` say, within the episode; where a label is
    null the episode is not cut on that side. None, if there are no such labels.
    """
    labels = own_columns(table.schema, "labels")
    found = [name for name in KEEP_COLUMNS if name in labels]
    if not any(pa.types.is_integer(table.schema.field(name).type) for name in found):
        return None
    length = table["length"].to_numpy()
    start, stop = (
        _filled(table, name, default)
        for name, default in zip(KEEP_COLUMNS, (np.zeros_like(length), length), strict=True)
    )
    start = np.clip(start, 0, length)
    return np.stack([start, np.clip(stop, start, length)], axis=1)


def _filled(table: pa.Table, name: str, default: np.ndarray) -> np.ndarray:
    if name not in table.column_names or not pa.types.is_integer(table.schema.field(name).type):
        return default
    column = table[name].combine_chunks().cast(pa.int64())
    return np.asarray(pc.if_else(pc.is_valid(column), column, pa.array(default)).to_numpy())
