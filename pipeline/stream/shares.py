"""How many rows of each source a batch holds, exactly, as a pure function of the step.

A batch of B rows from sources with weights w_i holds floor(w_i B) or ceil(w_i B) rows of each. Who
gets the rows left over is decided by systematic sampling with an offset that walks through its
whole period, so that counts are exact over a period and never far from their share in between.
All of it is integer arithmetic on the step number: any rank and any resumed run agrees.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from schemas.errors import ConfigError

_GOLDEN = 618_033_988_749_895  # 1e15 (sqrt(5) - 1) / 2: steps of this share spread most evenly

Ends = float | Sequence[float]
"""One end of an anneal: a weight per source, or the share of the first."""
Anneal = tuple[int, Ends, Ends]
"""Over how many batches weights move, from which end to which."""


class Shares:
    """How many rows of each source a global batch holds.

    Args:
        weights: of the sources, not negative.
        batch_size: B.

    Raises:
        ConfigError: if no weight is positive.
    """

    def __init__(self, weights: Sequence[Fraction], batch_size: int) -> None:
        if not weights or sum(weights) == 0:
            raise ConfigError("Expected weights with a positive sum, came none above 0.")
        self.weights = [weight / sum(weights) for weight in weights]
        shares = [weight * batch_size for weight in self.weights]
        self._whole = [math.floor(share) for share in shares]
        left_over = [share - math.floor(share) for share in shares]
        ends = list(itertools.accumulate(left_over, initial=Fraction(0)))
        self._period = math.lcm(*(end.denominator for end in ends))
        # Ends of the left-over shares on a line of whole numbers, one row per period.
        self._ends = [int(end * self._period) for end in ends]
        self._stride = _coprime_near(self._period * _GOLDEN // 10**15, self._period)

    def said(self) -> None:
        """These shares do not move."""

    def counts(self, step: int) -> tuple[int, ...]:
        """Returns the rows per source in one global batch, of sum B."""
        offset = step * self._stride % self._period
        reached = [(end + offset) // self._period for end in self._ends]
        extra = [after - before for before, after in itertools.pairwise(reached)]
        return tuple(whole + more for whole, more in zip(self._whole, extra, strict=True))


class Annealed:
    """Shares whose weights move in a straight line, and stay where they end.

    Args:
        steps: over how many batches, at least 1.
        start: weights of the first batch.
        end: weights from batch `steps` on.
        batch_size: B.

    Raises:
        ConfigError: for weights without a positive sum.
    """

    def __init__(
        self, steps: int, start: Sequence[Fraction], end: Sequence[Fraction], batch_size: int
    ) -> None:
        self.steps, self._size = steps, batch_size
        self.start, self.end = (Shares(weights, batch_size).weights for weights in (start, end))

    @property
    def weights(self) -> list[Fraction]:
        """Weights of the first batch, of sum 1."""
        return self.start

    def said(self) -> list[Any]:
        """Returns how these shares move, in plain values."""
        return [self.steps, *([str(w) for w in end] for end in (self.start, self.end))]

    def at(self, step: int) -> list[Fraction]:
        """Returns the weights of one batch, of sum 1."""
        gone = Fraction(min(step, self.steps), self.steps)
        pairs = zip(self.start, self.end, strict=True)
        return [before + (after - before) * gone for before, after in pairs]

    def counts(self, step: int) -> tuple[int, ...]:
        """Returns the rows per source in one global batch, of sum B."""
        # As in `Shares`, by an offset of a fixed fine grid, as the shares have no period.
        offset = Fraction(step * _GOLDEN % 10**15, 10**15)
        ends = itertools.accumulate((w * self._size for w in self.at(step)), initial=Fraction(0))
        reached = [math.floor(end + offset) for end in ends]
        return tuple(after - before for before, after in itertools.pairwise(reached))


def mixed_shares(
    weights: Sequence[Fraction], batch_size: int, anneal: Anneal | None = None
) -> Shares | Annealed:
    """Returns shares of some weights, still or moving.

    Args:
        weights: of the sources.
        batch_size: B.
        anneal: how they move; an end that is one number leaves the others their weights among
            them.

    Raises:
        ConfigError: for weights or steps that do not fit.
    """
    if anneal is None:
        return Shares(weights, batch_size)
    if len(anneal) != 3 or anneal[0] < 1:
        raise ConfigError(
            f"Expected anneal=(steps, start, end) over at least 1 step, came {anneal}."
        )
    steps, *ends = anneal
    first, last = (_end_weights(end, weights) for end in ends)
    return Annealed(steps, first, last, batch_size)


def _end_weights(end: Ends, weights: Sequence[Fraction]) -> list[Fraction]:
    """The weights that one end of an anneal means."""
    if not isinstance(end, Sequence):
        share, others = exact_weight(end), sum(weights[1:])
        if share > 1 or (share < 1 and not others):
            raise ConfigError(
                f"Expected a share of the first of several streams up to 1, came {end}."
            )
        return [share, *((1 - share) * w / others if others else w * 0 for w in weights[1:])]
    if len(end) != len(weights):
        raise ConfigError(
            f"Expected one weight for each of {len(weights)} streams, came {list(end)}."
        )
    return [exact_weight(weight) for weight in end]


def exact_weight(weight: float | Fraction) -> Fraction:
    """Returns a weight as it is written, so that 0.1 is one tenth.

    Raises:
        ConfigError: if it is negative or not a finite number.
    """
    try:
        exact = Fraction(str(weight))
    except ValueError:
        exact = Fraction(-1)
    if exact < 0:
        raise ConfigError(f"Expected a weight of at least 0, came {weight}.")
    return exact


def _coprime_near(start: int, period: int) -> int:
    """The first number from `start` on without a common factor with the period."""
    number = max(start, 1)
    while math.gcd(number, period) != 1:
        number += 1
    return number
