"""Drift: how far new episodes lie from those a branch has, field by field.

The *standardised mean shift* of one dimension is |mean of the new - mean of the old| / standard
deviation of the old, over steps (over episodes for `length` and `episode_return`). A field's shift
is the largest of its dimensions. It has no units, so one threshold serves all fields; it sees a
moved mean, not a changed shape.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from schemas.episode import Episode

MAX_DIMS = 256
"""Fields of more dims (pictures) are left out."""
MAX_EPISODES = 1_000
"""Of a branch's newest version, evenly spaced, that its own values are taken from."""


@dataclass(frozen=True)
class Spread:
    """Count, mean and spread of one field's rows; merged exactly in any order."""

    count: int
    mean: np.ndarray  # (D,) float64
    squares: np.ndarray  # (D,) float64, sum of (x - mean)^2

    def __add__(self, other: Spread) -> Spread:
        count = self.count + other.count
        apart = other.mean - self.mean
        return Spread(
            count,
            self.mean + apart * (other.count / count),
            self.squares + other.squares + apart**2 * (self.count * other.count / count),
        )


Spreads = Mapping[str, Spread]


def spreads_of(episode: Episode) -> dict[str, Spread]:
    """Returns the spread of each numeric field of one episode, of its length and its return."""
    found = {"length": _spread(np.array([float(episode.length)]))}
    if episode.episode_return is not None:
        found["episode_return"] = _spread(np.array([episode.episode_return]))
    fields = dict(episode.observations) | dict(episode.flat_actions)
    if episode.rewards is not None:
        fields["rewards"] = episode.rewards
    for name, array in fields.items():
        is_number = isinstance(array, np.ndarray) and array.dtype.kind in "fiub"
        if is_number and len(array) and np.prod(array.shape[1:]) <= MAX_DIMS:
            found[name] = _spread(np.asarray(array))
    return found


def merge(several: Iterable[Spreads]) -> dict[str, Spread]:
    """Returns the spreads of all together; a field whose size differs is left out."""
    merged: dict[str, Spread] = {}
    odd: set[str] = set()
    for one in several:
        for name, spread in one.items():
            if name in merged and merged[name].mean.shape != spread.mean.shape:
                odd.add(name)
            elif name not in odd:
                merged[name] = merged[name] + spread if name in merged else spread
    return {name: spread for name, spread in merged.items() if name not in odd}


def shifts(old: Spreads, new: Spreads) -> dict[str, float]:
    """Returns the standardised mean shift of every field that both have."""
    found = {}
    for name in old.keys() & new.keys():
        one, two = old[name], new[name]
        if one.mean.shape != two.mean.shape:
            continue
        # A dimension that never changed has moved as soon as it is another number at all.
        floor = 1e-6 * np.maximum(np.abs(one.mean), 1.0)
        deviation = np.maximum(np.sqrt(one.squares / one.count), floor)
        found[name] = float(np.max(np.abs(two.mean - one.mean) / deviation, initial=0.0))
    return found


def sampled(episodes: int) -> Iterator[int]:
    """Yields which of so many episodes to look at, evenly spaced."""
    most = min(episodes, MAX_EPISODES)
    yield from (number * episodes // most for number in range(most))


def _spread(array: np.ndarray) -> Spread:
    rows = array.reshape(len(array), -1).astype(np.float64)
    mean = rows.mean(0)
    return Spread(len(rows), mean, ((rows - mean) ** 2).sum(0))
