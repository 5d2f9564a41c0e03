"""The metrics by name: version, unit and one line on what each measures.

A metric's version changes whenever the same data would score differently, so that values of
different definitions never mix in one score set.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from schemas.errors import UnknownNameError, suggest
from schemas.metrics import MeasureConfig


@dataclass(frozen=True)
class Metric:
    """What is known about one metric."""

    name: str
    version: str
    unit: str
    description: str
    weight: Literal["steps", "episodes"]
    """What the dataset value averages over."""
    relative: bool
    """True if a score depends on a frozen reference model."""
    is_text: bool = False
    """True if episodes get a text rather than a number; the dataset value is the share that do."""
    is_default: bool = True
    """False if it is computed only where it is named."""


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "action_variance",
            "1",
            "standardised action^2",
            "Mean squared deviation of actions from the mean action of similar states; "
            "mostly state spread, kept for comparison with published figures.",
            "steps",
            True,
        ),
        Metric(
            "action_divergence",
            "1",
            "standardised action^2",
            "Mean squared deviation of actions from a policy fitted to the other episodes around "
            "similar states; calibrated to the demonstrator's noise variance.",
            "steps",
            True,
        ),
        Metric(
            "action_divergence_h",
            "1",
            "standardised action^2 * steps",
            "Action divergence with step t of T weighted by T - t: early deviations cost most.",
            "steps",
            True,
        ),
        Metric(
            "action_divergence_modes",
            "1",
            "standardised action^2",
            "Mean squared distance to the 3 nearest of the actions of 16 similar states in other "
            "episodes: low for a demonstrator of several consistent ways.",
            "steps",
            True,
        ),
        Metric(
            "transition_diversity",
            "1",
            "nats",
            "Differential entropy of the next state's residual given state and action, summed "
            "over state dimensions: the system's own noise.",
            "steps",
            True,
        ),
        Metric(
            "state_similarity",
            "2",
            "share",
            "Share of other episodes' reference states within a fixed radius of a step's state.",
            "steps",
            True,
        ),
        Metric(
            "coverage",
            "2",
            "nats",
            "Surprise of a step's state among other episodes' reference states; its mean over the "
            "reference is the entropy of its scaled states.",
            "steps",
            True,
        ),
        Metric(
            "unique_share",
            "1",
            "share",
            "Distinct bins of state and action per step.",
            "steps",
            True,
        ),
        Metric(
            "duplicate_of",
            "1",
            "episode",
            "The earlier episode that this one is a copy of, exactly or but for a little noise.",
            "episodes",
            True,
            is_text=True,
        ),
        Metric("length", "1", "steps", "Steps of the episode.", "episodes", False),
        Metric("episode_return", "1", "reward", "Undiscounted sum of rewards.", "episodes", False),
        Metric(
            "sparsity",
            "1",
            "share",
            "Share of steps whose reward is 0.",
            "steps",
            False,
        ),
        Metric(
            "idle_fraction",
            "1",
            "share",
            "Share of steps that ask for nothing new while the state hardly changes.",
            "steps",
            False,
        ),
        Metric("longest_pause", "1", "steps", "Longest run of idle steps.", "episodes", False),
        Metric(
            "smoothness",
            "1",
            "spectral arc length",
            "SPARC of the action's speed: -1.4 for a minimum-jerk reach, lower for jerkier motion.",
            "episodes",
            False,
        ),
        Metric(
            "jerk",
            "1",
            "log dimensionless jerk",
            "Smoothness of the low-passed action speed: -5.3 for a minimum-jerk reach, lower for "
            "jerkier motion.",
            "episodes",
            False,
            is_default=False,
        ),
        Metric(
            "integrity",
            "1",
            "share",
            "Share of rows without a fault: NaN, Inf, clock going back, gap, end flag in the "
            "middle. 1 is whole.",
            "steps",
            False,
        ),
    )
}


@dataclass(frozen=True)
class Derived:
    """A value that a version has as a whole and an episode has not."""

    name: str
    version: str
    unit: str
    description: str
    source: str
    """The metric whose scores it is made of; it is there where that is."""


DERIVED: dict[str, Derived] = {
    value.name: value
    for value in (
        Derived(
            "trajectory_quality",
            "1",
            "share",
            "Mean return, 0 being a random policy's and 1 a reference policy's (TQ); null where "
            "these are not given.",
            "episode_return",
        ),
        Derived(
            "return_improvement",
            "1",
            "share",
            "Largest return less the mean one, by the size of the mean (ERI): what could be "
            "gained by imitating the best episodes.",
            "episode_return",
        ),
        Derived(
            "return_spread",
            "1",
            "reward^2",
            "Mean squared excess of returns over their mean (positive-sided variance, PSV).",
            "episode_return",
        ),
        Derived(
            "saco",
            "1",
            "share",
            "Distinct bins of state and action, by those of the reference (SACo).",
            "unique_share",
        ),
    )
}
"""What `dataset_values` adds to the metrics' own values."""


NETWORK_METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "action_divergence_x",
            "1",
            "standardised action^2",
            "Mean squared deviation of actions from a network trained on other episodes: for "
            "curved policies of more than six state dims, from some 40,000 steps on.",
            "steps",
            True,
        ),
        Metric(
            "transition_diversity_x",
            "1",
            "nats",
            "Entropy of the next state's residual by a network trained on other episodes, summed "
            "over state dims.",
            "steps",
            True,
        ),
    )
}
"""What `penstock residuals` measures."""


def chosen(config: MeasureConfig) -> tuple[str, ...]:
    """Returns the names of the metrics to compute, in the registry's order.

    One that is derived from another's scores stands for that.

    Raises:
        UnknownNameError: if the config names a metric that there is not.
    """
    if config.metrics is None:
        return tuple(name for name, metric in METRICS.items() if metric.is_default)
    known = {**METRICS, **DERIVED}
    for name in config.metrics:
        if name not in known:
            raise UnknownNameError(
                f"Expected metrics out of {', '.join(known)}, came {name!r}; {suggest(name, known)}"
            )
    wanted = {DERIVED[name].source if name in DERIVED else name for name in config.metrics}
    return tuple(name for name in METRICS if name in wanted)


def versions(config: MeasureConfig) -> dict[str, str]:
    """Returns name and version of the chosen metrics and what derives, for the score set."""
    wanted = chosen(config)
    return {name: METRICS[name].version for name in wanted} | {
        name: value.version for name, value in DERIVED.items() if value.source in wanted
    }
