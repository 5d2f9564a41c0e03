"""Batches of runs that play: pinned versions mixed with a branch of rollouts that grows.

Shares are exact counts, whatever has been played so far. Rollouts that succeeded may join the
demonstrations, as a source of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from learners.data import Pinned, Sampling, demonstrations, with_sampler_of_windows
from pipeline.store.reader import Version
from pipeline.stream.loader import Stream
from pipeline.stream.mixture import Mixture

_OF_DEMONSTRATIONS = ("weights", "spec", "follow", "follow_every")
"""Settings that mean the offline versions alone."""


@dataclass(frozen=True)
class Growing:
    """What is read of a branch of rollouts that is to grow."""

    online: Version
    offline_fraction: float
    """Share of the demonstrations in each batch, from 0 to below 1."""
    joins: bool = False
    """Whether rollouts that succeeded join the demonstrations, as a source of its own."""
    successes: Version | None = None
    """Those, once there are any."""


def open_growing(
    offline: Sequence[Pinned], growing: Growing, sampling: Sampling, run: str | None = None
) -> Mixture:
    """Opens a mixture of pinned versions, of one that is to grow, and of what succeeded of it.

    Args:
        offline: their share of each batch is split by their weights.
        growing: has the rest; `follow_growing` moves it on.
        sampling: size, order and form of the batches.
        run: what stores call the run that reads it; None for one that is read again.
    """
    versions = [one.open() for one in offline]
    streams = [Stream(version, **sampling.settings(version)) for version in versions]
    grows = [growing.online]
    if growing.joins:
        grows.append(growing.successes or growing.online)
    streams += [Stream(version, **_of_rollouts(sampling.settings(version))) for version in grows]
    weights = growing_weights(offline, growing, [stream.transitions for stream in streams])
    joined = [True] * growing.joins
    return Mixture(
        list(zip(streams, weights, strict=True)),
        batch_size=sampling.rows,
        seed=sampling.seed,
        demonstration=[*demonstrations(len(offline), sampling.needs), False, *joined],
        run=run,
    )


def follow_growing(mixture: Mixture, offline: Sequence[Pinned], growing: Growing) -> None:
    """Makes the next batches of a mixture draw from newer rollouts, and newer successes."""
    mixture.follow(growing.online, source=len(offline))
    if growing.joins and growing.successes is not None:
        mixture.follow(growing.successes, source=len(offline) + 1)
        mixture.reweigh(growing_weights(offline, growing, mixture.transitions))


def growing_weights(
    offline: Sequence[Pinned], growing: Growing, transitions: Sequence[int]
) -> list[Fraction]:
    """Returns the exact weight of each source of a growing mixture.

    Successes have that part of the demonstrations' share which their transitions are of all
    demonstrations, as if they stood in one version.

    Args:
        offline: pinned versions.
        growing: what is read beside them.
        transitions: of each source.
    """
    share = Fraction(str(growing.offline_fraction))
    given = [Fraction(str(one.weight)) for one in offline]
    joined = transitions[-1] if growing.joins and growing.successes is not None else 0
    part = Fraction(joined, sum(transitions[: len(offline)]) + joined)
    weights = [share * (1 - part) * weight / sum(given) for weight in given]
    return [*weights, 1 - share, *[share * part] * growing.joins]


def _of_rollouts(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without those that mean the demonstrations."""
    plain = {name: settings[name] for name in settings if name not in _OF_DEMONSTRATIONS}
    if settings["sampler"] == "weighted":  # by a column that rollouts do not have
        plain["sampler"] = "transition"
    return with_sampler_of_windows(plain)
