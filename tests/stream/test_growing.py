"""Streams of a run: versions are decided once, at one step for all ranks, and read again alike."""

from __future__ import annotations

import datetime as dt
import hashlib
import multiprocessing as mp
import random
import threading
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.store import runs
from pipeline.store.store import Store, open_store
from pipeline.stream import seen
from pipeline.stream.loader import Stream
from pipeline.stream.mixture import Mixture
from schemas.errors import ConfigError, FilesExpiredError, NotFoundError, UsageError
from tests.stream.conftest import made_episode, made_episodes
from tests.stream.references import stream, take

RANKS, BATCH, EVERY, STEPS = 4, 22, 5, 60


def named_rows(batches: Any) -> list[tuple[str, ...]]:
    """Which rows batches hold, by the episode's name and the step's place."""
    return [
        tuple(f"{name}:{at}" for name, at in zip(b["episode_ids"], b["indices"], strict=True))
        for b in batches
    ]


def digest(batches: Sequence[Sequence[str]]) -> str:
    return hashlib.sha256("\n".join(" ".join(rows) for rows in batches).encode()).hexdigest()


def following(store: Store | str, **settings: Any) -> Stream:
    url = store if isinstance(store, str) else store.url
    given = {"run": "r1", "follow": "main", "follow_every": EVERY, "batch_size": BATCH}
    return stream(url, **{**given, "episode_ids": True, **settings})


def read_as_a_rank(url: str, rank: int, kind: str, told: Connection) -> None:
    """What each process does: reads at a pace of its own and says which rows it drew."""
    pace = random.Random(rank)
    found = []
    for batch in opened(url, kind, rank=rank, world_size=RANKS):
        found += named_rows([batch])
        time.sleep(pace.uniform(0, 0.01))
        if len(found) == STEPS:
            break
    told.send(found)


def opened(url: str, kind: str, **settings: Any) -> Stream | Mixture:
    if kind == "stream":
        return following(url, **settings)
    grows = following(url, **{"run": None, **settings})
    still = stream(f"{url}@main:1", batch_size=BATCH, episode_ids=True, seed=5, **settings)
    return Mixture([(still, 0.3), (grows, 0.7)], batch_size=BATCH, seed=3, run="r1")


