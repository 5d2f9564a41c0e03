"""Curves of runs and pairs of an ablation as SVG or PNG, with intervals over seeds.

Lines of one group share a colour and a dash, so that they can be told apart without colour: thin
ones are seeds, the thick one is their mean, and the band its 95 % interval.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from learners.checkpoint import load_checkpoint
from learners.comparison import Comparison
from learners.judge import group_of
from learners.runlog import EVALUATIONS, METRICS, read_table
from learners.scores import band
from schemas.errors import NotFoundError, UsageError, missing_extra

FORMATS = (".svg", ".png", ".pdf")
NOT_CURVES = ("step", "env_steps", "low", "high", "episodes", "waited_seconds")
_COLOURS = ("#2a6fbb", "#c4532d", "#3a8a4f", "#8a5aa8", "#8c7326", "#5d6b78")
_DASHES = ("-", "--", "-.", ":")
_STYLE: dict[str, Any] = {
    "font.size": 8.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "penstock",
    "text.parse_math": False,
}


@dataclass(frozen=True)
class Curves:
    """The tables of several runs of one group."""

    name: str
    seeds: tuple[Mapping[str, np.ndarray], ...]
    """Columns of each run, (points,) float64, NaN where a table says nothing; `x` is the step."""

    def mean(self, column: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns steps that all seeds have, their means (points,) and intervals (points, 2)."""
        kept = [_points(seed, column) for seed in self.seeds if column in seed]
        shared = sorted(set.intersection(*(set(one) for one in kept))) if kept else []
        if not shared:
            return np.zeros(0), np.zeros(0), np.zeros((0, 2))
        values = np.array([[one[step] for step in shared] for one in kept])
        return np.array(shared), values.mean(axis=0), band(values)


