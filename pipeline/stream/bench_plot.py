"""A plot of `penstock bench stream`: everybody's share of the ceiling, per workload."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.stream.bench_cases import TITLES
from schemas.errors import missing_extra

_COLOURS = {"ours": "#2a78d6", "peer": "#9a9a96"}
_INK = "#3d3d3a"
_ROW = 0.23  # inches per contender
_STYLE = {
    "font.family": "sans-serif",
    "font.size": 8.0,
    "axes.edgecolor": "#b8b8b2",
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "svg.fonttype": "none",
    "svg.hashsalt": "penstock",
}


def plot_stream(result: Mapping[str, Any], file: Path) -> None:
    """Draws shares of the ceiling on a log axis, one panel per workload.

    Args:
        result: what `bench_stream` returned.
        file: where to, .png or .svg.

    Raises:
        MissingExtraError: if matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: PLC0415 - an optional extra
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise missing_extra("plot", "matplotlib") from error
    panels = {
        name: [row for row in rows if row["kind"] in _COLOURS and row["best_of_ceiling"]]
        for name, rows in result["workloads"].items()
    }
    panels = {name: rows for name, rows in panels.items() if rows}
    with matplotlib.rc_context(_STYLE):
        heights = [len(rows) + 2.5 for rows in panels.values()]
        figure = Figure(figsize=(7.2, _ROW * sum(heights) + 0.5), layout="constrained")
        axes = figure.subplots(len(panels), 1, squeeze=False, sharex=True, height_ratios=heights)
        for (name, rows), axis in zip(panels.items(), axes[:, 0], strict=True):
            _panel(axis, name, rows)
        axes[-1, 0].set_xlabel("share of the physical ceiling, batches or rows per CPU second")
        metadata = {"Date": None} if file.suffix == ".svg" else None
        figure.savefig(file, dpi=110, metadata=metadata)


def _panel(axis: Any, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    places = range(len(rows))[::-1]
    shares = [row["best_of_ceiling"] for row in rows]
    colours = [_COLOURS[row["kind"]] for row in rows]
    axis.hlines(places, 1e-5, shares, color=colours, linewidth=1.2, alpha=0.5)
    axis.scatter(shares, places, color=colours, s=22, zorder=3)
    axis.axvline(1, color=_INK, linewidth=0.8, linestyle="--")
    for place, share in zip(places, shares, strict=True):
        axis.annotate(
            f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %",
            (share, place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
        )
    axis.set_xscale("log")
    axis.set_xlim(1e-5, 4)
    axis.set_ylim(-0.7, len(rows) - 0.3)
    axis.set_yticks(list(places), [_label(row) for row in rows])
    axis.tick_params(axis="y", length=0)
    axis.set_title(f"{name}: {TITLES[name]}", loc="left", fontsize=8.5, fontweight="bold")


def _label(row: Mapping[str, Any]) -> str:
    """The name, marked where what is delivered is not what the source holds."""
    return f"{row['name']}{' *' * bool(row['checks']['failing'])}"
