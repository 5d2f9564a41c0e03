"""Values that a version has as a whole: of its returns, and of how much it visits.

Of the returns G of its episodes: trajectory quality TQ = (mean G - random) / (expert - random)
(Schweighofer et al. 2022), return improvement ERI = (max G - mean G) / max(|mean G|, `EPSILON`)
(after Swazinna et al. 2021; the formula is ours), and return spread PSV = mean((G - mean G)_+^2)
(Hong et al. 2023). One episode has an ERI and a PSV of 0. Standard errors come from resampling
episodes, or where that would double-count (distinct bins) from leaving out a twentieth of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.quality.reference import ReferenceModel
from pipeline.quality.score import VISITED
from pipeline.quality.sketches import COUNT_ERROR, Uniques, union
from schemas.metrics import MeasureConfig, MetricValue

EPSILON = 1e-8
"""Least size of a mean return that ERI divides by."""
FOLDS = 20
"""Parts that the jackknife leaves out one at a time."""


def trajectory_quality(returns: np.ndarray, random: float | None, expert: float | None) -> float:
    """Returns TQ of (E,) returns; NaN without references, or where these are equal."""
    if random is None or expert is None or random == expert or not len(returns):
        return float("nan")
    return float((returns.mean() - random) / (expert - random))


def return_improvement(returns: np.ndarray) -> float:
    """Returns ERI of (E,) returns; NaN of none."""
    if not len(returns):
        return float("nan")
    mean = float(returns.mean())
    return (float(returns.max()) - mean) / max(abs(mean), EPSILON) if len(returns) > 1 else 0.0


def return_spread(returns: np.ndarray) -> float:
    """Returns PSV of (E,) returns; NaN of none."""
    if not len(returns):
        return float("nan")
    return float((np.maximum(returns - returns.mean(), 0.0) ** 2).mean())


def return_values(
    returns: np.ndarray, lengths: np.ndarray, config: MeasureConfig
) -> dict[str, MetricValue]:
    """Returns what the returns of a version's episodes say of it.

    Args:
        returns: (E,) float64; those that are not finite are left out and counted.
        lengths: (E,) steps.
        config: references for TQ, resamples and seed.
    """
    known = np.isfinite(returns)
    low, high = config.return_random, config.return_expert
    formulas: dict[str, Callable[[np.ndarray], float]] = {
        "trajectory_quality": lambda some: trajectory_quality(some, low, high),
        "return_improvement": return_improvement,
        "return_spread": return_spread,
    }
    facts: dict[str, dict[str, Any]] = {
        "trajectory_quality": {"return_random": low, "return_expert": high},
        "return_improvement": {"epsilon": EPSILON},
    }
    left_out = {"returns_left_out": int((~known).sum())}
    return {
        name: _described(
            formula(returns[known]),
            _resampled(formula, returns[known], config),
            known,
            lengths,
            {**facts.get(name, {}), **left_out},
        )
        for name, formula in formulas.items()
    }


def visited_values(
    scores: pa.Table, lengths: np.ndarray, model: ReferenceModel
) -> dict[str, MetricValue]:
    """Returns `unique_share` and `saco` of a version, by the sketches of its episodes.

    Args:
        scores: a row per episode, with the column `VISITED`.
        lengths: (E,) steps.
        model: the reference, whose bins these are.
    """
    sketches = [None if d is None else Uniques.from_bytes(d) for d in scores[VISITED].to_pylist()]
    known = np.array([sketch is not None for sketch in sketches], bool)
    some = [sketch for sketch in sketches if sketch is not None]
    steps = lengths[known]
    seen = [group.visited.seen for group in model.groups.values() if group.visited is not None]
    reference = union(seen).estimate
    distinct = union(some).estimate
    left = _left_out(some)
    facts = {"distinct": distinct, "reference_distinct": reference, "sketch_error": COUNT_ERROR}
    rest = [float(steps.sum() - part.sum()) for part in np.array_split(steps, len(left))]
    values = {
        "unique_share": (distinct, float(steps.sum()), rest),
        "saco": (distinct, reference, [reference] * len(left)),
    }
    found = {}
    for name, (count, whole, parts) in values.items():
        value = count / whole if whole else float("nan")
        ratios = [one / part for one, part in zip(left, parts, strict=True) if part]
        error = _jackknife(ratios, value)
        found[name] = _described(value, error, known, lengths, facts)
    return found


def by_group(
    values: np.ndarray, weights: np.ndarray, groups: Sequence[str | None]
) -> dict[str, dict[str, Any]]:
    """Returns value, standard error and episodes of each group of episodes that has a name.

    Args:
        values: (E,) episode scores, NaN for none.
        weights: (E,) steps, or ones.
        groups: (E,) name of each episode's policy or operator.
    """
    named = np.array([group or "" for group in groups], object)
    found = {}
    for name in sorted(set(named) - {""}):
        rows = (named == name) & np.isfinite(values)
        if not rows.any():
            continue
        total = weights[rows].sum()
        mean = float((values[rows] * weights[rows]).sum() / total) if total else float("nan")
        # The linearised error of a ratio of sums over independent episodes.
        slips = weights[rows] * (values[rows] - mean)
        count = int(rows.sum())
        spread = np.sqrt((slips**2).sum() * count / max(count - 1, 1)) / max(total, 1e-300)
        found[name] = {
            "value": mean if np.isfinite(mean) else None,
            "standard_error": float(spread) if count > 1 else None,
            "episodes": count,
        }
    return found


def _described(
    value: float,
    error: float | None,
    known: np.ndarray,
    lengths: np.ndarray,
    details: dict[str, Any],
) -> MetricValue:
    is_known = bool(np.isfinite(value))
    return MetricValue(
        value=value if is_known else None,
        standard_error=error if is_known and error is not None and np.isfinite(error) else None,
        episodes=int(known.sum()),
        rows=int(lengths[known].sum()),
        coverage=float(known.mean()) if len(known) else 0.0,
        details=details,
    )


def _resampled(
    formula: Callable[[np.ndarray], float], returns: np.ndarray, config: MeasureConfig
) -> float | None:
    if config.bootstrap < 2 or len(returns) < 2:
        return None
    rng = np.random.default_rng(config.seed)
    drawn = [formula(rng.choice(returns, len(returns))) for _ in range(config.bootstrap)]
    return float(np.std(drawn, ddof=1))


def _left_out(sketches: Sequence[Uniques]) -> list[float]:
    """Distinct bins without each of up to `FOLDS` runs of episodes, by unions from both ends."""
    parts = [
        union(sketches[i] for i in run)
        for run in np.array_split(np.arange(len(sketches)), min(FOLDS, len(sketches)) or 1)
    ]
    before, after = [union(())], [union(())]
    for part in parts:
        before.append(before[-1].merge(part))
    for part in reversed(parts):
        after.append(after[-1].merge(part))
    count = len(parts)
    return [before[at].merge(after[count - 1 - at]).estimate for at in range(count)]


def _jackknife(left: Sequence[float], value: float) -> float | None:
    """Standard error over the left-out parts, and that of the sketch."""
    count = len(left)
    if count < 2:
        return None
    spread = (count - 1) * float(np.var(left))
    return float(np.sqrt(spread + (COUNT_ERROR * value) ** 2))
