"""A version's own values: means of its episodes' scores, with standard errors.

Step metrics are averaged over steps, so each task counts by its steps; length and return over
episodes. Standard errors come from resampling whole episodes, because steps of one episode are not
independent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.quality.details import reference_details
from pipeline.quality.reference import ReferenceModel
from pipeline.quality.registry import METRICS, chosen
from pipeline.quality.score import VISITED
from pipeline.quality.values import by_group, return_values, visited_values
from schemas.errors import UsageError
from schemas.metrics import MeasureConfig, MetricValue

GROUPS = ("policy", "operator")
"""Columns whose groups of episodes get values of their own."""
QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


def dataset_values(
    scores: pa.Table, model: ReferenceModel, config: MeasureConfig
) -> dict[str, MetricValue]:
    """Returns one value per chosen metric.

    Args:
        scores: a row per episode: the chosen metrics' columns, `length`, and where they are known
            `task`, `policy`, `operator` and the sketches `VISITED`.
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
    tasks = _tasks(scores)
    numbers = {name: _numbers(scores, name) for name in names if not METRICS[name].is_text}
    errors = _standard_errors(numbers, lengths, config)
    values = {}
    for name in names:
        if METRICS[name].is_text:
            values[name] = _share(scores[name], lengths)
            continue
        found = _value(name, numbers[name], lengths, tasks)
        if METRICS[name].relative and found.value is not None:
            details = {**found.details, "reference": reference_details(name, model)}
            found = found.model_copy(update={"details": details})
        found = _with_groups(name, found, numbers[name], lengths, scores)
        values[name] = found.model_copy(update={"standard_error": errors[name]})
    if "episode_return" in values:
        values |= return_values(numbers["episode_return"], lengths, config)
    if "unique_share" in values and VISITED in scores.column_names:
        for name, whole in visited_values(scores, lengths, model).items():
            before = values[name].details if name in values else {}
            values[name] = whole.model_copy(update={"details": {**before, **whole.details}})
    return values


def _with_groups(
    name: str, found: MetricValue, values: np.ndarray, lengths: np.ndarray, scores: pa.Table
) -> MetricValue:
    """A value with those of each policy and operator, where episodes have any."""
    columns = [column for column in GROUPS if column in scores.column_names]
    groups = {
        column: by_group(values, _weights(name, lengths), scores[column].to_pylist())
        for column in columns
    }
    said = {column: group for column, group in groups.items() if group}
    if not said:
        return found
    return found.model_copy(update={"details": {**found.details, "groups": said}})


def _share(texts: pa.ChunkedArray, lengths: np.ndarray) -> MetricValue:
    """The share of episodes that have a text."""
    count = len(texts)
    said = count - texts.null_count
    return MetricValue(
        value=said / count if count else None,
        episodes=count,
        rows=int(lengths.sum()),
        coverage=1.0 if count else 0.0,
        details={"episodes_named": said},
    )


def _value(
    name: str, values: np.ndarray, lengths: np.ndarray, tasks: tuple[list[str], np.ndarray]
) -> MetricValue:
    """One metric's value, without its standard error."""
    scored = np.isfinite(values)
    coverage = float(scored.mean()) if len(values) else 0.0
    steps, values = lengths[scored], values[scored]
    if not len(values):
        return MetricValue(value=None, episodes=0, rows=0, coverage=coverage)
    weights = _weights(name, steps)
    return MetricValue(
        value=_mean(values, weights),
        episodes=len(values),
        rows=int(steps.sum()),
        coverage=coverage,
        details={
            "episode_mean": float(values.mean()),
            "quantiles": dict(
                zip(map(str, QUANTILES), map(float, np.quantile(values, QUANTILES)), strict=True)
            ),
            "tasks": _by_task(values, weights, steps, (tasks[0], tasks[1][scored])),
        },
    )


def _by_task(
    values: np.ndarray, weights: np.ndarray, steps: np.ndarray, tasks: tuple[list[str], np.ndarray]
) -> dict[str, Any]:
    """Value, episodes and steps of each task."""
    names, owners = tasks
    order = np.argsort(owners, kind="stable")
    present, starts = np.unique(owners[order], return_index=True)
    return {
        names[task]: {
            "value": _mean(values[rows], weights[rows]),
            "episodes": len(rows),
            "steps": int(steps[rows].sum()),
        }
        for task, rows in zip(present, np.split(order, starts[1:]), strict=True)
    }


def _tasks(scores: pa.Table) -> tuple[list[str], np.ndarray]:
    """The tasks' names in order, and (E,) each episode's place among them."""
    if "task" not in scores.column_names:
        return [""], np.zeros(scores.num_rows, np.int64)
    filled = scores["task"].cast(pa.string()).fill_null("").combine_chunks()
    names = sorted(filled.unique().to_pylist())
    owners = pc.index_in(filled, value_set=pa.array(names, pa.string()))
    return names, owners.to_numpy(zero_copy_only=False).astype(np.int64)


def _weights(name: str, steps: np.ndarray) -> np.ndarray:
    return steps if METRICS[name].weight == "steps" else np.ones_like(steps)


def _standard_errors(
    numbers: Mapping[str, np.ndarray], lengths: np.ndarray, config: MeasureConfig
) -> dict[str, float | None]:
    """Standard errors by metric; metrics of the same episodes share their resamples."""
    alike: dict[bytes, list[str]] = {}
    for name, values in numbers.items():
        alike.setdefault(np.isfinite(values).tobytes(), []).append(name)
    errors: dict[str, float | None] = {}
    for names in alike.values():
        scored = np.isfinite(numbers[names[0]])
        values = np.stack([numbers[name][scored] for name in names])
        weights = np.stack([_weights(name, lengths[scored]) for name in names])
        found = standard_errors(values, weights, config.bootstrap, config.seed)
        errors.update(zip(names, found, strict=True))
    return errors


def standard_errors(
    values: np.ndarray, weights: np.ndarray, resamples: int, seed: int
) -> list[float | None]:
    """Returns the bootstrap standard errors of weighted means; None where there are none.

    Args:
        values: (M, E) episode scores of M metrics.
        weights: (M, E) steps, or ones.
        resamples: bootstrap size; below 2 there is no error.
        seed: of the resampling.
    """
    count = values.shape[1]
    if resamples < 2 or count < 2:
        return [None] * len(values)
    rng = np.random.default_rng(seed)
    weighted = values * weights
    means = np.empty((resamples, len(values)))
    for resample in range(resamples):
        times = np.bincount(rng.integers(count, size=count), minlength=count)
        means[resample] = (weighted @ times) / np.maximum(weights @ times, 1.0)
    return [float(error) for error in means.std(axis=0, ddof=1)]


def _mean(values: np.ndarray, weights: np.ndarray) -> float:
    total = weights.sum()
    return float((values * weights).sum() / total) if total else float(values.mean())


def _numbers(table: pa.Table, name: str) -> np.ndarray:
    column = table[name].cast(pa.float64())
    return np.asarray(column.to_numpy(zero_copy_only=False), np.float64)
