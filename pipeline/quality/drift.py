"""How two sets of episodes differ: one pass over each, then four readings of the difference.

Rows are a step's state and action, on the reference's scale. Of each set, moments and quantiles of
all rows are kept, and a uniform sample of them.

* `auc`: can a classifier tell the sets apart (`classifier.py`)? 0.5 is no, 1 is always.
* `mmd`: squared maximum mean discrepancy (`rff.py`), beside that of the reference's own halves.
* `frechet`: ||mu_1 - mu_2||^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2)); only from 100 rows per dim on,
  since it is biased upwards below.
* per column, the shift of the mean in standard deviations, and the Kolmogorov-Smirnov distance.

Density ratios of the classifier say how unevenly the reference would have to be weighted to look
like the other set: the effective share of its rows that is left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.quality.blocks import Block
from pipeline.quality.classifier import density_ratio, two_samples
from pipeline.quality.features import Layout
from pipeline.quality.moments import CrossMoments, measure
from pipeline.quality.moments import merge as merge_moments
from pipeline.quality.normalizer import Range, fit_actions, measure_range, merge_ranges
from pipeline.quality.rff import Frequencies, embed, median_distance, mmd_squared
from pipeline.quality.sample import RowSample, merge_samples, sample_rows
from pipeline.quality.sketches import Quantiles
from schemas.metrics import MeasureConfig

CLASSIFIER_ROWS = 20_000
"""Per side."""
EMBEDDED_ROWS = 40_000
FRECHET_ROWS_PER_DIM = 100
SLIGHT, CLEAR, STRONG = 0.55, 0.65, 0.8
"""AUC from which sets differ slightly, clearly, strongly."""
_RANKS = np.linspace(0.005, 0.995, 100)


@dataclass(frozen=True)
class Side:
    """What is kept of one set of episodes of one layout."""

    moments: CrossMoments
    """Of states and actions side by side, as x, in one cluster."""
    span: Range
    columns: tuple[bytes, ...]
    """Quantiles of each column, as `Quantiles`."""
    sample: RowSample
    episodes: int

    def merge(self, other: Side) -> Side:
        """Returns what is kept of both sets."""
        pairs = zip(self.columns, other.columns, strict=True)
        return Side(
            merge_moments(self.moments, other.moments),
            merge_ranges(self.span, other.span),
            tuple(
                Quantiles.from_bytes(a).merge(Quantiles.from_bytes(b)).to_bytes() for a, b in pairs
            ),
            merge_samples(self.sample, other.sample),
            self.episodes + other.episodes,
        )


@dataclass(frozen=True)
class DriftStage:
    """The one pass over each set."""

    config: MeasureConfig

    def of_spec(self, spec: str) -> DriftStage:
        """Returns itself: nothing is frozen."""
        return self

    def measure(self, block: Block) -> Side:
        """Returns what is kept of a block; rows with NaN are left out."""
        kept = np.flatnonzero(block.acting)
        rows = np.concatenate([block.states[kept], block.targets[kept]], axis=1)
        nothing = np.empty((len(rows), 0))
        return Side(
            measure(rows, nothing, np.zeros(len(rows), np.int64), 1),
            measure_range(rows),
            tuple(Quantiles.of(column).to_bytes() for column in rows.T),
            sample_rows(rows, block.fingerprints[block.episodes[kept]], block.steps[kept]),
            len(block.lengths),
        )


@dataclass(frozen=True)
class ColumnShift:
    """How one column moved."""

    column: str
    shift: float
    """Of the mean, in standard deviations of the reference."""
    distance: float
    """Kolmogorov-Smirnov: the largest difference of the distribution functions, 0 to 1."""


@dataclass(frozen=True)
class Drift:
    """How two sets of episodes of one layout differ; None where too little is there to say."""

    episodes: tuple[int, int]
    rows: tuple[int, int]
    auc: float | None
    auc_interval: tuple[float, float] | None
    """95 %, over resampled episodes."""
    mmd: float | None
    mmd_within: float | None
    """Of two halves of the reference's episodes."""
    frechet: float | None
    effective_share: float | None
    """Of the reference's rows, weighted to look like the other set."""
    columns: tuple[ColumnShift, ...]
    """Those that moved most first."""

    @property
    def verdict(self) -> str:
        """`differ strongly`, `clearly` or `slightly`, `alike` or `unknown`."""
        if self.auc is None or self.auc_interval is None:
            return "unknown"
        if self.auc_interval[0] <= 0.5 or self.auc < SLIGHT:
            return "alike"
        degree = "strongly" if self.auc >= STRONG else "clearly"
        return f"differ {degree}" if self.auc >= CLEAR else "differ slightly"


def without_task(sides: Mapping[Layout, Side]) -> dict[Layout, Side]:
    """Returns the sides of all tasks and specs together, by what their rows are."""
    found: dict[Layout, Side] = {}
    for layout, side in sides.items():
        plain = replace(layout, task=None, spec=None)
        found[plain] = found[plain].merge(side) if plain in found else side
    return found


