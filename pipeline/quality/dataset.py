"""A version's own values: means of its episodes' scores, with standard errors.

Step metrics are averaged over steps, so each task counts by its steps; length and return over
episodes. Standard errors come from resampling whole episodes, because steps of one episode are not
independent.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.quality.details import reference_details
from pipeline.quality.reference import ReferenceModel
from pipeline.quality.registry import METRICS, chosen
from schemas.errors import UsageError
from schemas.metrics import MeasureConfig, MetricValue

QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


def dataset_values(
    scores: pa.Table, model: ReferenceModel, config: MeasureConfig
) -> dict[str, MetricValue]:
    """Returns one value per chosen metric.

    Args:
        scores: a row per episode: the chosen metrics' columns, `length`, and `task` if known.
        model: the reference that the scores are relative to.
        config: the run's settings.

    Raises:
        UsageError: if a column is not there.
    """
    names = chosen(config)
    for name in ("length", *names):
        if name not in scores.column_names:
            raise UsageError(f"Expected scores with the column {name!r}, it is not there.")
    lengths = _numbers(scores, "length")
    tasks = (
        np.array([task or "" for task in scores["task"].to_pylist()], object)
        if "task" in scores.column_names
        else np.full(len(lengths), "", object)
    )
    return {
        name: _share(scores[name])
        if METRICS[name].is_text
        else _value(name, _numbers(scores, name), lengths, tasks, model, config)
        for name in names
    }


def _share(texts: pa.ChunkedArray) -> MetricValue:
    """The share of episodes that have a text."""
    count = len(texts)
    said = count - texts.null_count
    return MetricValue(
        value=said / count if count else None,
        episodes=count,
        coverage=1.0 if count else 0.0,
        details={"episodes_named": said},
    )


def _value(
    name: str,
    values: np.ndarray,
    lengths: np.ndarray,
    tasks: np.ndarray,
    model: ReferenceModel,
    config: MeasureConfig,
) -> MetricValue:
    scored = np.isfinite(values)
    coverage = float(scored.mean()) if len(values) else 0.0
    values, tasks, steps = values[scored], tasks[scored], lengths[scored]
    if not len(values):
        return MetricValue(value=None, episodes=0, coverage=coverage)
    by_steps = METRICS[name].weight == "steps"
    weights = steps if by_steps else np.ones_like(steps)
    details: dict[str, Any] = {
        "episode_mean": float(values.mean()),
        "quantiles": dict(
            zip(map(str, QUANTILES), map(float, np.quantile(values, QUANTILES)), strict=True)
        ),
        "tasks": {
            task: {
                "value": _mean(values[tasks == task], weights[tasks == task]),
                "episodes": int((tasks == task).sum()),
                "steps": int(steps[tasks == task].sum()),
            }
            for task in sorted(set(tasks))
        },
    }
    if METRICS[name].relative:
        details["reference"] = reference_details(name, model)
    return MetricValue(
        value=_mean(values, weights),
        standard_error=standard_error(values, weights, config.bootstrap, config.seed),
        episodes=len(values),
        coverage=coverage,
        details=details,
    )


def standard_error(
    values: np.ndarray, weights: np.ndarray, resamples: int, seed: int
) -> float | None:
    """Returns the bootstrap standard error of a weighted mean; None where there is none.

    Args:
        values: (E,) episode scores.
        weights: (E,) steps, or ones.
        resamples: bootstrap size; below 2 there is no error.
        seed: of the resampling.
    """
    if resamples < 2 or len(values) < 2:
        return None
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    for resample in range(resamples):
        drawn = rng.integers(len(values), size=len(values))
        means[resample] = _mean(values[drawn], weights[drawn])
    return float(means.std(ddof=1))


def _mean(values: np.ndarray, weights: np.ndarray) -> float:
    total = weights.sum()
    return float((values * weights).sum() / total) if total else float(values.mean())


def _numbers(table: pa.Table, name: str) -> np.ndarray:
    column = table[name].cast(pa.float64())
    return np.asarray(column.to_numpy(zero_copy_only=False), np.float64)
