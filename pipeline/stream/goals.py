"""Goals for goal-conditioned learning: observations of the same episode, or of any other.

The kinds are those of hindsight experience replay (Andrychowicz et al., 2017: `final`, `future`,
`episode`) and of OGBench (Park et al., 2025: `current`, `geometric`, `random`, mixed by
probabilities). A goal is a row of the version, and it is reached where the anchor is that row.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from pipeline.stream import plan
from pipeline.stream.index import TransitionIndex
from schemas.stream import StreamConfig

_SCALE = 2**63


@dataclass(frozen=True)
class Goals:
    """How goals are drawn."""

    field: str
    """Full name of the observation field that goals are of."""
    shares: dict[str, Fraction]
    """Probability of each kind."""
    survival: np.ndarray
    """(K,) uint64 and falling, 2^63 times the chance that a geometric offset is above k."""

    @classmethod
    def of(cls, config: StreamConfig, field: str, longest: int) -> Goals:
        """Returns how the settings ask goals to be drawn.

        Args:
            config: the stream's settings.
            field: that goals are of.
            longest: steps of the longest episode; no offset needs to be larger.
        """
        count = longest if "geometric" in config.goal_shares else 0
        # Products alone: a logarithm may round differently on another machine.
        chance = np.cumprod(np.full(count, config.geometric_discount))
        return cls(field, config.goal_shares, (chance * _SCALE).astype(np.uint64))

    def draw(
        self,
        index: TransitionIndex,
        numbers: np.ndarray,
        positions: np.ndarray,
        words: tuple[np.ndarray, np.ndarray],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns where the goals of some transitions are, each of the shape of `numbers`.

        Args:
            index: the transitions.
            numbers: of transitions.
            positions: of their anchors.
            words: random words for the kind and the place of each goal, uint64.

        Returns:
            Rows in the cache, and positions in the version's T+1-row layout.
        """
        episodes, goals = index.owner[numbers], positions.astype(np.int64)
        kinds = list(self.shares)
        ends = np.cumsum([int(share * _SCALE) for share in self.shares.values()][:-1])
        drawn = np.searchsorted(ends.astype(np.uint64), words[0] >> np.uint64(1), side="right")
        for number, kind in enumerate(kinds):
            where = np.nonzero(drawn == number)
            place = words[1][where]
            if kind == "random":
                chosen = plan.below(place, len(index))
                episodes[where], goals[where] = index.owner[chosen], index.find(chosen)[1]
            elif kind != "current":
                goals[where] = self._of_same(kind, index, episodes[where], goals[where], place)
        return goals + index.spans.shift[episodes], goals

    def _of_same(
        self,
        kind: str,
        index: TransitionIndex,
        episodes: np.ndarray,
        at: np.ndarray,
        words: np.ndarray,
    ) -> np.ndarray:
        """Positions of goals within the episodes of their anchors."""
        last: np.ndarray = index.spans.seen[episodes]
        if kind == "final":
            return last
        if kind == "geometric":
            offset = 1 + np.searchsorted(-self.survival.view(np.int64), _minus(words), side="left")
            reached: np.ndarray = np.minimum(at + offset, last)
            return reached
        # After the last observation there is none but itself.
        first = np.minimum(at + 1, last) if kind == "future" else index.spans.begin[episodes]
        found: np.ndarray = first + plan.below_each(words, last - first + 1)
        return found


def _minus(words: np.ndarray) -> np.ndarray:
    """Numbers below 2^63 with their sign turned, so that falling tables are searched rising."""
    return -(words >> np.uint64(1)).view(np.int64)
