"""The ways to draw samples, by name.

A sampler says which transitions make the global batches of some steps. It is a pure function of
its arguments, so that every rank, worker and resumed run draws the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipeline.stream import plan
from pipeline.stream.index import TransitionIndex
from schemas.errors import UnknownNameError, suggest


@dataclass(frozen=True)
class Draw:
    """What a sampler is asked for: some consecutive global batches."""

    seed: int
    domain: int
    """Tells apart independent draws under one seed."""
    step: int
    steps: int
    batch_size: int


@dataclass(frozen=True)
class Sampler:
    """One way to draw."""

    name: str
    says: str
    """In words, for `describe`."""
    draw: Callable[[Draw, TransitionIndex], np.ndarray]
    """Numbers of transitions, (steps, batch_size) int64."""


def _uniform(asked: Draw, index: TransitionIndex) -> np.ndarray:
    return plan.uniform(
        asked.seed,
        asked.step,
        asked.batch_size,
        len(index),
        steps=asked.steps,
        domain=asked.domain,
    )


SAMPLERS = {
    sampler.name: sampler
    for sampler in (
        Sampler(
            "transition", "uniformly over all transitions, each with its next observation", _uniform
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
