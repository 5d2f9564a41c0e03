"""The page of one version: facts, metrics, how episodes lie and are spread, tasks; and their rows.

Work on a page is bounded whatever the version holds: a scatter plot draws evenly spaced episodes,
tables come in pages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from fastapi import Query, Request, Response
from markupsafe import Markup
from pydantic import Field

from pipeline.quality.registry import DERIVED, METRICS
from pipeline.service.state import ControlState
from pipeline.service.versions import Ref
from pipeline.service.web.columns import FACTS, is_number, number_columns, numbers, telling
from pipeline.service.web.forms import Column, PageNumber, Pages, Text
from pipeline.service.web.pages import page, problem_of, short
from pipeline.service.web.svg import MAX_POINTS, SHAPES, histogram, key, scatter
from pipeline.store.store import Version
from pipeline.store.tables import pick_columns
from schemas.document import Document
from schemas.errors import UsageError

MAX_TASKS = 100
MAX_SOURCES = 50
MAX_COLUMNS = 12
"""Metric columns of a table of episodes."""
SHOWN = ("episode_id", "task", "kind", "success", "length", "episode_return")
"""Columns that a table of episodes begins with."""
PAIRS = (
    ("action_divergence", "transition_diversity"),
    ("action_divergence", "episode_return"),
    ("length", "episode_return"),
)
"""Columns that say something together: first the horizontal one."""


class VersionQuery(Document):
    """What the page plots."""

    x: Column = None
    y: Column = None
    colour: Literal["success", "kind"] = "success"
    column: Annotated[list[Annotated[str, Field(max_length=256)]], Field(max_length=6)] = Field(
        default_factory=list
    )
    """Of the distributions."""


class RowsQuery(Document):
    """Which rows of episodes a page shows."""

    where: Text = None
    sort: Column = None
    """A column; -NAME descends."""
    page: PageNumber = 1


@dataclass(frozen=True)
class Panel:
    """One distribution with its words."""

    name: str
    unit: str
    said: str
    plot: Markup


async def version(request: Request, ref: Ref, query: Annotated[VersionQuery, Query()]) -> Response:
    """One version."""
    return await page(request, "version.html", _version, ref, query)


async def rows(request: Request, ref: Ref, query: Annotated[RowsQuery, Query()]) -> Response:
    """Its episodes, a page at a time."""
    return await page(request, "episodes.html", _rows, ref, query)


def panels(table: pa.Table, names: list[str], kept: np.ndarray | None = None) -> list[Panel]:
    """Returns the distributions of some columns; with a mask, of the kept episodes within all.

    Args:
        table: rows of episodes.
        names: columns of numbers.
        kept: (rows,) bool.
    """
    found = []
    for name in names:
        values = numbers(table, name)
        words = _spread(values) if kept is None else f"kept: {_spread(values[kept])}"
        known = METRICS.get(name) or DERIVED.get(name)
        plot = histogram(values, f"Histogram of {short(name)}: {words}", kept)
        found.append(Panel(name, known.unit if known else "", words, plot))
    return found


# -- in threads ----------------------------------------------------------------------------------


def _version(state: ControlState, ref: str, query: VersionQuery) -> dict[str, Any]:
    found = state.store.version(ref)
    table = found.episodes()
    facts = state.describe(state.store, found)
    return {
        "version": found,
        "ref": f"{found.branch}:{found.number}",
        "facts": facts,
        "sources": facts["sources"][:MAX_SOURCES],
        "known": {**METRICS, **DERIVED},
        "columns": number_columns(table),
        "query": query,
        "cloud": _cloud(table, query),
        "panels": panels(table, query.column or telling(table)),
        "tasks": _tasks(table),
        "is_head": _is_head(state, found),
    }


def _cloud(table: pa.Table, query: VersionQuery) -> dict[str, Any] | None:
    """The scatter plot and its words; None for a version without numbers."""
    known = number_columns(table)
    pair = next((p for p in PAIRS if set(p) <= set(known) and _has_both(table, p)), None)
    default = pair or (known[0], known[-1]) if known else None
    if default is None or not table.num_rows:
        return None
    names = (query.x or default[0], query.y or default[1])
    x, y = (numbers(table, name) for name in names)
    both = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    drawn = both[:: max(1, -(-len(both) // MAX_POINTS))]
    groups, legend = _groups(table, query.colour)
    there = set(groups[drawn].tolist())
    words = f"{len(both):,} of {len(x):,} episodes have both values"
    if len(drawn) < len(both):
        words += f"; {len(drawn):,} evenly spaced ones are drawn"
    ids = table["episode_id"].take(pa.array(drawn)).to_pylist()
    marks = [(int(at), short(name)) for at, name in zip(drawn, ids, strict=True)]
    alt = f"{names[1]} over {names[0]}: {words}"
    plot = (
        scatter(x[drawn], y[drawn], groups[drawn], marks, names, alt) if len(drawn) else Markup("")
    )
    return {
        "x": names[0],
        "y": names[1],
        "plot": plot,
        "said": words,
        "legend": [(key(at), name) for at, name in enumerate(legend) if at in there],
    }


def _has_both(table: pa.Table, pair: tuple[str, ...]) -> bool:
    return all(table[name].null_count < table.num_rows for name in pair)


def _groups(table: pa.Table, by: str) -> tuple[np.ndarray, list[str]]:
    """The group of each episode, (rows,) int, and the names of groups; the last are the others."""
    if by == "success":
        outcome = table["success"].cast(pa.int8()).fill_null(2).to_numpy()
        return np.asarray([1, 0, 2])[outcome], ["success", "failure", "not stated"]
    counts = pc.value_counts(table[by]).to_pylist()
    ordered = [one["values"] for one in sorted(counts, key=lambda one: -one["counts"])]
    shown = ordered[: len(SHAPES) - (len(ordered) > len(SHAPES))]
    at = {name: group for group, name in enumerate(shown)}
    groups = [at.get(name, len(shown)) for name in table[by].to_pylist()]
    others = ["others"] if len(ordered) > len(shown) else []
    return np.asarray(groups), [*(str(n or "not stated") for n in shown), *others]


def _spread(values: np.ndarray) -> str:
    finite = values[np.isfinite(values)]
    if not len(finite):
        return "no episode has a value"
    if finite.min() == finite.max():
        return f"{len(finite):,} episodes, all at {finite[0]:.4g}"
    low, middle, high = np.quantile(finite, [0.05, 0.5, 0.95])
    lack = len(values) - len(finite)
    return (
        f"mean {finite.mean():.4g}, median {middle:.4g}, 90 % within {low:.4g} and {high:.4g}"
        + (f"; {lack:,} without a value" if lack else "")
    )


def _tasks(table: pa.Table) -> dict[str, Any]:
    """Episodes by task, the most frequent first."""
    means = [name for name in telling(table) if name not in FACTS] if table.num_rows else []
    wanted = [("length", "count"), ("length", "sum"), ("success", "mean")]
    wanted += [(name, "mean") for name in ("episode_return", *means)]
    found = table.group_by("task").aggregate(wanted)
    found = found.sort_by([("length_count", "descending"), ("task", "ascending")])
    return {
        "columns": ["episode_return", *means],
        "rows": found.slice(0, MAX_TASKS).to_pylist(),
        "more": max(0, found.num_rows - MAX_TASKS),
    }


def _is_head(state: ControlState, found: Version) -> bool:
    head = state.store.catalog.refs.head(found.branch)
    return head is not None and head.id == found.id


def _rows(state: ControlState, ref: str, query: RowsQuery) -> dict[str, Any]:
    found = state.store.version(ref)
    whole = found.episodes()
    values: dict[str, Any] = {
        "version": found,
        "ref": f"{found.branch}:{found.number}",
        "query": query,
        "of": whole.num_rows,
    }
    try:
        table = whole if query.where is None else found.episodes(query.where)
        table = _sorted(table, query.sort)
    except UsageError as error:
        table = whole.slice(0, 0)
        values |= problem_of(error)
    others = [n for n in number_columns(whole) if n not in (*SHOWN, "seed", "fps")][:MAX_COLUMNS]
    names = [*SHOWN, *others]
    pages = Pages(query.page, table.num_rows)
    shown = table.select(names).slice(pages.start, pages.stop - pages.start)
    numeric = {name for name in names if is_number(whole.schema.field(name).type)}
    return {
        **values,
        "names": names,
        "numeric": numeric,
        "pages": pages,
        "rows": shown.to_pylist(),
    }


def _sorted(table: pa.Table, sort: str | None) -> pa.Table:
    if sort is None:
        return table
    name = sort.removeprefix("-")
    pick_columns(table, [name])
    return table.sort_by([(name, "descending" if sort.startswith("-") else "ascending")])
