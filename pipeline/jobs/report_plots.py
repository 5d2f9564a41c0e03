"""Plots of a report as inline SVG, readable without colour: shapes, dashes and positions tell.

No text that came from data enters a plot: names stand in the page around it, where they are
escaped. Lines and texts take the colour of the page, so that it can be dark.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from schemas.errors import missing_extra

MAX_BINS = 40
MAX_POINTS = 2_000
"""Points of a scatter plot; of more episodes, evenly spaced ones are drawn."""
MAX_TRACES = 12
MAX_STEPS = 400
"""Points of a line; of longer episodes, evenly spaced steps are drawn."""
_INK = "#010203"
"""Stands for the page's own colour of text until the SVG is done."""
_FILL, _OTHER = "#4477aa", "#cc6677"
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "penstock",
    "text.parse_math": False,
    "font.size": 8,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor"), _INK),
    **dict.fromkeys(("xtick.color", "ytick.color"), _INK),
    "axes.spines.top": False,
    "axes.spines.right": False,
}
Outcome = np.ndarray
"""(episodes,) int8: 1 success, 0 failure, -1 not stated."""


class Plots:
    """Draws the plots of one page; each gets ids of its own."""

    def __init__(self) -> None:
        """Raises: MissingExtraError, if matplotlib is not installed."""
        try:
            import matplotlib  # noqa: PLC0415 (an optional extra)
            from matplotlib.figure import Figure  # noqa: PLC0415
        except ModuleNotFoundError as error:
            raise missing_extra("report", "matplotlib") from error
        self._matplotlib, self._figure = matplotlib, Figure
        self._count = 0

    def histogram(self, values: np.ndarray, alt: str, other: np.ndarray | None = None) -> str:
        """Bars of one column; of another version as a dashed outline, both as shares then.

        Args:
            values: (n,) float64, NaN left out.
            alt: what it shows, in words.
            other: (m,) float64 of the other version.

        Returns:
            SVG; empty if there is nothing to draw, as for equal values.
        """
        mine = values[np.isfinite(values)]
        theirs = np.zeros(0) if other is None else other[np.isfinite(other)]
        edges = _edges(np.concatenate([mine, theirs]))
        if not len(mine) or edges is None:
            return ""
        is_share = len(theirs) > 0

        def heights(column: np.ndarray) -> np.ndarray:
            counts = np.histogram(column, edges)[0].astype(float)
            return counts / len(column) if is_share else counts

        with self._matplotlib.rc_context(_STYLE):
            figure, axes = self._axes(3.4, 1.7)
            axes.stairs(heights(mine), edges, fill=True, color=_FILL, alpha=0.75)
            if is_share:
                axes.stairs(heights(theirs), edges, color=_INK, linestyle="--", linewidth=1.2)
            axes.set_ylabel("share of episodes" if is_share else "episodes")
            return self._svg(figure, alt)

    def scatter(
        self,
        x: np.ndarray,
        y: np.ndarray,
        outcome: Outcome,
        labels: tuple[str, str],
        links: Mapping[int, tuple[str, str]],
        alt: str,
    ) -> str:
        """One mark per episode; those with a section on the page are ringed and link to it.

        Args:
            x: (episodes,) float64.
            y: (episodes,) float64.
            outcome: circle, cross or dot.
            labels: of the axes; ours, not the data's.
            links: position of an episode to its section's address and its name.
            alt: what it shows, in words.
        """
        finite = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
        drawn = finite[:: max(1, -(-len(finite) // MAX_POINTS))]
        marks = ((1, "o", "success"), (0, "x", "failure"), (-1, ".", "no outcome stated"))
        with self._matplotlib.rc_context(_STYLE):
            figure, axes = self._axes(4.6, 3.2)
            for value, mark, said in marks:
                at = drawn[outcome[drawn] == value]
                colour = _OTHER if value == 0 else _FILL
                if len(at):
                    face = {"facecolors": "none"} if mark == "o" else {}
                    tone = {"edgecolors": colour} if mark == "o" else {"c": colour}
                    style = {"s": 18, "linewidths": 0.9, "marker": mark, **face, **tone}
                    axes.scatter(x[at], y[at], label=said, **style)
            ringed = [at for at in links if np.isfinite(x[at]) and np.isfinite(y[at])]
            if ringed:
                style = {"s": 70, "facecolors": "#ffffff01", "edgecolors": _INK, "linewidths": 0.8}
                rings = axes.scatter(x[ringed], y[ringed], label="shown below", **style)
                rings.set_urls([links[at][0] for at in ringed])
            axes.set(xlabel=labels[0], ylabel=labels[1])
            figure.legend(fontsize=7, frameon=False, loc="outside upper left", ncols=4)
            titles = {links[at][0]: links[at][1] for at in ringed}
            return self._svg(figure, alt, titles)

    def strips(
        self, actions: np.ndarray | None, rewards: np.ndarray | None, discrete: bool, alt: str
    ) -> str:
        """Actions of one episode, one line per dim above the other, and rewards under them.

        Args:
            actions: (T, A) float64, or None.
            rewards: (T,) float64, or None.
            discrete: draw actions as steps.
            alt: what it shows, in words.
        """
        if actions is not None and not actions.size:
            actions = None
        if rewards is not None and not len(rewards):
            rewards = None
        if actions is None and rewards is None:
            return ""
        dims = 0 if actions is None else min(actions.shape[1], MAX_TRACES)
        heights = [*([0.35 + 0.2 * dims] if dims else []), *([0.6] if rewards is not None else [])]
        with self._matplotlib.rc_context(_STYLE):
            figure = self._figure(figsize=(6.4, sum(heights) + 0.5))
            figure.subplots_adjust(
                left=0.09, right=0.99, top=0.98, bottom=0.42 / figure.get_figheight()
            )
            grid = figure.add_gridspec(len(heights), 1, height_ratios=heights, hspace=0.12)
            panels = [figure.add_subplot(grid[row]) for row in range(len(heights))]
            if actions is not None:
                _traces(panels[0], actions[:, :dims], "steps-post" if discrete else "default")
            if rewards is not None:
                steps = _drawn(len(rewards))
                panels[-1].plot(steps, _finite(rewards[steps]), color=_OTHER, linewidth=0.9)
                panels[-1].set_ylabel("reward")
            for panel in panels[:-1]:
                panel.set_xticklabels([])
            panels[-1].set_xlabel("step")
            return self._svg(figure, alt)

    def trend(self, values: Sequence[float], errors: Sequence[float | None], alt: str) -> str:
        """A metric's recorded values, oldest first, with bars of one standard error."""
        y = np.array(values, float)
        bars = np.array([0.0 if error is None else error for error in errors])
        if not np.isfinite(y).all() or not np.isfinite(bars).all():
            return ""
        with self._matplotlib.rc_context(_STYLE):
            figure, axes = self._axes(3.4, 1.6)
            at = np.arange(1, len(y) + 1)
            axes.errorbar(at, y, bars, marker="o", markersize=3, color=_FILL, capsize=2)
            axes.set_xticks(at if len(at) <= 12 else at[:: -(-len(at) // 12)])
            axes.set_xlabel("measurement")
            return self._svg(figure, alt)

    def _axes(self, width: float, height: float) -> tuple[Any, Any]:
        figure = self._figure(figsize=(width, height), layout="constrained")
        return figure, figure.add_subplot()

    def _svg(self, figure: Any, alt: str, titles: Mapping[str, str] | None = None) -> str:
        """The figure as an SVG element: ids of its own, the page's colour, a text instead."""
        sink = io.StringIO()
        figure.savefig(sink, format="svg", transparent=True, metadata={"Date": None})
        text = sink.getvalue()
        text = text[text.index("<svg") :]
        text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, count=1, flags=re.DOTALL)
        self._count += 1
        text = re.sub(r'(\bid="|url\(#|xlink:href="#)(?!episode-)', rf"\1plot{self._count}-", text)
        text = text.replace(_INK, "currentColor")
        head, _, rest = text.partition(">")
        head = re.sub(r' (width|height)="[^"]*"', "", head)
        width = f"max-width:{figure.get_figwidth():g}in"
        role = "group" if titles else "img"
        label = html.escape(alt, quote=True)
        text = f'{head} role="{role}" aria-label="{label}" style="{width}">{rest}'
        for address, title in (titles or {}).items():
            link = f'<a xlink:href="{address}">'
            text = text.replace(link, f"{link}<title>{html.escape(title)}</title>")
        return text


def _edges(values: np.ndarray) -> np.ndarray | None:
    """Edges of at most `MAX_BINS` bins; None where all are one number or beyond what is drawn."""
    if not len(values):
        return None
    low, high = float(values.min()), float(values.max())
    largest = max(abs(low), abs(high))
    if not high - low > 1e-9 * largest or largest > 1e300:
        return None
    bins = int(np.clip(np.sqrt(len(values)) * 1.5, 5, MAX_BINS))
    is_whole = high - low <= MAX_BINS and bool((values == np.rint(values)).all())
    if is_whole:  # a bin per whole number
        return np.arange(low, high + 2) - 0.5
    return np.linspace(low, high, bins + 1)


def _traces(panel: Any, actions: np.ndarray, drawstyle: str) -> None:
    """Lines one above the other on one scale, dim 0 on top, each around a thin line at 0."""
    steps = _drawn(len(actions))
    values = _finite(actions[steps])
    with np.errstate(all="ignore"):
        largest = np.nanmax(np.abs(values)) if np.isfinite(values).any() else 1.0
    scale = 0.45 / largest if largest > 0 else 1.0
    dims = values.shape[1]
    for dim in range(dims):
        level = dims - 1 - dim
        panel.axhline(level, color=_INK, linewidth=0.3, alpha=0.5)
        line = {"color": _FILL, "linewidth": 0.9, "drawstyle": drawstyle}
        panel.plot(steps, level + scale * values[:, dim], **line)
    panel.set_yticks(range(dims), [str(dims - 1 - level) for level in range(dims)])
    panel.set_ylim(-0.6, dims - 0.4)
    panel.set_ylabel("action dim")


def _drawn(length: int) -> np.ndarray:
    """Which steps of an episode are drawn."""
    return np.unique(np.linspace(0, length - 1, min(length, MAX_STEPS)).astype(int))


def _finite(values: np.ndarray) -> np.ndarray:
    """Values with a gap where they are no numbers that can be drawn."""
    return np.where(np.isfinite(values) & (np.abs(values) < 1e300), values, np.nan)
