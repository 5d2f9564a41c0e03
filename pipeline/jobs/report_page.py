"""A version as one HTML file for people who look before they read: plots, episodes, commands.

The page needs no network and runs no script: a policy in its head forbids both. Jinja escapes every
text, and only the SVG that `report_plots` draws goes in as it is, which holds no text of the data.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.jobs.report_data import MAX_LISTED, ReportData, gather
from pipeline.jobs.report_episodes import Shower
from pipeline.jobs.report_plots import MAX_POINTS, Plots
from pipeline.quality.registry import DERIVED, METRICS
from pipeline.store.store import Store
from schemas.errors import UsageError, missing_extra

PAGE = "index.html"
MARK = '<meta name="generator" content="penstock report">'
"""Tells a page of ours, which is written anew, from one of somebody else's, which is not."""
PAIRS = (
    ("action_divergence", "transition_diversity"),
    ("action_divergence", "episode_return"),
    ("length", "episode_return"),
    ("state_similarity", "coverage"),
    ("smoothness", "idle_fraction"),
)
"""Columns that say something together: first the horizontal one."""
MAX_TEXT = 200
"""Characters of a text on the page."""
_DATA, _PLOTS = 10, 50
"""Percent of the work that is done after the data, and after the plots."""


@dataclass(frozen=True)
class Written:
    """A report that was made."""

    out: str
    files: list[str]
    episodes: int


