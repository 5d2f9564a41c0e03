"""From a filter to a mask over the episode table, with the rule for episodes without a score."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.store.tables import public_columns
from schemas import filter as filters
from schemas.errors import UnscoredError
from schemas.table import METRIC_COLUMNS

Unscored = Literal["keep", "drop"]


@dataclass(frozen=True)
class Choice:
    """What a filter keeps."""

    mask: np.ndarray  # (episodes,) bool
    resolved: str
    """The filter with its quantiles replaced by the numbers they stood for."""
    columns: frozenset[str]
    """Columns that it reads."""
    thresholds: Mapping[str, Mapping[str, float | None]]
    """What its quantiles within groups stood for, by text and group."""


def choose(
    table: pa.Table,
    where: str,
    *,
    metrics: Collection[str] = METRIC_COLUMNS,
    unscored: Unscored | None = None,
) -> Choice:
    """Runs a filter over an episode table.

    Args:
        table: as `tables.episode_table` returns it.
        where: the filter's text.
        metrics: names of metric columns.
        unscored: what to do with an episode whose fate hangs on a score it has not; by default
            that is an error.

    Raises:
        FilterError: if the text does not parse or does not type-check.
        UnscoredError: if a metric decides and some candidates have none.
    """
    tree = filters.parse(where)
    columns = frozenset(filters.columns_of(tree))
    known = public_columns(table)
    for name in sorted(columns & set(metrics) - set(known)):
        raise UnscoredError(
            f"Expected the metric {name!r} to be measured, came a version without it; run "
            f"`penstock measure` first."
        )
    filters.check(tree, {name: table.schema.field(name).type for name in known})
    tree = filters.resolve(tree, table)
    thresholds = filters.group_quantiles(tree, table)
    mask, unknown = filters.evaluate_with_nulls(tree, table)
    deciding = columns & set(metrics) - set(filters.null_tested_columns(tree))
    null = np.zeros(len(mask), bool)
    for name in deciding:
        null |= pc.is_null(table[name], nan_is_null=True).to_numpy()
    open_rows = unknown & null
    if open_rows.any() and unscored is None:
        raise UnscoredError(
            f"Expected a score in {', '.join(sorted(deciding))} for every candidate, came "
            f"{int(open_rows.sum())} without; run `penstock measure`, or say --unscored keep|drop."
        )
    if unscored == "keep":
        mask = mask | open_rows
    return Choice(mask, str(tree), columns, thresholds)
