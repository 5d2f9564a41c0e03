"""The samples-per-insert limiter: its bounds hold whatever is asked of it; starvation is said."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.stream.limiter import Limiter, SampleToInsertRatio
from schemas.errors import ConfigError, OutOfTimeError

OPERATIONS = 1_000_000


def test_the_error_stays_within_its_bounds_over_a_million_operations() -> None:
    chance = random.Random(7)
    ratio = SampleToInsertRatio.around(Fraction(8, 3), min_size=500, error_buffer=600)
    ratio.check(samples_at_once=128, steps_at_once=40)
    # Integers throughout: thirds of a sample.
    least, most = int(ratio.min_error * 3), int(ratio.max_error * 3)
    inserted = samples = refused = 0
    errors = []
    for _ in range(OPERATIONS):
        inserts = chance.random() < 0.6
        if inserts:
            more = chance.randrange(1, 41)
            is_allowed = ratio.inserts_left(inserted, samples) >= more
            inserted += more * is_allowed
        else:
            more = chance.randrange(1, 129)
            is_allowed = ratio.samples_left(inserted, samples) >= more
            samples += more * is_allowed
        refused += not is_allowed
        error = inserted * 8 - samples * 3
        if samples:
            errors.append(error)
            assert least <= error <= most
    assert min(errors) < least + 3 * 128  # both bounds were met
    assert max(errors) > most - 8 * 40
    assert OPERATIONS // 100 < refused < OPERATIONS
    assert abs(samples / inserted - 8 / 3) <= ratio.max_error / inserted


@given(
    spi=st.fractions(Fraction(1, 50), 50, max_denominator=60),
    min_size=st.integers(1, 2000),
    at_once=st.integers(1, 512),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=60, deadline=None)
def test_one_of_both_sides_can_always_go_on(
    spi: Fraction, min_size: int, at_once: int, seed: int
) -> None:
    chance = random.Random(seed)
    ratio = SampleToInsertRatio.around(spi, min_size, at_once + spi)
    ratio.check(at_once)
    inserted = samples = 0
    for _ in range(300):
        may_insert = ratio.inserts_left(inserted, samples) >= 1
        may_sample = ratio.samples_left(inserted, samples) >= at_once
        assert may_insert or may_sample
        if may_insert and (chance.random() < 0.5 or not may_sample):
            inserted += chance.randint(1, ratio.inserts_left(inserted, samples))
        else:
            samples += at_once
        if inserted >= min_size:
            assert ratio.min_error <= ratio.error(inserted, samples) <= ratio.max_error


def test_nothing_is_sampled_before_there_is_enough() -> None:
    ratio = SampleToInsertRatio.around(4, min_size=100, error_buffer=1000)
    assert ratio.samples_left(99, 0) == 0
    assert ratio.samples_left(100, 0) == 1000
    assert ratio.insert_limit(0) == 350


@pytest.mark.parametrize(
    "bounds", [(0, 1, 1), (1, 0, 1)], ids=["nothing sampled", "no size to begin with"]
)
def test_bounds_in_which_nothing_moves_are_refused(bounds: tuple[int, int, int]) -> None:
    with pytest.raises(ConfigError):
        SampleToInsertRatio.around(*bounds)
    with pytest.raises(ConfigError, match="widen error_buffer"):
        SampleToInsertRatio.around(1, 10, 8).check(samples_at_once=16)
    with pytest.raises(ConfigError, match="max_error"):
        SampleToInsertRatio(Fraction(1), 10, Fraction(0), Fraction(5))


class Clock:
    """Time that passes while one sleeps; steps come at some moments."""

    def __init__(self, arrivals: dict[float, int]) -> None:
        self.now, self.arrivals = 0.0, arrivals

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def inserted(self) -> int:
        return max((n for at, n in self.arrivals.items() if at <= self.now), default=0)

    def limiter(self, ratio: SampleToInsertRatio, timeout: float) -> Limiter:
        return Limiter(ratio, self.inserted, timeout, clock=lambda: self.now, sleep=self.sleep)


def test_a_learner_waits_as_long_as_steps_come() -> None:
    ratio = SampleToInsertRatio.around(1, min_size=10, error_buffer=50)
    clock = Clock({float(at): at for at in range(0, 40, 8)})
    limiter = clock.limiter(ratio, timeout=9)
    looks = []
    limiter.acquire(0, 50, lambda: looks.append(clock.now))
    assert 16 <= clock.now < 17  # at 16 steps the ratio's size is reached
    assert limiter.known == 16
    assert limiter.waited == pytest.approx(clock.now)
    assert len(looks) > 10
    limiter.acquire(50, 6, lambda: pytest.fail("there is room"))


def test_starvation_is_said() -> None:
    ratio = SampleToInsertRatio.around(2, min_size=10, error_buffer=50)
    clock = Clock({0.0: 12, 3.0: 20})
    limiter = clock.limiter(ratio, timeout=5)
    with pytest.raises(OutOfTimeError, match=r"Expected 200 steps .* came 20 .* 5 s") as told:
        limiter.acquire(400, 30)
    assert told.value.kind == "timeout"
    assert 8 <= clock.now < 9
