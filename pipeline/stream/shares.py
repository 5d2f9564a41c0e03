"""How many rows of each source a batch holds, exactly, as a pure function of the step.

A batch of B rows from sources with weights w_i holds floor(w_i B) or ceil(w_i B) rows of each. Who
gets the rows left over is decided by systematic sampling with an offset that walks through its
whole period, so that counts are exact over a period and never far from their share in between.
All of it is integer arithmetic on the step number: any rank and any resumed run agrees.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from schemas.errors import ConfigError

_GOLDEN = 618_033_988_749_895  # 1e15 (sqrt(5) - 1) / 2: steps of this share spread most evenly


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

    def counts(self, step: int) -> tuple[int, ...]:
        """Returns the rows per source in one global batch, of sum B."""
        offset = step * self._stride % self._period
        reached = [(end + offset) // self._period for end in self._ends]
        extra = [after - before for before, after in itertools.pairwise(reached)]
        return tuple(whole + more for whole, more in zip(self._whole, extra, strict=True))


def exact_weight(weight: float) -> Fraction:
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


@functools.lru_cache(maxsize=256)
def interleave(counts: tuple[int, ...]) -> np.ndarray:
    """Returns which source each row of a batch is of, spread evenly, (sum of counts,) int64."""
    owners = np.repeat(np.arange(len(counts)), counts)
    within = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - np.array(counts), counts)
    places = (2 * within + 1) / (2 * np.repeat(counts, counts))
    spread = owners[np.argsort(places, kind="stable")]
    spread.flags.writeable = False  # shared by all who ask
    return spread


def _coprime_near(start: int, period: int) -> int:
    """The first number from `start` on without a common factor with the period."""
    number = max(start, 1)
    while math.gcd(number, period) != 1:
        number += 1
    return number
