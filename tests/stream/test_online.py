"""Rollouts as a source: what counts as inserted, what is fresh, and reading what one wrote."""

from __future__ import annotations

import datetime as dt
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest

from pipeline.service.intake import Hooks
from pipeline.service.rollout_log import RolloutLog, RolloutLogConfig
from pipeline.store.store import Store, open_store
from pipeline.stream.loader import Stream
from pipeline.stream.online import Freshness, OnlineSource, policy_stamp, sealed_offset, wait_for
from schemas.episode import Episode
from schemas.errors import ConfigError, OutOfTimeError, TransientError, UsageError
from schemas.puts import puts_of
from tests.service.ports import episode as service_episode
from tests.service.ports import service_in
from tests.store.makers import episode

NOW = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)


def played(name: str, step: int, age: float | None = 0.0, run: str = "iql-1") -> Episode:
    moment = None if age is None else NOW - dt.timedelta(seconds=age)
    return episode(name, 10).replace(
        kind="rollout", policy_version=policy_stamp(run, step), collected_at=moment
    )


def ids(version: object) -> list[str]:
    found: list[str] = version.episodes(columns=["episode_id"])["episode_id"].to_pylist()  # type: ignore[attr-defined]
    return found


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path / "cache"))
    return open_store(tmp_path / "s", create=True)


def test_only_what_the_run_played_counts(store: Store) -> None:
    source = OnlineSource(store, "main", "iql-1")
    assert source.look() is None
    assert (source.inserted(), source.fresh(0)) == (0, None)
    store.append([episode("demo", 30), played("a", 0), played("b", 5, run="iql-10")])
    assert source.inserted() == 10
    found = source.fresh(0)
    assert found is not None
    assert ids(found) == ["a"]
    assert found.branch == "iql-1-rollouts"
    store.append([played("c", 7)])
    look = source.look()
    assert look is not None
    assert (look.episodes, look.steps, look.newest) == (2, 20, 7)


def test_a_branch_of_fresh_rollouts_alone_is_read_as_it_is(store: Store) -> None:
    head = store.append([played("a", 0), played("b", 5)])
    source = OnlineSource(store, "main", "iql-1", Freshness(max_lag=5))
    found = source.fresh(newest=5)
    assert found is not None
    assert found.id == head.id
    assert "iql-1-rollouts" not in store.branches()


@pytest.mark.parametrize(
    ("bounds", "kept"),
    [
        (Freshness(), ["old", "late", "timeless", "new"]),
        (Freshness(max_lag=40), ["late", "timeless", "new"]),
        (Freshness(max_age=60), ["old", "new"]),
        (Freshness(max_lag=40, max_age=60), ["new"]),
        (Freshness(max_lag=0), ["new"]),
    ],
    ids=["any", "lag", "age", "both", "on policy"],
)
def test_stale_rollouts_are_not_drawn(store: Store, bounds: Freshness, kept: list[str]) -> None:
    store.append(
        [
            played("old", 10, age=1),
            played("late", 60, age=61),
            played("timeless", 70, age=None),
            played("new", 100, age=59),
        ]
    )
    source = OnlineSource(store, "main", "iql-1", bounds)
    found = source.fresh(newest=100, now=NOW.timestamp())
    assert found is not None
    assert ids(found) == kept
    again = source.fresh(newest=100, now=NOW.timestamp())
    assert again is not None
    assert again.id == found.id  # nothing new, so no new version
    drawn = next(Stream(found, batch_size=500, framework="numpy", episode_ids=True))
    assert set(drawn["episode_ids"]) == set(kept)
    assert source.fresh(newest=200, now=NOW.timestamp() + 100) is None or bounds == Freshness()


def test_bounds_that_nothing_keeps_are_refused() -> None:
    for wrong in ({"max_lag": -1}, {"max_age": 0.0}):
        with pytest.raises(ConfigError):
            Freshness(**wrong)


