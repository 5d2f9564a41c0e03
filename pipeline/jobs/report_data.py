"""What a report says of one version: counts, metrics, tables and chosen episodes, as plain data.

Nothing here draws or writes; nothing changes the store. Arrays are read later, of the few episodes
that are shown.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.jobs.report_compare import Comparison, compare
from pipeline.jobs.summary import describe, metric_values
from pipeline.quality.dataset import standard_errors
from pipeline.quality.registry import DERIVED, METRICS, Derived, Metric, chosen
from pipeline.store.store import Store, Version
from schemas.metrics import MeasureConfig
from schemas.version import Measure

FACTS = ("length", "episode_return")
"""Columns of numbers that every version has."""
EACH = 4
"""Episodes shown from either end of an order."""
MAX_GROUPS = 100
MAX_LISTED = 25
"""Episodes listed under one flag; the count is of all."""
MAX_REFUSED = 200
MAX_VERSIONS = 50
BOOTSTRAP, SEED = 200, 0
FAR = 3.0
"""Interquartile ranges above the third quartile from which a score is far out."""
IDLE = 0.5


@dataclass(frozen=True)
class MetricRow:
    """One measured metric over the episodes of the report."""

    name: str
    value: float | None
    standard_error: float | None
    coverage: float
    episodes: int
    score_set: str
    known: Metric | Derived | None
    """None for a metric that this release does not know."""


@dataclass(frozen=True)
class Grouped:
    """Episodes put together by one column."""

    by: str
    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    left_out: int
    """Groups that are not listed: the smallest."""


@dataclass(frozen=True)
class Flag:
    """Episodes worth a look, and why. Nothing was excluded."""

    title: str
    why: str
    count: int
    listed: list[tuple[str, str]]
    """Some episode ids and what was found in each."""


@dataclass(frozen=True)
class Pick:
    """One episode that is shown, and why."""

    episode_id: str
    why: list[str]
    facts: dict[str, Any]


@dataclass(frozen=True)
class TrendPoint:
    """A metric's value as one commit recorded it."""

    label: str
    value: float
    standard_error: float | None
    score_set: str


@dataclass(frozen=True)
class ReportData:
    """Everything on the page but plots and pictures."""

    ref: str
    """The version by branch and number, which never changes."""
    url: str
    facts: dict[str, Any]
    where: str | None
    of: int
    """Episodes of the whole version."""
    table: pa.Table
    """The report's episodes."""
    steps: int
    metrics: list[MetricRow]
    missing: list[Metric]
    columns: dict[str, np.ndarray]
    """(episodes,) float64 of each column of numbers that is plotted; NaN where there is none."""
    groups: list[Grouped]
    flags: list[Flag]
    copies: list[tuple[str, str]]
    refused: list[dict[str, Any]]
    refused_count: int
    log: list[dict[str, Any]]
    log_count: int
    trends: dict[str, list[TrendPoint]]
    picks: list[Pick]
    comparison: Comparison | None
    commands: list[tuple[str, str]]
    """What each is for, and the command line."""


def gather(
    store: Store, ref: str, where: str | None, against: str | None, out: str
) -> tuple[Version, ReportData]:
    """Returns a version and what a report says of it.

    Args:
        store: where.
        ref: the version.
        where: a filter; the report is of the episodes that it keeps.
        against: another version to compare with.
        out: the report's folder, for the command that makes it again.

    Raises:
        FilterError: if the filter does not fit the version.
        UnscoredError: if it hangs on scores that some episodes have not.
    """
    version = store.version(ref)
    whole = version.episodes()
    table = whole if where is None else version.episodes(where)
    metrics = _metrics(version, table)
    numbers = dict.fromkeys([*FACTS, *(m.name for m in metrics)])
    columns = {name: _numbers(table, name) for name in numbers if _has_numbers(table, name)}
    named = f"{version.branch}:{version.number}"
    refused = store.quarantine(named)
    log = store.log(named)
    there = {row.name for row in metrics}
    missing = [METRICS[name] for name in chosen(MeasureConfig()) if name not in there]
    return version, ReportData(
        ref=named,
        url=store.url,
        facts=describe(store, version),
        where=where,
        of=whole.num_rows,
        table=table,
        steps=int(pc.sum(table["length"]).as_py() or 0),
        metrics=metrics,
        missing=missing,
        columns=columns,
        groups=_groups(table, list(columns)),
        flags=_flags(table, columns),
        copies=_copies(table),
        refused=refused.slice(0, MAX_REFUSED).to_pylist(),
        refused_count=refused.num_rows,
        log=_log(store, log[:MAX_VERSIONS]),
        log_count=len(log),
        trends=_trends(log[:MAX_VERSIONS]),
        picks=_picks(table, columns),
        comparison=None if against is None else compare(store, version, columns, against, where),
        commands=_commands(store.url, named, version.branch, where, against, out, metrics, missing),
    )


