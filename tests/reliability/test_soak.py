"""A short soak, and what the rules of a long one make of servers that leak."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.reliability.soak import SoakConfig, soak, summary
from tests.reliability.soak_rules import LOG_BYTES, MIB, Outcome, Sample, broken_rules

SECONDS = 600.0 if os.environ.get("PENSTOCK_LONG") == "1" else 10.0


def test_a_short_soak(tmp_path: Path) -> None:
    config = SoakConfig(
        seconds=SECONDS,
        sample_every=SECONDS / 12,
        peak_seconds=2.0,
        read_again=50,
        tail_seconds=5.0,
        serve=("--seal-every", "1s"),
    )
    done = soak(tmp_path, config, lambda _: None)
    assert done.broken == []
    told = summary(done)
    assert told["stored"] == told["pushed"] == told["acknowledged"] > 50
    assert told["steps"] > 0


GOOD = Outcome(
    pushed=9, acknowledged=9, stored=9, lost=0, doubled=0, unasked=0, altered=0, tail_lost=0,
    tail_doubled=0, failures=(),
)  # fmt: skip


def samples(change: Callable[[int], dict[str, float]] = lambda _: {}) -> list[Sample]:
    """Half an hour of samples whose memory swings, changed as asked."""
    one = Sample(
        seconds=0, steps=0, rss=300 * MIB, fds=20, threads=23, log_bytes=64 * MIB, seal_lag=1,
        ack_p50=1, ack_p99=9, tail_behind=0,
    )  # fmt: skip
    steady = [
        dataclasses.replace(one, seconds=10.0 * k, steps=10_000 * k, rss=(300 + k * 37 % 90) * MIB)
        for k in range(180)
    ]
    return [dataclasses.replace(at, **change(k)) for k, at in enumerate(steady)]


def test_a_steady_server_breaks_no_rule() -> None:
    assert broken_rules(samples(), GOOD) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda k: {"rss": (300 + k * 37 % 90 + k) * MIB}, "resident memory"),
        (lambda k: {"fds": 20 + k // 20}, "fds grew"),
        (lambda k: {"threads": 23 + k // 20}, "threads grew"),
        (lambda k: {"log_bytes": LOG_BYTES + 1} if k == 90 else {}, "the log had"),
    ],
    ids=["memory", "fds", "threads", "log"],
)
def test_a_server_that_leaks_is_found(change: Callable[[int], dict[str, float]], said: str) -> None:
    (sentence,) = broken_rules(samples(change), GOOD)
    assert said in sentence


@pytest.mark.parametrize(
    "name", ["lost", "doubled", "unasked", "altered", "tail_lost", "tail_doubled"]
)
def test_an_episode_gone_wrong_is_found(name: str) -> None:
    (sentence,) = broken_rules(samples(), dataclasses.replace(GOOD, **{name: 1}))
    assert sentence == f"1 episodes {name.replace('_', ' ')}"
    assert broken_rules(samples(), dataclasses.replace(GOOD, acknowledged=8, failures=("x",))) == [
        *("1 episodes were not acknowledged", "x")
    ]
