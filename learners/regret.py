"""What learning online cost while it went on: regret over the training episodes.

A policy that ends well may have failed a thousand times on the way. Where episodes say whether they
succeeded, regret is the mean of 1 - success over all training episodes, as papers on fine-tuning
report it (lower is better, from 0 to 1). Where they do not, it is the mean of 1 - score / 100 with
D4RL's normalised score; and where there are no references either, how far the mean return of the
training episodes lies below that of the best of them, in units of return.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pyarrow as pa

from learners.scores import normalized_score
from pipeline.store.reader import Version

COLUMNS = ("episode_return", "success")


@dataclass(frozen=True)
class Regret:
    """What the training episodes so far fell short by."""

    value: float
    kind: Literal["success", "normalized", "best_return"]
    """Of what: see the module."""
    episodes: int
    """Training episodes it is the mean over."""


@dataclass
class Tally:
    """Training episodes of one run."""

    environment: str
    returns: list[float] = field(default_factory=list)
    successes: list[bool | None] = field(default_factory=list)

    def add(self, episodes: Iterable[tuple[float | None, bool | None]]) -> None:
        """Counts episodes, (return, success); one without rewards has a return of NaN."""
        for gained, success in episodes:
            self.returns.append(float("nan") if gained is None else float(gained))
            self.successes.append(success)

    def regret(self) -> Regret | None:
        """Returns the regret so far; None without episodes, or where nothing judges them."""
        count = len(self.returns)
        said = [success for success in self.successes if success is not None]
        if count and len(said) == count:
            return Regret(1.0 - sum(said) / count, "success", count)
        returns = np.array(self.returns)
        if not count or not np.isfinite(returns).all():
            return None
        score = normalized_score(self.environment, float(returns.mean()))
        if score is not None:
            return Regret(1.0 - score / 100.0, "normalized", count)
        return Regret(float(returns.max() - returns.mean()), "best_return", count)


def tally_of(version: Version, environment: str, column: str, start: str) -> Tally:
    """Returns the training episodes of one run in a version.

    Args:
        version: holds them, and maybe others.
        environment: that they were played in.
        column: of episodes, texts.
        start: what that column of this run's episodes begins with.
    """
    table = version.episodes(columns=[column, *COLUMNS])
    mine = pa.compute.fill_null(pa.compute.starts_with(table[column], start), False)
    rows = table.filter(mine)
    found = Tally(environment)
    found.add(zip(*(rows[name].to_pylist() for name in COLUMNS), strict=True))
    return found
