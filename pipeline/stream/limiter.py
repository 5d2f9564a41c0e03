"""How far sampling may run ahead of inserting, or fall behind: named bounds on one number.

With I steps inserted and S samples taken, `error = I * samples_per_insert - S`. A sample is taken
only if the error stays at `min_error` or above, a step is inserted only if it stays at `max_error`
or below, and neither bound applies before `min_size` steps are there: what Reverb calls
`SampleToInsertRatio`. Nothing is counted here. Both numbers follow from what stores keep (commits
and the references of a run), so several servers may feed one store, and a resumed run goes on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from pipeline.stream.shares import exact_weight
from schemas.errors import ConfigError, OutOfTimeError

LOOK_SECONDS = 0.2


@dataclass(frozen=True)
class SampleToInsertRatio:
    """The bounds, and what they leave.

    Raises:
        ConfigError: for bounds within which nothing could ever move.
    """

    samples_per_insert: Fraction
    """Samples for each inserted step."""
    min_size: int
    """Steps before the first sample; until then any number may be inserted."""
    min_error: Fraction
    """Below it, nothing is sampled."""
    max_error: Fraction
    """Above it, nothing is inserted."""

    def __post_init__(self) -> None:
        """Holds the bounds together."""
        at_first = self.min_size * self.samples_per_insert
        if self.samples_per_insert <= 0 or self.min_size < 1:
            raise ConfigError(
                f"Expected samples_per_insert above 0 and min_size of at least 1, came "
                f"{float(self.samples_per_insert):g} and {self.min_size}."
            )
        if not self.min_error <= at_first <= self.max_error:
            raise ConfigError(
                f"Expected min_error <= min_size * samples_per_insert <= max_error, came "
                f"{float(self.min_error):g}, {float(at_first):g} and {float(self.max_error):g}."
            )

    @classmethod
    def around(
        cls, samples_per_insert: float | Fraction, min_size: int, error_buffer: float | Fraction
    ) -> SampleToInsertRatio:
        """Returns bounds that lie as far on either side of the error that sampling begins with.

        Args:
            samples_per_insert: samples for each inserted step.
            min_size: steps before the first sample.
            error_buffer: samples on either side.
        """
        ratio, buffer = exact_weight(samples_per_insert), exact_weight(error_buffer)
        middle = ratio * min_size
        return cls(ratio, min_size, middle - buffer, middle + buffer)

    def check(self, samples_at_once: int, steps_at_once: int = 1) -> None:
        """Makes sure that neither side can wait for the other for ever.

        Args:
            samples_at_once: that are taken together: online rows of a batch.
            steps_at_once: that are inserted together: those of an episode, if it is not cut.

        Raises:
            ConfigError: if the bounds are too close.
        """
        room = self.max_error - self.min_error
        needed = samples_at_once + steps_at_once * self.samples_per_insert
        if room < needed:
            raise ConfigError(
                f"Expected bounds at least {float(needed):g} samples apart, for {samples_at_once} "
                f"samples and {steps_at_once} steps at once, came {float(room):g}; widen "
                f"error_buffer."
            )

    def error(self, inserted: int, samples: int) -> Fraction:
        """Returns how many samples more could have been taken for the steps that are there."""
        return inserted * self.samples_per_insert - samples

    def samples_left(self, inserted: int, samples: int) -> int:
        """Returns how many samples may be taken now."""
        if inserted < self.min_size:
            return 0
        return max(0, math.floor(self.error(inserted, samples) - self.min_error))

    def insert_limit(self, samples: int) -> int:
        """Returns how many steps there may be in all, while so many samples are taken."""
        return max(self.min_size, math.floor((self.max_error + samples) / self.samples_per_insert))

    def inserts_left(self, inserted: int, samples: int) -> int:
        """Returns how many steps may be inserted now."""
        return max(0, self.insert_limit(samples) - inserted)


class Limiter:
    """Makes a learner wait until it may sample.

    Args:
        ratio: the bounds.
        inserted: returns how many steps there are now; called while the learner waits.
        timeout: seconds to wait without one more step coming, until that is an error.
        clock: seconds that only grow.
        sleep: waits some seconds.
    """

    def __init__(
        self,
        ratio: SampleToInsertRatio,
        inserted: Callable[[], int],
        timeout: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.ratio = ratio
        self.waited = 0.0
        """Seconds, in all."""
        self.known = 0
        """Steps inserted, as of the last look."""
        self._inserted, self._timeout = inserted, timeout
        self._clock, self._sleep = clock, sleep

    def acquire(
        self, samples: int, more: int, while_waiting: Callable[[], None] = lambda: None
    ) -> None:
        """Waits until some samples may be taken.

        Args:
            samples: taken so far.
            more: to be taken.
            while_waiting: called between looks.

        Raises:
            OutOfTimeError: if nothing was inserted for too long.
        """
        if self.ratio.samples_left(self.known, samples) >= more:
            return
        began = moved = self._clock()
        self.known, before = self._inserted(), self.known
        while self.ratio.samples_left(self.known, samples) < more:
            now = self._clock()
            if self.known > before:
                moved, before = now, self.known
            if now - moved > self._timeout:
                self.waited += now - began
                raise OutOfTimeError(self._late(samples, more))
            while_waiting()
            self._sleep(LOOK_SECONDS)
            self.known = self._inserted()
        self.waited += self._clock() - began

    def _late(self, samples: int, more: int) -> str:
        ratio = self.ratio
        least = max(
            ratio.min_size,
            math.ceil((samples + more + ratio.min_error) / ratio.samples_per_insert),
        )
        return (
            f"Expected {least:,} steps of rollouts for sample {samples + more:,} "
            f"({float(ratio.samples_per_insert):g} samples per insert), came {self.known:,} and no "
            f"more for {self._timeout:g} s; look whether actors run and what the service says."
        )
