"""The ways to draw samples, by name.

A sampler says which transitions make the global batches of some steps. It is a pure function of
its arguments, so that every rank, worker and resumed run draws the same; `prioritised` alone
depends on the priorities that it was told before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.store.reader import Version
from pipeline.stream import plan
from pipeline.stream.index import TransitionIndex
from pipeline.stream.priorities import Priorities
from pipeline.stream.shuffle import Shuffle
from pipeline.stream.weighted import Weights, episode_weights
from schemas.errors import UnknownNameError, suggest
from schemas.stream import StreamConfig


@dataclass(frozen=True)
class Draw:
    """What a sampler is asked for: some consecutive global batches."""

    seed: int
    domain: int
    """Tells apart independent draws under one seed; below 2^32."""
    step: int
    steps: int
    batch_size: int
    before: np.ndarray
    """(steps,) int64, rows drawn from this version before each batch."""
    priorities: Priorities | None = None

    def words(self, purpose: int = plan.ROW) -> np.ndarray:
        """Returns one random word per row, (steps, batch_size) uint64."""
        return plan.random(
            self.seed, self.step, self.batch_size, steps=self.steps, domain=self.domain + purpose
        )


@dataclass(frozen=True)
class Drawn:
    """What a sampler answers, rows of all ranks."""

    numbers: np.ndarray  # (steps, batch_size) int64, of transitions
    weights: np.ndarray | None = None  # (steps, batch_size) float64
    goal_words: tuple[np.ndarray, np.ndarray] | None = None
    """Random words for the kind and the place of each row's goal, (steps, batch_size) uint64."""

    def pick(self, part: Callable[[np.ndarray], np.ndarray]) -> Drawn:
        """Returns some of the rows."""
        words = self.goal_words
        return Drawn(
            part(self.numbers),
            None if self.weights is None else part(self.weights),
            None if words is None else (part(words[0]), part(words[1])),
        )


@dataclass(frozen=True)
class Sampler:
    """One way to draw."""

    name: str
    says: str
    """In words, for `describe`."""
    draw: Callable[[Draw, TransitionIndex, Any], Drawn]
    """Draws from an index, by what `prepare` made of it."""
    prepare: Callable[[Version, TransitionIndex, StreamConfig], Any] = lambda *_: None
    """What the sampler knows of a version beside its index; made when the version is opened."""


def _uniform(asked: Draw, index: TransitionIndex, _: None) -> Drawn:
    return Drawn(plan.below(asked.words(), len(index)))


def _by_episode(asked: Draw, index: TransitionIndex, episodes: np.ndarray) -> Drawn:
    chosen = episodes[plan.below(asked.words(), len(episodes))]
    within = plan.below_each(asked.words(plan.WITHIN), index.spans.count[chosen])
    return Drawn(index.spans.number[chosen] + within)


def _weighted(asked: Draw, index: TransitionIndex, weights: Weights) -> Drawn:
    return Drawn(*weights.draw(asked.words(), index))


def _shuffled(asked: Draw, index: TransitionIndex, shuffle: Shuffle) -> Drawn:
    first = asked.before[:, None] + np.arange(asked.batch_size)
    return Drawn(shuffle.rows(first, asked.seed, asked.domain))


def _prioritised(asked: Draw, index: TransitionIndex, beta: float) -> Drawn:
    assert asked.priorities is not None, "the stream hands on its priorities"
    return Drawn(*asked.priorities.draw(asked.words(), beta))


_TRANSITIONS = "uniformly over all transitions"
_PER_LENGTH = f"{_TRANSITIONS}, so that an episode is drawn from in proportion to its length"

SAMPLERS = {
    sampler.name: sampler
    for sampler in (
        Sampler("transition", f"{_TRANSITIONS}, each with its next observation", _uniform),
        Sampler("length_proportional", _PER_LENGTH, _uniform),
        Sampler("window", "windows whose anchors are uniform over all transitions", _uniform),
        Sampler(
            "episode",
            "an episode uniformly, then one of its transitions uniformly",
            _by_episode,
            lambda _version, index, _config: np.flatnonzero(index.spans.count),
        ),
        Sampler(
            "weighted",
            "transitions in proportion to a column of their episodes",
            _weighted,
            episode_weights,
        ),
        Sampler(
            "shuffle",
            "each transition exactly once per epoch, in an order shuffled anew each epoch",
            _shuffled,
            lambda _version, index, config: Shuffle.of(index, config.shuffle_window),
        ),
        Sampler(
            "prioritised",
            "transitions in proportion to a power of the priorities that it was last told; with "
            "other updates the order is another, so it is outside the guarantee of a pure order",
            _prioritised,
            lambda _version, _index, config: config.priority_beta,
        ),
    )
}


def sampler_named(name: str) -> Sampler:
    """Returns a sampler by name.

    Raises:
        UnknownNameError: naming the nearest.
    """
    try:
        return SAMPLERS[name]
    except KeyError:
        raise UnknownNameError(
            f"Expected a sampler, came {name!r}; {suggest(name, SAMPLERS)}"
        ) from None
