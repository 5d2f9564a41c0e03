"""Small plots as inline SVG, drawn from numbers; colours and line widths are the style sheet's.

What is drawn of a scatter plot or a line is bounded whatever there is of data, and texts of the
data are escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from markupsafe import Markup

MAX_BINS = 30
MAX_POINTS = 2_000
"""Points of a scatter plot; of more episodes, evenly spaced ones are drawn."""
MAX_BUCKETS = 240
"""Of a line: each shows its smallest and largest value, so that no peak is lost."""
MAX_LINES = 8
SHAPES = ("circle", "cross", "square", "up", "down")
"""One for each group of points, for eyes that colours do not help."""
_LEFT, _TOP, _WIDTH, _HEIGHT = 58.0, 8.0, 576.0, 330.0
"""The frame of a scatter plot."""


def sparkline(values: Sequence[float], alt: str) -> Markup:
    """A line without axes; nothing for fewer than two values."""
    if len(values) < 2:
        return Markup("")
    x = np.linspace(2, 118, len(values))
    y = _placed(np.asarray(values, float), 22, 2)
    return Markup(
        '<svg class="spark" viewBox="0 0 120 24" role="img" aria-label="{}">{}</svg>'
    ).format(alt, _line(x, y, "s0"))


def histogram(values: np.ndarray, alt: str, kept: np.ndarray | None = None) -> Markup:
    """Bars of one column; with a mask, those of the kept episodes before those of all.

    Args:
        values: (n,) float64, NaN left out.
        alt: what it shows, in words.
        kept: (n,) bool.

    Returns:
        SVG; empty if there is nothing to draw, as for equal values.
    """
    finite = np.isfinite(values)
    edges = _edges(values[finite])
    if edges is None:
        return Markup("")
    counts = np.histogram(values[finite], edges)[0]
    top = int(counts.max())
    drawn = [_bars(counts, top, "all" if kept is not None else "kept")]
    if kept is not None:
        drawn.append(_bars(np.histogram(values[finite & kept], edges)[0], top, "kept"))
    text = '<text class="{}" x="{}" y="{}">{}</text>'
    drawn += [
        Markup(text).format("start", 4, 118, _number(values[finite].min())),
        Markup(text).format("end", 296, 118, _number(values[finite].max())),
        Markup(text).format("end", 296, 12, f"{top:,}"),
    ]
    return Markup('<svg viewBox="0 0 300 122" role="img" aria-label="{}">{}</svg>').format(
        alt, Markup("").join(drawn)
    )


def scatter(
    x: np.ndarray,
    y: np.ndarray,
    groups: np.ndarray,
    marks: Sequence[tuple[int, str]],
    axes: tuple[str, str],
    alt: str,
) -> Markup:
    """One mark per episode, titled with its id; the script reads ranges and positions from it.

    Args:
        x: (n,) float64, finite.
        y: (n,) float64, finite.
        groups: (n,) int, each the shape and colour of its mark.
        marks: position and id of each episode.
        axes: names of both.
        alt: what it shows, in words.
    """
    low_x, high_x = _range(x)
    low_y, high_y = _range(y)
    at_x = _LEFT + (x - low_x) / (high_x - low_x) * _WIDTH
    at_y = _TOP + (high_y - y) / (high_y - low_y) * _HEIGHT
    drawn = [
        Markup(
            '<g class="m k{}" data-at="{}" transform="translate({} {})"><title>{}</title>{}</g>'
        ).format(group, at, f"{px:.1f}", f"{py:.1f}", name, Markup(_MARKS[SHAPES[group]]))
        for px, py, group, (at, name) in zip(at_x, at_y, groups, marks, strict=True)
    ]
    bottom, right = _TOP + _HEIGHT, _LEFT + _WIDTH
    ticks = [
        Markup('<text class="{}" x="{}" y="{}">{}</text>').format(kind, px, py, _number(value))
        for kind, px, py, value in (
            ("start", _LEFT, bottom + 16, low_x),
            ("end", right, bottom + 16, high_x),
            ("end", _LEFT - 6, bottom, low_y),
            ("end", _LEFT - 6, _TOP + 10, high_y),
        )
    ]
    at = _LEFT + _WIDTH / 2, bottom + 16
    ticks.append(Markup('<text class="middle" x="{}" y="{}">{}</text>').format(*at, axes[0][:40]))
    at = _LEFT - 14, _TOP + _HEIGHT / 2
    turned = '<text class="middle" transform="translate({} {}) rotate(-90)">{}</text>'
    ticks.append(Markup(turned).format(*at, axes[1][:40]))
    frame = f"{_LEFT} {_TOP} {_WIDTH} {_HEIGHT}"
    return Markup(
        '<svg id="scatter" viewBox="0 0 640 364" role="img" aria-label="{}" data-frame="{}" '
        'data-x="{} {}" data-y="{} {}"><rect class="frame" x="{}" y="{}" width="{}" height="{}"/>'
        '{}<rect id="brush" x="0" y="0" width="0" height="0"/>{}</svg>'
    ).format(
        alt,
        frame,
        repr(low_x),
        repr(high_x),
        repr(low_y),
        repr(high_y),
        _LEFT,
        _TOP,
        _WIDTH,
        _HEIGHT,
        Markup("").join(ticks),
        Markup("").join(drawn),
    )


def lines(rows: np.ndarray, alt: str) -> Markup:
    """One line per column over steps, on one scale; the first `MAX_LINES` columns.

    Args:
        rows: (T, K) float64; what is not finite is a gap.
        alt: what it shows, in words.
    """
    drawn = rows[:, :MAX_LINES]
    finite = drawn[np.isfinite(drawn)]
    if len(rows) < 2 or not len(finite):
        return Markup("")
    low, high = _range(finite)
    found = []
    for at in range(drawn.shape[1]):
        steps = _peaks(drawn[:, at])
        x = 58 + steps / (len(rows) - 1) * 576
        y = 6 + (high - drawn[steps, at]) / (high - low) * 100
        found.append(_line(x, y, f"s{at}"))
    text = '<text class="{}" x="{}" y="{}">{}</text>'
    found += [
        Markup(text).format("end", 52, 14, _number(high)),
        Markup(text).format("end", 52, 106, _number(low)),
        Markup(text).format("start", 58, 122, 0),
        Markup(text).format("end", 634, 122, f"{len(rows) - 1:,}"),
    ]
    return Markup(
        '<svg viewBox="0 0 640 126" role="img" aria-label="{}">'
        '<rect class="frame" x="58" y="6" width="576" height="100"/>{}</svg>'
    ).format(alt, Markup("").join(found))


def key(group: int) -> Markup:
    """The mark of a group, for a legend."""
    return Markup(
        f'<svg class="key" viewBox="-6 -6 12 12" aria-hidden="true"><g class="m k{group}">'
        f"{_MARKS[SHAPES[group]]}</g></svg>"
    )


_MARKS = {
    "circle": '<circle r="3.2"/>',
    "cross": '<path d="M-3 -3L3 3M-3 3L3 -3"/>',
    "square": '<rect x="-2.6" y="-2.6" width="5.2" height="5.2"/>',
    "up": '<path d="M0 -3.4L3.2 2.6H-3.2Z"/>',
    "down": '<path d="M0 3.4L3.2 -2.6H-3.2Z"/>',
}


def _line(x: np.ndarray, y: np.ndarray, kind: str) -> Markup:
    """A path that breaks where a value is not finite."""
    parts, is_open = [], False
    for px, py in zip(x, y, strict=True):
        if not np.isfinite(py):
            is_open = False
            continue
        parts.append(f"{'L' if is_open else 'M'}{px:.1f} {py:.1f}")
        is_open = True
    return Markup('<path class="line {}" d="{}"/>').format(kind, "".join(parts))


def _bars(counts: np.ndarray, top: int, kind: str) -> Markup:
    width = 292 / len(counts)
    heights = 88 * counts / top
    path = "".join(
        f"M{4 + at * width:.2f} 104v{-tall:.2f}h{width - 0.6:.2f}v{tall:.2f}z"
        for at, tall in enumerate(heights)
        if tall
    )
    return Markup('<path class="bar {}" d="{}"/>').format(kind, path)


def _edges(values: np.ndarray) -> np.ndarray | None:
    """Edges of bins; None where values do not differ, or differ by more than floats can say."""
    if not len(values):
        return None
    low, high = float(values.min()), float(values.max())
    if not low < high or not np.isfinite(high - low):
        return None
    count = MAX_BINS
    if (values == np.round(values)).all() and high - low < MAX_BINS:  # a bar for each number
        count = int(high - low) + 1
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, count + 1)
    return edges if (np.diff(edges) > 0).all() else None


def _range(values: np.ndarray) -> tuple[float, float]:
    """Where an axis begins and ends: beyond the values by a little."""
    low, high = float(values.min()), float(values.max())
    if not low < high or not np.isfinite(high - low):
        spread = max(abs(low) * 0.05, 0.5)
        return low - spread, low + spread
    spread = 0.03 * (high - low)
    return low - spread, high + spread


def _placed(values: np.ndarray, bottom: float, top: float) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    share = (values - low) / (high - low) if high > low else np.full(len(values), 0.5)
    return bottom + (top - bottom) * share


def _peaks(column: np.ndarray) -> np.ndarray:
    """Positions of the smallest and largest value of each of some stretches, ascending."""
    if len(column) <= 2 * MAX_BUCKETS:
        return np.arange(len(column))
    found = [np.array([0, len(column) - 1])]
    edges = np.linspace(0, len(column), MAX_BUCKETS + 1).astype(int)
    for start, stop in pairwise(edges):
        part = column[start:stop]
        if np.isfinite(part).any():
            found.append(start + np.array([np.nanargmin(part), np.nanargmax(part)]))
    return np.unique(np.concatenate(found))


def _number(value: float) -> str:
    return f"{value:.4g}"