def plot_runs(runs: Sequence[Path], file: Path) -> tuple[str, ...]:
    """Draws losses, evaluations and regret of runs, seeds of one run together.

    Args:
        runs: their folders.
        file: where to, .svg, .png or .pdf.

    Returns:
        What was drawn: the columns, by their names in the tables.

    Raises:
        MissingExtraError: if matplotlib is not installed.
        NotFoundError: if the runs have no rows yet.
        UsageError: for another ending of the file.
    """
    groups = _groups(runs)
    names = list(dict.fromkeys(name for one in groups for seed in one.seeds for name in seed))
    columns = sorted((name for name in names if name not in ("x", *NOT_CURVES)), key=_rank)
    if not columns:
        raise NotFoundError("Expected runs with rows in their tables, came none; train first.")
    matplotlib, figures = _matplotlib(file)
    with matplotlib.rc_context(_STYLE):
        wide = min(3, len(columns))
        high = -(-len(columns) // wide)
        figure = figures(figsize=(3.3 * wide, 2.3 * high + 0.4), layout="constrained")
        panels = figure.subplots(high, wide, squeeze=False).ravel()
        for panel, column in zip(panels, columns, strict=False):
            for number, group in enumerate(groups):
                _draw(panel, group, column, _look(number))
            panel.set_title(column, loc="left", fontsize=8.5)
            panel.set_xlabel("updates")
        for panel in panels[len(columns) :]:
            panel.set_visible(False)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
        _save(figure, file)
    return tuple(columns)


def plot_comparison(found: Comparison, file: Path) -> None:
    """Draws the score of each version, a line per pair of seeds, and the differences.

    Args:
        found: what was compared.
        file: where to, .svg, .png or .pdf.

    Raises:
        MissingExtraError: if matplotlib is not installed.
        UsageError: for another ending of the file.
    """
    by_success = all(one.score == "success" for one in found.differences)
    scale, unit = (100.0, "success, %") if by_success else (1.0, "return")
    scores = [arm.score.success if by_success else arm.score.returns for arm in found.arms]
    spreads = [one for one in scores if one is not None]
    matplotlib, figures = _matplotlib(file)
    with matplotlib.rc_context(_STYLE):
        figure = figures(figsize=(7.2, 2.8), layout="constrained")
        left, right = figure.subplots(1, 2)
        at = np.arange(len(found.arms))
        for pair in np.array([one.seeds for one in spreads]).T:
            left.plot(at, scale * pair, color="#9a9a96", linewidth=0.7, marker=".", markersize=4)
        _marks(left, at, [(scale * one.mean, *(scale * np.array(one.interval))) for one in spreads])
        names = [f"{arm.letter}\n{arm.size.episodes:,} episodes" for arm in found.arms]
        left.set_xticks(at, names)
        left.set_ylabel(unit)
        left.set_title("each line is one seed", loc="left", fontsize=8.5)
        differences = [one.success if by_success else one.returns for one in found.differences]
        shown = [one for one in differences if one is not None]
        places = np.arange(len(shown))
        for place, one in zip(places, shown, strict=True):
            dots = scale * np.array(one.seeds)
            right.plot(np.full(len(dots), place), dots, ".", color="#9a9a96", markersize=4)
        _marks(right, places, [(scale * o.mean, *(scale * np.array(o.interval))) for o in shown])
        right.axhline(0.0, color="#3d3d3a", linewidth=0.8, linestyle="--")
        first = found.arms[0].letter
        right.set_xticks(places, [f"{one.letter} - {first}" for one in found.differences])
        right.set_xlim(-0.7, len(shown) - 0.3)
        right.set_title(
            "paired differences, 95 % over seeds and episodes", loc="left", fontsize=8.5
        )
        _save(figure, file)


def check_file(file: Path) -> None:
    """Refuses a file that could not be drawn, before anything takes long.

    Raises:
        MissingExtraError: if matplotlib is not installed.
        UsageError: for an ending that is not drawn.
    """
    _matplotlib(file)


def _matplotlib(file: Path) -> tuple[Any, Any]:
    if file.suffix not in FORMATS:
        raise UsageError(
            f"Expected a file that ends in {', '.join(FORMATS)}, came {file.name!r}.",
            where=str(file),
        )
    try:
        import matplotlib  # noqa: PLC0415 - an optional extra
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise missing_extra("plot", "matplotlib") from error
    return matplotlib, Figure


def _groups(runs: Sequence[Path]) -> list[Curves]:
    found: dict[str, list[Path]] = {}
    for run in runs:
        found.setdefault(group_of(load_checkpoint(run)), []).append(run)
    return [
        Curves(_name(paths), tuple(_columns(path) for path in paths)) for paths in found.values()
    ]


def _name(runs: Sequence[Path]) -> str:
    """What a legend calls a group: the run's folder, or that of its seeds."""
    told = json.loads((runs[0] / "run.json").read_bytes())
    place = runs[0] if len(runs) == 1 else runs[0].parent
    algo = str(told["config"].get("algo", told["kind"]))
    return (
        f"{place.name} ({algo}, {len(runs)} seeds)" if len(runs) > 1 else f"{place.name} ({algo})"
    )


def _columns(run: Path) -> dict[str, np.ndarray]:
    """Columns of a run's tables over all of their steps."""
    rows: dict[int, dict[str, float]] = {}
    for table in (METRICS, EVALUATIONS):
        for row in read_table(run / table):
            here = rows.setdefault(int(row["step"]), {})
            here.update({name: _number(text) for name, text in row.items()})
    names = dict.fromkeys(name for row in rows.values() for name in row)
    steps = sorted(rows)
    found = {name: np.array([rows[step].get(name, math.nan) for step in steps]) for name in names}
    kept = {name: column for name, column in found.items() if np.isfinite(column).any()}
    return {"x": np.array(steps, np.float64), **kept}


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _points(seed: Mapping[str, np.ndarray], column: str) -> dict[float, float]:
    values = seed[column]
    there = np.isfinite(values)
    return dict(zip(seed["x"][there].tolist(), values[there].tolist(), strict=True))


def _rank(column: str) -> int:
    """Scores first, then regret, then losses, then the rest."""
    scores = ("normalized_score", "success", "mean_return", "regret")
    if column in scores:
        return scores.index(column)
    return len(scores) + ("loss" not in column)


def _look(number: int) -> dict[str, Any]:
    dash = _DASHES[number // len(_COLOURS) % len(_DASHES)] if number >= len(_COLOURS) else None
    return {
        "color": _COLOURS[number % len(_COLOURS)],
        "linestyle": dash or _DASHES[number % len(_DASHES)],
    }


def _draw(panel: Any, group: Curves, column: str, look: Mapping[str, Any]) -> None:
    mark = {"marker": "o", "markersize": 3}
    if len(group.seeds) > 1:
        for seed in group.seeds:
            points = _points(seed, column) if column in seed else {}
            panel.plot(list(points), list(points.values()), linewidth=0.5, alpha=0.45, **look)
    steps, means, bands = group.mean(column)
    few = mark if len(steps) <= 12 else {}
    panel.plot(steps, means, linewidth=1.5, label=group.name, **few, **look)
    if len(group.seeds) > 1 and len(steps):
        panel.fill_between(steps, bands[:, 0], bands[:, 1], color=look["color"], alpha=0.15)


def _marks(panel: Any, at: np.ndarray, values: Sequence[tuple[float, float, float]]) -> None:
    means, lows, highs = (np.array(column) for column in zip(*values, strict=True))
    bars = np.array([means - lows, highs - means]).clip(min=0.0)
    panel.errorbar(at, means, bars, fmt="D", color=_COLOURS[0], capsize=4, markersize=5, zorder=3)


def _save(figure: Any, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"Date": None} if file.suffix == ".svg" else None
    figure.savefig(file, dpi=130, metadata=metadata)