@pytest.mark.parametrize("kind", ["stream", "mixture"])
def test_ranks_that_race_while_the_store_grows_read_one_order(store: Store, kind: str) -> None:
    context = mp.get_context("fork")
    pipes = [context.Pipe(duplex=False) for _ in range(RANKS)]
    ranks = [
        context.Process(target=read_as_a_rank, args=(store.url, rank, kind, told))
        for rank, (_, told) in enumerate(pipes)
    ]
    for process in ranks:
        process.start()
    grown = 30
    while not all(hear.poll() for hear, _ in pipes):
        store.append(made_episodes(range(grown, grown + 2), seed=grown))
        grown += 2
        time.sleep(0.02)
        assert any(process.is_alive() for process in ranks) or all(h.poll() for h, _ in pipes)
    parts = [hear.recv() for hear, _ in pipes]
    for process in ranks:
        process.join(30)
    merged = [sum((part[step] for part in parts), ()) for step in range(STEPS)]
    references = runs.references(store.catalog, "r1")
    assert [one.step for one in references[: STEPS // EVERY]] == list(range(0, STEPS, EVERY))
    replayed = take(opened(store.url, kind), STEPS)
    assert digest(named_rows(replayed)) == digest(merged)


def test_a_step_is_decided_by_who_comes_first(store: Store) -> None:
    early = following(store, rank=0, world_size=2)
    late = following(store, rank=1, world_size=2)
    take(early, EVERY)  # gathered at once with many that follow, which are decided with it
    first = store.version()
    grown = store.append(made_episodes(range(30, 40)))
    take(late, 30 * EVERY)
    decided = [one.versions[0].id for one in runs.references(store.catalog, "r1")]
    assert decided[:2] == [first.id, first.id]
    assert grown.id in decided
    take(early, 29 * EVERY)
    assert early.state_dict() == late.state_dict()
    assert "The run 'r1' decides" in early.describe()
    assert "newest version of main every 5 steps" in early.describe()


def test_a_state_of_a_dead_rank_reads_what_it_had_decided(store: Store) -> None:
    live = following(store)
    drawn = take(live, 7)
    state = live.state_dict()
    store.append(made_episodes(range(30, 40)))
    live = following(store)
    live.load_state_dict(state)
    drawn += take(live, 90)
    store.append(made_episodes(range(40, 50)))  # after the dead one had decided
    again = following(store)
    again.load_state_dict(state)
    assert named_rows(take(again, 90)) == named_rows(drawn[7:])
    # A replay needs neither a state nor the name of the branch.
    replay = stream(store.url, run="r1", batch_size=BATCH, episode_ids=True)
    assert named_rows(take(replay, 97)) == named_rows(drawn)


def test_what_a_rank_follows_by_itself_is_decided_too(store: Store) -> None:
    first, second = (
        stream(store.url, run="r1", rank=rank, world_size=2, batch_size=8) for rank in (0, 1)
    )
    for ranked in (first, second):
        take(ranked, 10)
    one = store.append(made_episodes(range(30, 40)))
    two = store.append(made_episodes(range(40, 50)))
    first.follow(one)
    second.follow(two)
    for ranked in (second, first):  # the second is the first to draw
        take(ranked, 3)
    assert {ranked.version.id for ranked in (first, second)} == {two.id}
    assert [r.step for r in runs.references(store.catalog, "r1")] == [0, 10]
    replay = stream(store.url, run="r1", batch_size=8)
    still = store.version("main:1").id
    assert [replay.feed.id_at(step) for step in (0, 9, 10)] == [still, still, two.id]


def test_epochs_go_on_where_a_decision_changes_nothing(store: Store) -> None:
    plain = take(stream(store.url, sampler="shuffle", batch_size=BATCH), 40)
    decided = take(following(store, sampler="shuffle"), 40)
    for mine, came in zip(plain, decided, strict=True):
        np.testing.assert_array_equal(mine["indices"], came["indices"])


def test_a_thread_that_gathers_ahead_decides_the_same(store: Store) -> None:
    ahead = following(store, prefetch=3)
    drawn = take(ahead, 8)
    store.append(made_episodes(range(30, 60)))
    drawn += take(ahead, 500)
    ahead.close()
    assert len(ahead.state_dict()["versions"]) == 2
    assert named_rows(take(following(store), 508)) == named_rows(drawn)


def test_threads_of_one_process_agree(store: Store) -> None:
    found: dict[int, list[Any]] = {}

    def read(rank: int) -> None:
        found[rank] = named_rows(take(following(store, rank=rank, world_size=3), 40))

    threads = [threading.Thread(target=read, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for number in range(5):
        store.append(made_episodes(range(200 + 2 * number, 202 + 2 * number)))
    for thread in threads:
        thread.join()
    merged = [sum((found[rank][step] for rank in range(3)), ()) for step in range(40)]
    assert digest(named_rows(take(following(store), 40))) == digest(merged)


# -- mixtures --------------------------------------------------------------------------------------


def mixed(store: Store, **settings: Any) -> Mixture:
    streams = [stream(store.url, batch_size=20, episode_ids=True, seed=k) for k in (0, 1)]
    given: dict[str, Any] = {"batch_size": 20, "seed": 1}
    return Mixture([(one, 1.0) for one in streams], **{**given, **settings})


def test_weights_change_from_the_next_batch_on(store: Store) -> None:
    mixture = mixed(store)
    take(mixture, 10)
    mixture.reweigh([0.9, 0.1])
    assert [mixture.counts(step) for step in (9, 10)] == [[10, 10], [18, 2]]
    batches = take(mixture, 5)
    assert all(batch["is_demonstration"].sum() == 18 for batch in batches)
    again = mixed(store)
    again.load_state_dict({**mixture.state_dict(), "step": 10})
    assert named_rows(take(again, 5)) == named_rows(batches)
    with pytest.raises(ConfigError, match="2 streams"):
        mixture.reweigh([1.0])
    with pytest.raises(ConfigError, match="still weights"):
        mixed(store, anneal=(10, 0.2, 0.8)).reweigh([1, 1])
    with pytest.raises(ConfigError, match="weights by their first step"):
        again.load_state_dict({**mixture.state_dict(), "reweighed": {"10": ["1/0", "1"]}})


def test_weights_are_decided_for_all_ranks(store: Store) -> None:
    one, two = mixed(store, run="r1"), mixed(store, run="r1")
    drawn = {}
    for name, mixture, share in (("one", one, 0.25), ("two", two, 0.75)):
        drawn[name] = take(mixture, 6)
        mixture.reweigh([share, 1 - share])
    drawn["two"] += take(two, 4)
    drawn["one"] += take(one, 4)
    assert one.counts(6) == two.counts(6) == [15, 5]
    last = runs.references(store.catalog, "r1")[-1]
    assert last.mixture is not None
    assert (last.step, last.mixture.weights) == (6, ("3/4", "1/4"))
    replayed = named_rows(take(mixed(store, run="r1"), 10))
    assert replayed == named_rows(drawn["one"]) == named_rows(drawn["two"])


def test_epochs_go_on_when_weights_change(store: Store) -> None:
    sources = [
        (stream(store.url, sampler="shuffle", batch_size=20, episode_ids=True), 1) for _ in (1, 2)
    ]
    mixture = Mixture(sources, batch_size=20, seed=1)
    total = mixture.transitions[0]
    drawn: list[str] = []
    while len(drawn) < total:
        if mixture.step == 7:
            mixture.reweigh([0.8, 0.2])
        batch = next(mixture)
        (rows,) = named_rows([batch])
        drawn += [row for row, mine in zip(rows, batch["is_demonstration"], strict=True) if mine]
    assert mixture.step > 20
    assert len(set(drawn[:total])) == total


def test_stores_of_a_mixture_each_know_the_run(store: Store, tmp_path: Path) -> None:
    other = open_store(tmp_path / "other", create=True)
    other.append(made_episodes(range(100, 110)))

    def both(**settings: Any) -> Mixture:
        grows = stream(other.url, batch_size=20, follow="main", follow_every=8, episode_ids=True)
        sources = [(stream(store.url, batch_size=20, episode_ids=True), 1), (grows, 3)]
        return Mixture(sources, batch_size=20, run="r1", **settings)

    mixture = both()
    drawn = take(mixture, 3)
    grown = other.append(made_episodes(range(110, 140)))
    drawn += take(mixture, 100)
    for one, source in ((store, 0), (other, 1)):
        references = runs.references(one.catalog, "r1")
        assert {r.mixture.sources for r in references if r.mixture} == {(source,)}
        assert {r.mixture.weights for r in references if r.mixture} == {("1/4", "3/4")}
    assert mixture.members[1][0].id == grown.id
    assert named_rows(take(both(), 103)) == named_rows(drawn)


# -- which episodes were drawn ---------------------------------------------------------------------


def counted(batches: Sequence[Any], episode: str) -> tuple[int, int]:
    """Batches that hold an episode, and rows of it, by looking."""
    rows = [int((batch["episode_ids"] == episode).sum()) for batch in batches]
    return sum(map(bool, rows)), sum(rows)


@pytest.mark.parametrize("sampler", ["transition", "episode", "shuffle", "window"])
def test_exact_counts_are_those_of_the_batches(
    store: Store, sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seen, "WORDS_AT_ONCE", 500)  # several goes
    made = following(store, sampler=sampler, **({"window": 3} if sampler == "window" else {}))
    batches = take(made, 7)
    store.append(made_episodes(range(30, 40)))
    batches += take(made, 100)
    for episode in ("e3", "e35"):
        found = seen.drew(store, episode, until_step=107)
        assert {row["run"] for row in found} == {"r1"}
        told = sum(row["batches"] for row in found), sum(row["rows"] for row in found)
        assert told == counted(batches, episode)
        assert told[0] > 0
    assert seen.drew(store, "e3", until_step=0) == []


def test_exact_counts_of_a_mixture_whose_weights_change(store: Store) -> None:
    streams = [
        stream(store.url, sampler=sampler, batch_size=20, episode_ids=True)
        for sampler in ("shuffle", "transition")
    ]
    mixture = Mixture([(one, 1.0) for one in streams], batch_size=20, seed=4, run="m1")
    batches = take(mixture, 40)
    mixture.reweigh([0.85, 0.15])
    batches += take(mixture, 40)
    mixture.follow(store.append(made_episodes(range(30, 50))), source=1)
    batches += take(mixture, 40)
    # Each source's rows of each batch, as counts are told source by source.
    apart = [
        {"episode_ids": batch["episode_ids"][batch["is_demonstration"] == flag]}
        for flag in (True, False)
        for batch in batches
    ]
    for episode in ("e3", "e7", "e44"):
        found = seen.drew(store, episode, until_step=120, run="m1")
        told = sum(row["batches"] for row in found), sum(row["rows"] for row in found)
        assert told == counted(apart, episode)


def test_exact_counts_say_what_they_need(store: Store) -> None:
    next(stream(store.url, run="r1", batch_size=8))
    with pytest.raises(UsageError, match="--until-step"):
        seen.drew(store, "e3")
    with pytest.raises(NotFoundError, match="'nobody'"):
        seen.drew(store, "nobody", until_step=5)
    with pytest.raises(NotFoundError, match="'r2'"):
        seen.drew(store, "e3", until_step=5, run="r2")
    next(stream(store.url, run="p1", batch_size=8, sampler="prioritised"))
    with pytest.raises(UsageError, match="by priorities"):
        seen.drew(store, "e3", until_step=5)
    assert [row["run"] for row in seen.could_draw(store, "e3")] == ["p1", "r1"]


# -- what goes wrong -------------------------------------------------------------------------------


def test_a_run_of_another_order_is_refused(store: Store) -> None:
    next(following(store))
    with pytest.raises(ConfigError, match="'r1' began with"):
        following(store, seed=3)
    with pytest.raises(ConfigError, match="another run name"):
        mixed(store, run="r1")
    following(store, rank=1, world_size=2, dtype="keep", fields=["observations"])


def test_settings_of_runs_fit_each_other(store: Store) -> None:
    with pytest.raises(UsageError, match="run="):
        next(stream(store.url, follow="main"))
    with pytest.raises(ConfigError, match="follow="):
        stream(store.url, run="r1", follow_every=7)
    with pytest.raises(UsageError, match="run name"):
        stream(store.url, run="../up")
    with pytest.raises(UsageError, match="of the mixture"):
        Mixture([(stream(store.url, run="r1", batch_size=8), 1)], batch_size=8)
    with pytest.raises(UsageError, match="run="):
        next(Mixture([(stream(store.url, follow="main", batch_size=8), 1)], batch_size=8))


def test_a_branch_that_is_gone_or_changes_its_fields_is_not_decided(store: Store) -> None:
    store.branch("feed", "main")
    made = following(store, follow="feed", follow_every=100)
    take(made, 5)
    store.delete_branch("feed")
    with pytest.raises(NotFoundError, match="'feed'"):
        take(made, 200)
    other = following(store, follow="main", follow_every=100, run="r2")
    take(other, 5)
    store.append([made_episode(99, 5).replace(rewards=None)])
    with pytest.raises(UsageError, match="same fields from step 100 on"):
        take(other, 200)
    assert [r.step for r in runs.references(store.catalog, "r2")] == [0]


def test_a_version_that_vanished_says_what_to_do(store: Store, tmp_path: Path) -> None:
    made = following(store, follow_every=100, cache_dir=tmp_path / "one")
    take(made, 50)
    state = made.state_dict()
    runs.forget(store.catalog, "r1")
    expire_all_but_the_last(store)
    again = stream(store.url, batch_size=BATCH, cache_dir=tmp_path / "two")
    with pytest.raises(FilesExpiredError, match="let go of it; restore the store"):
        again.load_state_dict(state)
    with pytest.raises(ConfigError, match="choose another run name"):
        following(store, follow_every=100, cache_dir=tmp_path / "two").load_state_dict(state)


def test_collection_keeps_what_is_decided(store: Store, tmp_path: Path) -> None:
    made = following(store)
    drawn = take(made, 97)
    expire_all_but_the_last(store)
    again = following(store, cache_dir=tmp_path / "two")
    assert named_rows(take(again, 97)) == named_rows(drawn)


def expire_all_but_the_last(store: Store) -> None:
    """Lets go of all versions but the newest, and collects their files."""
    store.append(made_episodes(range(30, 33)))
    store.compact(everything=True)
    store.expire(before=store.version().number)
    for _ in range(3):
        store.gc(dt.timedelta(0))


def test_annealed_weights_are_read_again(store: Store) -> None:
    def annealed() -> Mixture:
        return mixed(store, run="r1", anneal=(30, 0.9, 0.1))

    drawn = take(annealed(), 40)
    assert named_rows(take(annealed(), 40)) == named_rows(drawn)
    with pytest.raises(ConfigError, match="another run name"):
        mixed(store, run="r1", anneal=(30, 0.9, 0.2))
    found = seen.drew(store, "e3", until_step=40)
    assert sum(row["rows"] for row in found) == counted(drawn, "e3")[1]


def test_workers_of_a_data_loader_read_what_is_decided(store: Store) -> None:
    data = pytest.importorskip("torch.utils.data")
    made = following(store, framework="torch", episode_ids=False, run="w1")
    loader = data.DataLoader(made.as_iterable_dataset(steps=200), batch_size=None, num_workers=2)
    drawn = []
    for number, batch in enumerate(loader):
        if number == 3:
            store.append(made_episodes(range(30, 50)))
        drawn.append(batch["indices"].numpy())
    assert len(drawn) == 200
    assert len({one.versions for one in runs.references(store.catalog, "w1")}) == 2
    replay = following(store, run="w1")
    for indices, again in zip(drawn, replay, strict=False):
        np.testing.assert_array_equal(indices, again["indices"])
