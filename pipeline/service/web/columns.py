"""Columns of numbers of a version's episodes, as plots take them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from pipeline.quality.registry import METRICS
from pipeline.store.tables import pick_columns
from schemas.errors import UsageError

FACTS = ("length", "episode_return")
MAX_SHOWN = 6
"""Distributions on a page."""


def is_number(kind: pa.DataType) -> bool:
    """True for columns of floats and integers."""
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


def number_columns(table: pa.Table) -> list[str]:
    """Returns the names of columns of numbers: metrics, then lengths and returns, then others."""
    names = [field.name for field in table.schema if is_number(field.type)]
    order = {name: at for at, name in enumerate([*METRICS, *FACTS])}
    return sorted(names, key=lambda name: order.get(name, len(order)))


def numbers(table: pa.Table, name: str) -> np.ndarray:
    """Returns a column as (rows,) float64, null as NaN.

    Raises:
        UnknownNameError: if there is no such column, naming the nearest.
        UsageError: if it is none of numbers.
    """
    column = pick_columns(table, [name])[name]
    if not is_number(column.type):
        raise UsageError(f"Expected a column of numbers, came {name[:64]!r} of {column.type}.")
    return np.asarray(column.cast(pa.float64(), safe=False).to_numpy(), np.float64)


def telling(table: pa.Table, first: Sequence[str] = ()) -> list[str]:
    """Returns some columns worth a plot: named ones, then those whose values differ."""
    known = number_columns(table)
    chosen = [name for name in dict.fromkeys(first) if name in known]
    for name in known:
        if len(chosen) >= MAX_SHOWN:
            break
        if name in chosen or name in ("seed", "fps"):
            continue
        values = numbers(table, name)
        finite = values[np.isfinite(values)]
        if len(finite) and finite.min() < finite.max():
            chosen.append(name)
    return chosen[:MAX_SHOWN]
