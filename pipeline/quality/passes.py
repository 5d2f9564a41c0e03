"""The passes over a version that make a reference model, as accumulators that any engine merges.

Sketch pass (`sketch.py`): moments, ranges and a sample of rows per task -> scales and clusters.
Fit pass (`evidence.py`), with those as side input: cross-moments per cluster -> fits. Each pass is
`accumulate` over any shard of episodes, `merge` in any order, the stage's `finalise` once. Scoring
is a third pass in which episodes are independent (`score.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol, TypeVar

from pipeline.quality.blocks import Block, blocks
from pipeline.quality.features import Layout
from schemas.episode import Episode
from schemas.metrics import MeasureConfig


class Part(Protocol):
    """What a pass keeps of one layout."""

    def merge(self, other: Any) -> Any:
        """Returns what is kept of both sets of rows."""
        ...


P = TypeVar("P", bound=Part)
P_co = TypeVar("P_co", bound=Part, covariant=True)


class Stage(Protocol[P_co]):
    """One pass: what it measures, given what earlier passes froze."""

    @property
    def config(self) -> MeasureConfig:
        """The run's settings."""
        ...

    def of_spec(self, spec: str) -> Stage[P_co]:
        """Returns the pass over one spec's episodes, by layouts that name no spec."""
        ...

    def measure(self, block: Block) -> P_co | None:
        """Returns what to keep of one block, if anything."""
        ...


def accumulate(episodes: Iterable[Episode], stage: Stage[P]) -> dict[Layout, P]:
    """Returns the accumulator of a shard of episodes; an empty dict is the neutral element.

    Raises:
        UnknownNameError: if the config names an observation field that an episode has not.
    """
    found: dict[Layout, P] = {}
    for block in blocks(episodes, stage.config.features):
        part = stage.measure(block)
        if part is not None:
            found = merge(found, {block.layout: part})
    return found


def merge(one: Mapping[Layout, P], two: Mapping[Layout, P]) -> dict[Layout, P]:
    """Returns the accumulator of both shards; associative and commutative up to rounding."""
    merged = dict(one)
    for layout, part in two.items():
        merged[layout] = merged[layout].merge(part) if layout in merged else part
    return merged