def _metrics(version: Version, table: pa.Table) -> list[MetricRow]:
    """Measured metrics in the registry's order.

    Where episodes differ from those that were measured, standard errors are of these here.
    """
    order = {name: at for at, name in enumerate([*METRICS, *DERIVED])}
    rows = []
    for name, found in metric_values(version, table).items():
        known = METRICS.get(name) or DERIVED.get(name)
        error = found["standard_error"]
        if error is None and found["value"] is not None and _has_numbers(table, name):
            values = _numbers(table, name)
            scored = np.isfinite(values)
            by_steps = not isinstance(known, Metric) or known.weight == "steps"
            weights = _numbers(table, "length") if by_steps else np.ones(len(values))
            drawn = values[None, scored], weights[None, scored]
            (error,) = standard_errors(*drawn, BOOTSTRAP, SEED)
        rows.append(
            MetricRow(
                name=name,
                value=found["value"],
                standard_error=error,
                coverage=found["coverage"],
                episodes=found["episodes"],
                score_set=found["score_set"],
                known=known,
            )
        )
    return sorted(rows, key=lambda row: (order.get(row.name, len(order)), row.name))


def _has_numbers(table: pa.Table, name: str) -> bool:
    """True for a column of numbers: texts, and values of a whole version, are none."""
    if name not in table.column_names:
        return False
    kind = table.schema.field(name).type
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


def _numbers(table: pa.Table, name: str) -> np.ndarray:
    column = table[name].cast(pa.float64())
    return np.asarray(column.to_numpy(zero_copy_only=False), np.float64)


def _groups(table: pa.Table, numbers: Sequence[str]) -> list[Grouped]:
    """Tables per task, and per policy and kind where these tell episodes apart."""
    found = []
    for by in ("task", "policy", "kind"):
        values = table[by]
        if values.null_count == len(values) or (
            by == "kind" and pc.count_distinct(values).as_py() < 2
        ):
            continue
        means = [name for name in ("success", *numbers) if name in table.column_names]
        wanted = [("length", "count"), ("length", "sum"), *((name, "mean") for name in means)]
        grouped = table.group_by(by).aggregate(wanted)
        grouped = grouped.sort_by([("length_count", "descending"), (by, "ascending")])
        names = ["length_count", "length_sum", *(f"{name}_mean" for name in means)]
        rows = [
            (row[by], *(row[name] for name in names))
            for row in grouped.slice(0, MAX_GROUPS).to_pylist()
        ]
        left_out = max(grouped.num_rows - MAX_GROUPS, 0)
        heads = ["success rate" if name == "success" else name for name in means]
        found.append(Grouped(by, ("episodes", "steps", *heads), rows, left_out))
    return found


def _flags(table: pa.Table, columns: Mapping[str, np.ndarray]) -> list[Flag]:
    ids = table["episode_id"]
    found = []

    def add(title: str, why: str, mask: np.ndarray, said: Sequence[Any] | np.ndarray) -> None:
        at = np.flatnonzero(mask)
        if len(at):
            listed = [(ids[int(i)].as_py(), f"{said[int(i)]:.6g}") for i in at[:MAX_LISTED]]
            found.append(Flag(title, why, len(at), listed))

    if "integrity" in columns:
        values = columns["integrity"]
        add(
            "Faulty rows", "integrity below 1: NaN, Inf, clock, gap or end flag", values < 1, values
        )
    lengths = columns["length"]
    add("Very short", "one step or none", lengths <= 1, lengths)
    if "idle_fraction" in columns:
        values = columns["idle_fraction"]
        add("Mostly idle", f"idle_fraction of at least {IDLE:g}", values >= IDLE, values)
    for name in ("action_divergence", "transition_diversity"):
        values = columns.get(name, np.zeros(0))
        scored = values[np.isfinite(values)]
        if len(scored) >= 8:
            low, high = np.quantile(scored, [0.25, 0.75])
            edge = high + FAR * (high - low)
            why = f"{name} above {edge:.4g}: {FAR:g} interquartile ranges over the third quartile"
            add(f"Far out: {name}", why, values > edge, values)
    copied = pc.not_equal(table["final_observation"], "present").to_numpy()
    add("No true final observation", "the source dropped or repeated it", copied, lengths)
    ended = pc.or_(table["terminated"], table["truncated"]).to_numpy()
    add("No stated end", "neither terminated nor truncated", ~ended.astype(bool), lengths)
    return found


