"""What differs between two versions: episodes added, removed, scored anew, labelled anew."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.store.catalog import Catalog
from pipeline.store.labels import FREE_FACTS
from pipeline.store.tables import episode_table
from schemas.table import METRIC_COLUMNS, own_columns
from schemas.version import Commit


@dataclass(frozen=True)
class Changes:
    """Episode ids in the order of the version that has them."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    rescored: tuple[str, ...]
    replaced: tuple[str, ...] = ()
    """In both, with other content."""
    relabelled: tuple[str, ...] = ()
    """In both, with the same content and other labels, returns or corrected facts."""


def diff(catalog: Catalog, one: Commit, two: Commit) -> Changes:
    """Returns what changed from one version to another."""
    before, after = episode_table(catalog, one), episode_table(catalog, two)
    kept = pc.index_in(after["episode_id"], value_set=before["episode_id"].combine_chunks())
    gone = pc.is_in(before["episode_id"], value_set=after["episode_id"].combine_chunks())
    shared = after.filter(pc.is_valid(kept))
    old = before.take(pc.drop_null(kept))
    is_replaced = pc.not_equal(old["digest"], shared["digest"])
    changed = _any_differs(old, shared, METRIC_COLUMNS)
    labels = {*own_columns(before.schema, "labels"), *own_columns(after.schema, "labels")}
    labelled = _any_differs(old, shared, (*FREE_FACTS, "episode_return", *sorted(labels)))
    return Changes(
        added=tuple(after.filter(pc.is_null(kept))["episode_id"].to_pylist()),
        removed=tuple(before.filter(pc.invert(gone))["episode_id"].to_pylist()),
        rescored=tuple(shared.filter(pc.and_not(changed, is_replaced))["episode_id"].to_pylist()),
        replaced=tuple(shared.filter(is_replaced)["episode_id"].to_pylist()),
        relabelled=tuple(
            shared.filter(pc.and_not(labelled, is_replaced))["episode_id"].to_pylist()
        ),
    )


def _any_differs(old: pa.Table, new: pa.Table, names: Iterable[str]) -> pa.ChunkedArray:
    """Says which rows differ in some of the columns, where one of the tables has them."""
    changed = pa.chunked_array([pa.array([False] * new.num_rows, pa.bool_())])
    for name in names:
        if name in new.column_names or name in old.column_names:
            changed = pc.or_(changed, _differs(_column(old, name), _column(new, name)))
    return changed


def _column(table: pa.Table, name: str) -> pa.ChunkedArray:
    if name in table.column_names:
        column = table[name]
        return column.cast(pa.float64()) if pa.types.is_integer(column.type) else column
    return pa.chunked_array([pa.nulls(table.num_rows)])


def _differs(old: pa.ChunkedArray, new: pa.ChunkedArray) -> pa.ChunkedArray:
    """Says where two columns differ; null and NaN are both no score."""
    gone, missing = pc.is_null(old, nan_is_null=True), pc.is_null(new, nan_is_null=True)
    if pa.types.is_null(old.type) or pa.types.is_null(new.type):
        return pc.not_equal(gone, missing)
    if old.type != new.type:
        old, new = old.cast(pa.string()), new.cast(pa.string())
    unequal = pc.fill_null(pc.not_equal(old, new), False)
    unequal = pc.and_not(unequal, pc.and_(gone, missing))
    return pc.or_(unequal, pc.not_equal(gone, missing))