def compare(layout: Layout, reference: Side, other: Side, config: MeasureConfig) -> Drift:
    """Returns how another set of episodes differs from a reference of the same layout."""
    one, two = (
        _scaled(layout, reference, reference, config),
        _scaled(layout, reference, other, config),
    )
    few = [rows[:CLASSIFIER_ROWS] for rows in (one, two)]
    owners = [side.sample.owners[:CLASSIFIER_ROWS] for side in (reference, other)]
    told: dict[str, Any] = {"auc": None, "auc_interval": None, "effective_share": None}
    if min(map(len, few)) > 1:
        found = two_samples(*few, *owners, resamples=config.bootstrap, seed=config.seed)
        if np.isfinite(found.auc):
            ratio = density_ratio(found.logits[: len(few[0])])
            told["auc"], told["auc_interval"] = found.auc, (found.low, found.high)
            told["effective_share"] = float(ratio.sum() ** 2 / (ratio**2).sum() / len(ratio))
    frequencies = Frequencies(one.shape[1], median_distance(one, config.seed), config.seed)
    mine, theirs = (embed(rows[:EMBEDDED_ROWS], frequencies) for rows in (one, two))
    halves = _halves(one[:EMBEDDED_ROWS], reference.sample.owners[:EMBEDDED_ROWS])
    within = mmd_squared(*(embed(half, frequencies) for half in halves))
    return Drift(
        episodes=(reference.episodes, other.episodes),
        rows=(int(reference.moments.rows), int(other.moments.rows)),
        **told,
        mmd=_known(mmd_squared(mine, theirs)),
        mmd_within=_known(within),
        frechet=_known(frechet(reference.moments, other.moments)),
        columns=_shifts(layout, reference, other, config),
    )


def frechet(reference: CrossMoments, other: CrossMoments) -> float:
    """Returns the squared Frechet distance of two Gaussians, on the reference's scale.

    NaN where either has fewer than 100 rows per dim.
    """
    deviation = _deviation(reference)
    dims = len(deviation)
    if not dims or min(reference.rows, other.rows) < FRECHET_ROWS_PER_DIM * dims:
        return float("nan")
    gap = (other.mean_x[0] - reference.mean_x[0]) / deviation
    one, two = (m.xx[0] / m.rows / np.outer(deviation, deviation) for m in (reference, other))
    values, vectors = np.linalg.eigh(one)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    middle = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ two @ root), 0.0)).sum()
    return float(gap @ gap + np.trace(one) + np.trace(two) - 2 * middle)


def _scaled(layout: Layout, reference: Side, side: Side, config: MeasureConfig) -> np.ndarray:
    """(n, D) sampled rows: columns standardised by the reference, classes one-hot."""
    discrete = layout.scored_discrete(relative=config.features.relative_actions)
    is_class = np.append(np.zeros(layout.state_dims, bool), discrete)
    return fit_actions(reference.moments, reference.span, is_class).encode(side.sample.rows)


def _deviation(moments: CrossMoments) -> np.ndarray:
    """(D,) standard deviations; 1 for a column that never changes."""
    deviation = np.sqrt(np.diagonal(moments.xx[0]) / max(moments.rows, 1.0))
    return np.where(deviation > 1e-12 * np.abs(moments.mean_x[0]), deviation, 1.0)


def _halves(rows: np.ndarray, owners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows of two halves of the episodes."""
    _, number = np.unique(owners, return_inverse=True)
    return rows[number % 2 == 0], rows[number % 2 == 1]


def _shifts(
    layout: Layout, reference: Side, other: Side, config: MeasureConfig
) -> tuple[ColumnShift, ...]:
    if not min(reference.moments.rows, other.moments.rows):
        return ()
    gap = (other.moments.mean_x[0] - reference.moments.mean_x[0]) / _deviation(reference.moments)
    found = []
    for name, shift, one, two in zip(
        column_names(layout, relative=config.features.relative_actions),
        gap,
        map(Quantiles.from_bytes, reference.columns),
        map(Quantiles.from_bytes, other.columns),
        strict=True,
    ):
        at = np.array([*one.at(list(_RANKS)), *two.at(list(_RANKS))])
        distance = float(np.abs(one.ranks(at) - two.ranks(at)).max())
        found.append(ColumnShift(name, float(shift), distance))
    return tuple(sorted(found, key=lambda c: max(abs(c.shift), c.distance), reverse=True))


def column_names(layout: Layout, *, relative: bool) -> list[str]:
    """Returns the names of a layout's columns, states first."""
    actions = [(n, d) for n, d, _ in layout.actions if not relative or not n.startswith("sin ")]
    return [
        name if dims == 1 else f"{name}:{dim}"
        for name, dims in (*layout.states, *actions)
        for dim in range(dims)
    ]


def _known(value: float) -> float | None:
    return value if np.isfinite(value) else None
