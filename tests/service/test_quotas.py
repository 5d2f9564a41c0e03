"""What tokens may use at a time."""

from __future__ import annotations

import datetime as dt

import pytest

from pipeline.service.metrics import MAX_STREAMS, OTHER, ServiceMetrics
from pipeline.service.quotas import BURST_SECONDS, Quotas
from pipeline.service.tokens import Quota, Token
from schemas.errors import BusyError


def token(number: int = 0, **quota: int) -> Token:
    return Token(
        id=f"{number:012d}",
        name=f"t{number}",
        sha256="0" * 64,
        scopes=("push",),
        quota=Quota(**quota),
        created_at=dt.datetime.now(dt.UTC),
    )


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_streams_of_one_token():
    quotas = Quotas(10)
    mine, other = token(0, max_streams=1), token(1)
    with quotas.stream(mine):
        assert quotas.open_streams == 1
        with pytest.raises(BusyError, match="of this token"), quotas.stream(mine):
            pass
        with quotas.stream(other), quotas.stream(other):
            assert quotas.open_streams == 3
    with quotas.stream(mine):
        pass
    assert quotas.open_streams == 0


def test_streams_of_all():
    quotas = Quotas(2)
    with quotas.stream(token(0)), quotas.stream(None):
        with pytest.raises(BusyError) as error, quotas.stream(token(1)):
            pass
        assert error.value.retry_after > 0


def test_bytes_per_second_hold_as_a_mean():
    clock = Clock()
    quotas, mine = Quotas(1, clock=clock), token(0, bytes_per_second=100)
    sent, waits = 0, []
    for _ in range(1000):
        try:
            quotas.spend(mine, 30)
            sent += 30
        except BusyError as error:
            waits.append(error.retry_after)
        clock.now += 0.1
    assert 0 < min(waits) <= max(waits) <= 30 / 100
    assert 100 * 100 <= sent <= 100 * (100 + BURST_SECONDS)


def test_after_the_wait_it_is_taken():
    clock = Clock()
    quotas, mine = Quotas(1, clock=clock), token(0, bytes_per_second=100)
    quotas.spend(mine, 10_000)  # larger than ever saved up: taken when there is most
    with pytest.raises(BusyError) as error:
        quotas.spend(mine, 1)
    clock.now += error.value.retry_after
    quotas.spend(mine, 1)


def test_a_large_put_is_paid_for():
    clock = Clock()
    quotas, mine = Quotas(1, clock=clock), token(0, bytes_per_second=100)
    for _ in range(10):
        quotas.spend(mine, 10_000)
        with pytest.raises(BusyError) as error:
            quotas.spend(mine, 10_000)
        clock.now += error.value.retry_after
    assert clock.now - 100.0 >= 9 * 10_000 / 100


def test_unsealed_bytes():
    quotas, mine = Quotas(1), token(0, unsealed_bytes=100)
    quotas.check_unsealed(mine, -1)
    quotas.pushed(mine, 7, 60)
    quotas.check_unsealed(mine, -1)
    quotas.pushed(mine, 9, 60)
    with pytest.raises(BusyError):
        quotas.check_unsealed(mine, 6)
    quotas.check_unsealed(mine, 7)
    quotas.check_unsealed(token(1, unsealed_bytes=1), -1)


def test_who_has_no_quota_has_no_limit():
    quotas = Quotas(1)
    for one in (None, token()):
        quotas.spend(one, 10**15)
        quotas.pushed(one, 1, 10**15)
        quotas.check_unsealed(one, -1)


def test_labels_of_streams_are_bounded():
    metrics = ServiceMetrics()
    labels = {metrics.stream(f"s{k}") for k in range(10 * MAX_STREAMS)}
    assert len(labels) == MAX_STREAMS + 1
    assert OTHER in labels
    assert metrics.stream("s0") == "s0"


def test_memory_of_bodies():
    quotas = Quotas(1, 100)
    with quotas.buffer(60):
        with pytest.raises(BusyError), quotas.buffer(60):
            pass
        with quotas.buffer(40):
            pass
    with quotas.buffer(100):
        pass