def test_a_replay_draws_what_was_fresh_then(store: Store) -> None:
    """The bound moves; what was decided does not."""
    store.append([played(f"e{k}", k) for k in range(6)])
    source = OnlineSource(store, "main", "iql-1", Freshness(max_lag=2))

    def opened() -> Stream:
        first = source.fresh(newest=3)
        assert first is not None
        return Stream(first, run="r", batch_size=32, framework="numpy", episode_ids=True)

    live = opened()
    drawn = []
    for step in range(40):
        if step % 10 == 0:
            newest = source.fresh(newest=3 + step // 10)
            assert newest is not None
            live.follow(newest)
        batch = next(live)
        drawn.append(batch)
        oldest = min(int(name[1:]) for name in batch["episode_ids"])
        assert oldest >= 1 + step // 10
    store.append([played("late", 50)])
    again = opened()  # reads the run's references: nobody follows anything here
    for batch in drawn:
        assert np.array_equal(next(again)["indices"], batch["indices"])
    assert set(drawn[-1]["episode_ids"]) == {"e4", "e5"}


def test_what_was_acknowledged_is_read(store: Store, tmp_path: Path) -> None:
    config = RolloutLogConfig(tmp_path / "wal", seal_every=None, disk_reserve_bytes=0)
    with RolloutLog(store, config, Hooks()) as log:
        for number in range(3):
            offset = log.push(list(puts_of(played(f"p{number}", 1), producer="a", epoch=number)))
            with pytest.raises(OutOfTimeError, match=f"offset {offset}") as told:
                wait_for(store, "main", offset, log.server, timeout=0)
            assert told.value.kind == "timeout"
            late = threading.Timer(0.3, log.seal)
            late.start()
            version = wait_for(store, "main", offset, log.server)
            late.join()
            assert f"p{number}" in ids(version)
            assert sealed_offset(version, log.server) >= offset
            assert sealed_offset(version, "another") == -1
        stream = Stream(store.version("main:1"), batch_size=200, framework="numpy")
        assert stream.transitions == 10
        with pytest.raises(UsageError, match="server="):
            stream.wait_for(int(offset))
        stream.wait_for(int(offset), log.server)
        assert stream.transitions == 30
        with pytest.raises(OutOfTimeError):
            stream.wait_for(offset + 1, log.server, timeout=0)


def test_a_service_tells_the_newest_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path / "cache"))
    settings = {"batch_size": 16, "framework": "numpy", "follow": "main", "follow_every": 5}
    with service_in(tmp_path) as port:
        monkeypatch.setenv("PENSTOCK_TOKEN", port.texts["pull"])
        newer = port.store.append([played_there("new")])
        stream = Stream(port.store.version("main:1"), run="r", service=port.url, **settings)
        for _ in range(6):
            next(stream)
        assert stream.version.id == newer.id
        other = open_store(tmp_path / "other", create=True).append([episode("e", 9)])
        wrong = Stream(other, run="r", service=port.url, **settings)
        with pytest.raises(UsageError, match="another store"):
            [next(wrong) for _ in range(6)]
        away = Stream(port.store.version("main"), run="r2", service=port.url, **settings)
    with pytest.raises(TransientError, match="Expected a service that answers"):
        [next(away) for _ in range(12)]
    with pytest.raises(ConfigError, match="service needs follow="):
        Stream(port.store.version("main"), service=port.url)


def test_a_stream_opens_on_what_was_pushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read your writes, at opening: the version given is an older one of the store."""
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path / "cache"))
    settings = {"batch_size": 16, "framework": "numpy", "follow": "main"}
    with service_in(tmp_path) as port:
        monkeypatch.setenv("PENSTOCK_TOKEN", port.texts["pull"])
        log, first = port.state.log, port.store.version("main:1")
        puts = list(puts_of(played_there("mine"), producer="a", epoch=1))
        late = threading.Timer(0.3, log.seal)
        offset = log.push(puts)
        late.start()
        stream = Stream(first, run="r", service=port.url, min_offset=offset, **settings)
        late.join()
        assert "mine" in ids(stream.version)
        assert pickle.loads(pickle.dumps(stream)).version.id == stream.version.id
        other = open_store(tmp_path / "other", create=True).append([episode("e", 9)])
        with pytest.raises(UsageError, match="another store"):
            Stream(other, service=port.url, min_offset=offset, **settings)
    with pytest.raises(ConfigError, match="min_offset needs service="):
        Stream(first, min_offset=1)


def played_there(name: str) -> Episode:
    return service_episode(name, 3)


def test_that_nothing_new_is_read_is_decided_too(store: Store) -> None:
    """Whoever comes to the same step later, with newer data, reads what was read first."""
    first = store.append([played("a", 1)])

    def opened() -> Stream:
        return Stream(first, run="r", batch_size=8, framework="numpy", episode_ids=True)

    live = opened()
    drawn = [next(live) for _ in range(5)]
    live.follow(first)
    drawn += [next(live) for _ in range(5)]
    newer = store.append([played("b", 2)])
    again = opened()
    for step, batch in enumerate(drawn):
        if step == 5:
            again.follow(newer)
        assert np.array_equal(next(again)["indices"], batch["indices"])
    again.follow(newer)
    assert {name for _ in range(9) for name in next(again)["episode_ids"]} == {"a", "b"}