def _copies(table: pa.Table) -> list[tuple[str, str]]:
    """Episodes and the earlier ones that they are copies of."""
    if "duplicate_of" not in table.column_names:
        return []
    rows = table.select(["episode_id", "duplicate_of"]).filter(pc.is_valid(table["duplicate_of"]))
    return [(row["episode_id"], row["duplicate_of"]) for row in rows.to_pylist()]


def _log(store: Store, versions: Sequence[Version]) -> list[dict[str, Any]]:
    names: dict[str, list[str]] = {}
    for name, target in store.tags().items():
        names.setdefault(target.id, []).append(name)
    return [
        {
            "version": f"{v.branch}:{v.number}",
            "when": v.created_at.strftime("%Y-%m-%d %H:%M"),
            "episodes": v.commit.totals.episodes,
            "steps": v.commit.totals.steps,
            "tags": ", ".join(names.get(v.id, [])),
            "message": v.message,
        }
        for v in versions
    ]


def _trends(versions: Sequence[Version]) -> dict[str, list[TrendPoint]]:
    """Each metric's recorded values, oldest first; the commits say them, no state is read."""
    found: dict[str, list[TrendPoint]] = {}
    for version in reversed(versions):
        for operation in version.commit.operations:
            if not isinstance(operation, Measure):
                continue
            for name, record in operation.metrics.items():
                value = record.value
                if value.value is not None:
                    label = f"{version.branch}:{version.number}"
                    point = TrendPoint(label, value.value, value.standard_error, record.score_set)
                    found.setdefault(name, []).append(point)
    return found


def _picks(table: pa.Table, columns: Mapping[str, np.ndarray]) -> list[Pick]:
    """The ends of two orders; a few evenly spaced episodes where neither is there."""
    why: dict[int, list[str]] = {}
    for name, ends in (
        ("action_divergence", ("highest", "lowest")),
        ("episode_return", ("lowest", "highest")),
    ):
        values = columns.get(name, np.zeros(0))
        order = np.flatnonzero(np.isfinite(values))
        order = order[np.argsort(values[order], kind="stable")]
        each = min(EACH, max(len(order) // 2, 1))
        for end in ends if len(order) else ():
            for place, at in enumerate((order if end == "lowest" else order[::-1])[:each]):
                why.setdefault(int(at), []).append(f"{end} {name}, place {place + 1}")
    if not why:
        count = table.num_rows
        spaced = np.unique(np.linspace(0, count - 1, min(count, 2 * EACH)).astype(int))
        why = {int(at): ["one of some evenly spaced episodes"] for at in spaced}
    shown = ("task", "policy", "kind", "success", "terminated", "truncated", "source_key", *columns)
    return [
        Pick(
            episode_id=table["episode_id"][at].as_py(),
            why=said,
            facts={name: table[name][at].as_py() for name in shown if table[name][at].is_valid},
        )
        for at, said in why.items()
    ]


def _commands(
    url: str,
    ref: str,
    branch: str,
    where: str | None,
    against: str | None,
    out: str,
    metrics: Sequence[MetricRow],
    missing: Sequence[Metric],
) -> list[tuple[str, str]]:
    fixed = f"{url}@{ref}"
    again = ["penstock", "report", fixed, "--out", out]
    again += ["--where", where] if where is not None else []
    again += ["--against", against] if against is not None else []
    found = [
        ("Make this report again", again),
        ("The version's facts", ["penstock", "show", fixed]),
    ]
    if against is not None:
        found.append(("How far it drifted", ["penstock", "drift", url, against, ref]))
    if missing:
        found.append(("Measure what is missing", ["penstock", "measure", f"{url}@{branch}"]))
    worst = next((m.name for m in metrics if m.name == "action_divergence"), "length")
    rows = ["penstock", "episodes", fixed, f"--sort=-{worst}", "--limit", "10"]
    found.append(("Rows of episodes", rows))
    found.append(("Numbers of every field", ["penstock", "stats", fixed]))
    found.append(("Refused episodes", ["penstock", "quarantine", fixed]))
    if worst != "length":
        rule = f"{worst} < quantile({worst}, 0.5)"
        half = ["penstock", "curate", fixed, "--where", rule, "--preview"]
        found.append(("What the better half would be", half))
    return [(said, shlex.join(command)) for said, command in found]
