"""Comparing two versions, or two kinds of episodes of one: each is read once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.jobs.progress import Listener
from pipeline.quality.drift import Drift, DriftStage, Side, compare, without_task
from pipeline.quality.features import Layout
from pipeline.quality.passes import accumulate
from pipeline.store.reader import Version
from schemas.episode import Episode
from schemas.errors import UsageError
from schemas.metrics import MeasureConfig


@dataclass(frozen=True)
class Compared:
    """How the episodes of one layout differ."""

    states: tuple[str, ...]
    actions: tuple[str, ...]
    drift: Drift


@dataclass(frozen=True)
class Comparison:
    """How two sets of episodes differ."""

    layouts: tuple[Compared, ...]
    """Those of both sets, the one of most rows first."""
    only_first: int
    """Episodes of the first set whose fields the second has not."""
    only_second: int

    @property
    def verdict(self) -> str:
        """What holds for the layout of most rows."""
        return self.layouts[0].drift.verdict if self.layouts else "unknown"


def compare_versions(
    first: Version,
    second: Version,
    config: MeasureConfig,
    *,
    first_where: str | None = None,
    second_where: str | None = None,
    listener: Listener | None = None,
) -> Comparison:
    """Returns how the second set of episodes differs from the first, its reference.

    Args:
        first: the reference version.
        second: the other; may be the same one, with another filter.
        config: which fields count; its `bootstrap` and `seed` are used.
        first_where: a filter; None takes all episodes.
        second_where: the same.
        listener: hears of episodes and steps as they are read.

    Raises:
        UsageError: if either set is empty or has no episode of states and actions.
    """
    one = _side(first, first_where, config, listener)
    two = _side(second, second_where, config, listener)
    shared = sorted(
        one.keys() & two.keys(),
        key=lambda each: (-one[each].moments.rows - two[each].moments.rows, each.key),
    )
    return Comparison(
        tuple(
            Compared(
                tuple(name for name, _ in layout.states),
                tuple(name for name, *_ in layout.actions),
                compare(layout, one[layout], two[layout], config),
            )
            for layout in shared
        ),
        only_first=sum(one[layout].episodes for layout in one.keys() - two.keys()),
        only_second=sum(two[layout].episodes for layout in two.keys() - one.keys()),
    )


def _side(
    version: Version, where: str | None, config: MeasureConfig, listener: Listener | None
) -> dict[Layout, Side]:
    def watched() -> Iterator[Episode]:
        for episode in version.iter_episodes(where) if where else version.iter_episodes():
            yield episode
            if listener is not None:
                listener(1, episode.length)

    found = without_task(accumulate(watched(), DriftStage(config)))
    if not found:
        said = f" that match {where!r}" if where else ""
        raise UsageError(
            f"Expected episodes of states and actions{said}, came none.",
            where=f"{version.branch}:{version.number}",
        )
    return found