def write_report(
    store: Store,
    ref: str,
    out: str | Path,
    *,
    where: str | None = None,
    against: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> Written:
    """Writes `index.html` about a version into a folder.

    Args:
        store: where the version is; nothing in it changes.
        ref: the version.
        out: the folder, made if there is none; an older report in it is replaced.
        where: a filter: the report is of the episodes that it keeps.
        against: another version, to compare distributions with.
        progress: hears how much is done, in percent.

    Raises:
        UsageError: if the folder holds an `index.html` that is no report, or is not writable.
        MissingExtraError: if Jinja2 or matplotlib is not installed.
    """
    heard = progress or (lambda _percent: None)
    folder = Path(out)
    _check_free(folder)
    plots = Plots()
    template = _template()
    version, data = gather(store, ref, where, against, str(out))
    heard(_DATA)
    drawn = _drawn(data, plots)
    heard(_PLOTS)
    shower = Shower(version, plots)
    shown = []
    for number, pick in enumerate(data.picks):
        shown.append(shower.show(pick))
        heard(_PLOTS + (100 - _PLOTS) * (number + 1) // len(data.picks))
    text = template.render(data=data, drawn=drawn, shown=shown, mark=MARK, limits=_LIMITS)
    _write(folder, text)
    heard(100)
    return Written(str(folder), [PAGE], data.table.num_rows)


_LIMITS = {"listed": MAX_LISTED, "points": MAX_POINTS}


@dataclass(frozen=True)
class Panel:
    """One plot with what stands around it."""

    title: str
    said: str
    svg: str
    unit: str = ""


@dataclass(frozen=True)
class Drawn:
    """The plots of a page."""

    distributions: list[Panel]
    scatters: list[Panel]
    trends: list[Panel]


def _drawn(data: ReportData, plots: Plots) -> Drawn:
    sections = {pick.episode_id: f"#episode-{at}" for at, pick in enumerate(data.picks)}
    ids = data.table["episode_id"]
    at = {ids[i].as_py(): i for i in _positions(ids, sections)}
    links = {at[name]: (address, _short(name)) for name, address in sections.items()}
    return Drawn(
        distributions=[_distribution(data, plots, name) for name in data.columns],
        scatters=[
            _scatter(data, plots, pair, links)
            for pair in PAIRS
            if all(_varies(data.columns.get(name)) for name in pair)
        ],
        trends=[_trend(data, plots, n) for n, points in data.trends.items() if len(points) > 1],
    )


def _positions(ids: pa.ChunkedArray, wanted: Any) -> list[int]:
    mask = np.isin(np.asarray(ids.to_pylist(), object), list(wanted))
    return [int(at) for at in np.flatnonzero(mask)]


def _distribution(data: ReportData, plots: Plots, name: str) -> Panel:
    values = data.columns[name]
    other = None if data.comparison is None else data.comparison.columns.get(name)
    finite = values[np.isfinite(values)]
    if len(finite) and not _varies(finite):
        said = f"{len(finite):,} episodes, all at {finite[0]:.4g}"
    elif len(finite):
        low, middle, high = np.quantile(finite, [0.05, 0.5, 0.95])
        said = (
            f"{len(finite):,} episodes, mean {finite.mean():.4g}, median {middle:.4g}, "
            f"90 % of them within {low:.4g} and {high:.4g}"
        )
    else:
        said = "No episode has a value"
    plot = plots.histogram(values, f"Histogram. {said}.", other)
    if plot and other is not None and data.comparison is not None:
        said += f"; the dashed line is {data.comparison.ref}"
    if len(finite) < len(values) and len(finite):
        said += f"; {len(values) - len(finite):,} have none"
    return Panel(name, f"{said}.", plot, _unit(name))


def _scatter(
    data: ReportData, plots: Plots, pair: tuple[str, str], links: dict[int, tuple[str, str]]
) -> Panel:
    x, y = (data.columns[name] for name in pair)
    success = data.table["success"].cast(pa.int8()).fill_null(-1)
    outcome = success.to_numpy().astype(np.int8)
    both = int((np.isfinite(x) & np.isfinite(y)).sum())
    said = f"{both:,} episodes that have both values"
    if both > MAX_POINTS:
        said += f"; about {MAX_POINTS:,} evenly spaced ones are drawn"
    said += ". Ringed ones link to their section."
    alt = f"Scatter plot of {pair[1]} over {pair[0]}. {said}"
    return Panel(f"{pair[1]} over {pair[0]}", said, plots.scatter(x, y, outcome, pair, links, alt))


def _trend(data: ReportData, plots: Plots, name: str) -> Panel:
    points = data.trends[name]
    sets = len({point.score_set for point in points})
    said = f"{len(points)} measurements, {points[0].label} to {points[-1].label}"
    if sets > 1:
        said += f", against {sets} references: values of different references do not compare"
    svg = plots.trend(
        [point.value for point in points],
        [point.standard_error for point in points],
        f"Recorded values. {said}.",
    )
    return Panel(name, f"{said}.", svg, _unit(name))


def _unit(name: str) -> str:
    known = METRICS.get(name) or DERIVED.get(name)
    return known.unit if known else ""


def _varies(values: np.ndarray | None) -> bool:
    if values is None:
        return False
    finite = values[np.isfinite(values)]
    return bool(len(finite) > 1 and finite.min() < finite.max())


def _template() -> Any:
    try:
        from jinja2 import Environment, StrictUndefined  # noqa: PLC0415 (an optional extra)
        from markupsafe import Markup  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise missing_extra("report", "jinja2") from error
    here = resources.files("pipeline.jobs")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(short=_short, said=_said, svg=Markup)
    environment.globals["style"] = Markup((here / "report.css").read_text(encoding="utf-8"))
    return environment.from_string((here / "report.html.jinja").read_text(encoding="utf-8"))


def _short(value: object) -> str:
    """A text of the data, cut to a size a page can bear."""
    text = str(value)
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}…"


def _said(value: object) -> str:
    """One value as a person would write it."""
    if value is None:
        return "–"  # noqa: RUF001 - what a table shows for nothing
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else _short(value)


def _check_free(folder: Path) -> None:
    page = folder / PAGE
    if folder.exists() and not folder.is_dir():
        raise UsageError("Expected a folder for the report, came a file.", where=str(folder))
    if page.is_symlink() or page.exists():
        is_ours = page.is_file() and not page.is_symlink()
        if is_ours:
            with page.open("rb") as file:
                is_ours = MARK.encode() in file.read(2_000)
        if not is_ours:
            raise UsageError(
                "Expected a folder without an index.html of somebody else, came one with it; "
                "name another --out.",
                where=str(page),
            )


def _write(folder: Path, text: str) -> None:
    """Puts the page in its place, whole or not at all."""
    draft = folder / f".{PAGE}.{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, folder / PAGE)  # noqa: PTH105 - says that it replaces
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise UsageError(
            f"Could not write the report: {error.strerror or error}; name another --out.",
            where=str(folder),
        ) from error
