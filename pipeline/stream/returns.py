"""Sums of rewards over steps, made once when a version is opened: n-step rewards and returns.

All sums are accumulated in float64, over the steps that are used: what `keep_start` and
`keep_stop` cut off counts no more than it is drawn. They lie beside the cache in the version's own
row layout, so that rewards that were relabelled are never mixed with older ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.stream.added import Added
from pipeline.stream.index import Spans
from pipeline.stream.record import RecordLayout
from schemas.errors import UsageError
from schemas.stream import StreamConfig


@dataclass(frozen=True)
class NStep:
    """Where transitions of n steps end, and what they collect; aligned with the version's rows."""

    ahead: np.ndarray  # (rows,) int16, steps that the transition spans, from 1 to n
    terminated: np.ndarray  # (rows,) bool, whether it ends in a terminated step
    truncated: np.ndarray  # (rows,) bool, whether it ends in a truncated step
    discounts: np.ndarray  # (rows,) gamma^steps, 0 where terminated
    rewards: dict[str, np.ndarray] = field(default_factory=dict)
    """(rows, ...) by name, sum of gamma^k times the k-th reward."""


@dataclass(frozen=True)
class Sums:
    """What a stream's settings ask for; None where they do not."""

    n_step: NStep | None = None
    returns: np.ndarray | None = None  # (rows, ...) returns to go
    steps: np.ndarray | None = None  # (rows,) int64, how many rewards each of those holds
    places: np.ndarray | None = None  # (rows,) int64, steps that are used before it

    def to_go(self, at: np.ndarray, inside: np.ndarray) -> dict[str, np.ndarray]:
        """Returns what batches hold of some steps, 0 where they are outside of their episode.

        Args:
            at: positions in the version's row layout, any shape.
            inside: bool, as `at`.
        """
        found = {
            "returns_to_go": self.returns,
            "steps_to_go": self.steps,
            "timesteps": self.places,
        }
        taken = {name: np.take(a, at, axis=0) for name, a in found.items() if a is not None}
        for values in taken.values():
            values[~inside] = 0
        return taken


@dataclass(frozen=True)
class _Steps:
    """All steps that are used, one after the other."""

    at: np.ndarray  # (S,) int64, positions in the version's row layout
    within: np.ndarray  # (S,) int64, steps before this one
    left: np.ndarray  # (S,) int64, steps from this one on, itself included
    terminated: np.ndarray  # (S,) bool
    truncated: np.ndarray  # (S,) bool
    rewards: dict[str, np.ndarray]  # (S, ...) float64


def make_sums(
    config: StreamConfig,
    spans: Spans,
    records: np.ndarray,
    layout: RecordLayout,
    added: Mapping[str, Added],
    rows: int,
) -> Sums:
    """Returns the sums that the settings ask for.

    Args:
        config: the stream's settings.
        spans: the episodes that are drawn from.
        records: (rows of the cache, words) int32.
        layout: of the records.
        added: fields that lie over the records.
        rows: of the version.

    Raises:
        UsageError: if returns are asked for and there are no rewards.
    """
    if config.n_step == 1 and config.returns is None:
        return Sums()
    steps = _used_steps(spans, records, layout, added)
    real = np.dtype(np.float64 if config.dtype == "float64" else np.float32)
    returns = left = places = None
    if config.returns is not None:
        if "rewards" not in steps.rewards:
            raise UsageError(
                f"Expected rewards to make returns of, came fields without; leave "
                f"returns={config.returns!r} out, or stream the rewards too."
            )
        gamma = 1.0 if config.returns == "to_go" else config.discount
        returns = _spread(_to_go(steps, steps.rewards["rewards"], gamma), steps.at, rows, real)
        ones = np.ones(len(steps.at))
        left = _spread(_to_go(steps, ones, 1.0), steps.at, rows, np.dtype(np.int64))
        places = _spread(steps.within, steps.at, rows, np.dtype(np.int64))
    n_step = _n_steps(steps, config, rows, real) if config.n_step > 1 else None
    return Sums(n_step, returns, left, places)


def _used_steps(
    spans: Spans, records: np.ndarray, layout: RecordLayout, added: Mapping[str, Added]
) -> _Steps:
    length = spans.stop - spans.begin
    within = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
    at = np.repeat(spans.begin, length) + within
    in_cache = at + np.repeat(spans.shift, length)
    spaced = records[:, None]
    rewards = {name: layout.view(spaced, name)[in_cache] for name in layout.names("rewards")}
    if "rewards" in added:
        rewards["rewards"] = added["rewards"].over(at, rewards.get("rewards"))
    return _Steps(
        at=at,
        within=within,
        left=np.repeat(length, length) - within,
        terminated=layout.view(spaced, "terminated")[in_cache],
        truncated=layout.view(spaced, "truncated")[in_cache],
        rewards={name: values.astype(np.float64) for name, values in rewards.items()},
    )


def _to_go(steps: _Steps, values: np.ndarray, gamma: float) -> np.ndarray:
    """G_t = x_t + gamma (1 - terminated_t) G_t+1 for values x, (S, ...)."""
    found = values.copy()
    # Last steps of all episodes first, then those before them, and so on.
    order = np.argsort(steps.left, kind="stable")
    ends = np.cumsum(np.bincount(steps.left))
    for left in range(2, len(ends)):
        now = order[ends[left - 1] : ends[left]]
        goes_on = now[~steps.terminated[now]]
        found[goes_on] += gamma * found[goes_on + 1]
    return found


def _n_steps(steps: _Steps, config: StreamConfig, rows: int, real: np.dtype[Any]) -> NStep:
    ahead = np.zeros(len(steps.at), np.int16)
    goes_on = np.arange(len(steps.at))
    sums = {name: np.zeros_like(values) for name, values in steps.rewards.items()}
    for step in range(config.n_step):
        for name, values in steps.rewards.items():
            sums[name][goes_on] += config.discount**step * values[goes_on + step]
        ahead[goes_on] += 1
        goes_on = goes_on[~steps.terminated[goes_on + step] & (steps.left[goes_on] > step + 1)]
    last = np.arange(len(steps.at)) + ahead - 1
    is_terminated = steps.terminated[last]
    discounts = np.where(is_terminated, 0.0, config.discount ** ahead.astype(np.float64))
    return NStep(
        ahead=_spread(ahead, steps.at, rows, ahead.dtype),
        terminated=_spread(is_terminated, steps.at, rows, is_terminated.dtype),
        truncated=_spread(steps.truncated[last], steps.at, rows, is_terminated.dtype),
        discounts=_spread(discounts, steps.at, rows, real),
        rewards={name: _spread(values, steps.at, rows, real) for name, values in sums.items()},
    )


def _spread(values: np.ndarray, at: np.ndarray, rows: int, dtype: np.dtype[Any]) -> np.ndarray:
    """Values of some steps in the version's row layout, 0 elsewhere."""
    found = np.zeros((rows, *values.shape[1:]), dtype)
    found[at] = values
    return found
