"""Datasets of torch: the stream's own batches whatever the number and kind of workers."""

from __future__ import annotations

import gc
import itertools
import json
import multiprocessing
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, RandomSampler

from pipeline.store.store import Store
from pipeline.stream.datasets import as_is
from pipeline.stream.loader import Stream
from pipeline.stream.mixture import Mixture
from schemas.episode import Episode
from schemas.errors import ConfigError, UsageError
from tests.stream.conftest import ENDS, made_episode, made_episodes
from tests.stream.references import Place, Reference, take

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

MakeStore = Callable[[list[Episode]], Store]


def batches(dataset: Any, workers: int, **settings: Any) -> Iterator[dict[str, torch.Tensor]]:
    loader = DataLoader(dataset, batch_size=None, num_workers=workers, **settings)
    return iter(loader)


def assert_same(mine: Any, theirs: Any) -> None:
    assert len(mine) == len(theirs)
    for one, other in zip(mine, theirs, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert torch.equal(torch.as_tensor(one[name]), torch.as_tensor(other[name])), name


# -- in the stream's order ------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_any_number_of_workers_yields_the_streams_batches(store: Store, workers: int) -> None:
    for form in ({"sampler": "transition"}, {"sampler": "shuffle", "shuffle_window": 2}):
        made = Stream(store.version(), batch_size=24, **form)
        take(made, 5)
        dataset = made.as_iterable_dataset()
        found = take(batches(dataset, workers), 11)
        assert made.step == 5  # the stream's own position stays
        assert_same(found, take(made, 11))


@pytest.mark.parametrize("workers", [0, 2])
def test_what_was_taken_is_the_state(store: Store, workers: int) -> None:
    made = Stream(store.version(), batch_size=24)
    dataset = made.as_iterable_dataset()
    taken = len(take(batches(dataset, workers), 7))
    state = json.loads(json.dumps(dataset.state_dict(taken)))
    take(made, 7)
    assert state == made.state_dict()
    again = Stream(store.version(), batch_size=24).as_iterable_dataset()
    again.load_state_dict(state)
    assert_same(take(batches(again, 2 - workers), 4), take(made, 4))


@pytest.fixture
def quick_ends(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Loaders wait five seconds for workers that raised, unless told otherwise."""
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)
    yield
    gc.collect()  # the loaders that the errors hold


@pytest.mark.usefixtures("quick_ends")
def test_an_iteration_of_some_steps_ends_and_the_next_goes_on(store: Store) -> None:
    made = Stream(store.version(), batch_size=24)
    dataset = made.as_iterable_dataset(steps=5)
    loader = DataLoader(dataset, batch_size=None, num_workers=2, persistent_workers=True)
    assert len(loader) == 5
    found = []
    for epoch in range(3):
        dataset.set_epoch(epoch)
        found += list(loader)
    assert_same(found, take(made, 15))
    dataset.load_state_dict(dataset.state_dict(5))
    with pytest.raises(UsageError, match="persistent_workers"):
        next(iter(loader))
    assert_same(list(DataLoader(dataset, batch_size=None)), take(made, 5))


def test_a_spawned_worker_maps_the_cache_itself(store: Store) -> None:
    form: dict[str, Any] = {"batch_size": 24, "normalize": {"observations": "standard"}}
    sources = [(Stream(store.version(), **form), 3.0) for _ in range(2)]
    mixture = Mixture(sources, batch_size=24, seed=1, anneal=(9, 0.25, 0.75))
    take(mixture, 2)
    found = take(batches(mixture.as_iterable_dataset(), 1, multiprocessing_context="spawn"), 4)
    assert_same(found, take(mixture, 4))


def test_what_travels_to_a_worker_is_small(make_store: MakeStore) -> None:
    version = make_store([made_episode(k, 3_000, ends=ENDS[k % 3]) for k in range(9)]).version()
    made = Stream(version, batch_size=24, residency="ram")
    take(made, 2)
    sent = multiprocessing.reduction.ForkingPickler.dumps(made)
    assert made.feed.at(0).records.nbytes > 1_000_000 > 20 * len(sent)
    automatic = Stream(version, batch_size=24)
    opened = multiprocessing.reduction.ForkingPickler.loads(
        multiprocessing.reduction.ForkingPickler.dumps(automatic)
    )
    assert "a copy in memory" not in opened.describe()


@pytest.mark.parametrize("workers", [0, 3])
def test_a_mixture_is_a_dataset_too(store: Store, workers: int) -> None:
    sources = [(Stream(store.version(), sampler=name), 1.0) for name in ("transition", "shuffle")]
    mixture = Mixture(sources, batch_size=24, seed=4)
    take(mixture, 3)
    found = take(batches(mixture.as_iterable_dataset(), workers), 8)
    assert_same(found, take(mixture, 8))


def test_batches_of_several_versions_go_on_in_workers(store: Store) -> None:
    made = Stream(store.version(), batch_size=24)
    take(made, 6)
    store.append([made_episode(200, 30)])
    made.follow("main")
    take(made, 6)
    start = {**made.state_dict(), "step": 0}
    made.load_state_dict(start)
    dataset = made.as_iterable_dataset()
    assert_same(take(batches(dataset, 4), 12), take(made, 12))


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_read_what_the_run_decides(store: Store, workers: int) -> None:
    form: dict[str, Any] = {"batch_size": 8, "run": "r", "follow": "main", "follow_every": 10}
    loader = batches(Stream(store.version(), **form).as_iterable_dataset(), workers)
    found = take(loader, 40)
    store.append(made_episodes(range(100, 120), seed=4))
    found += take(loader, 260)
    again = Stream(store.version(), **form)  # reads what was decided
    assert_same(found, take(again, 300))
    assert len(again.state_dict()["versions"]) == 2


@pytest.mark.usefixtures("quick_ends")
def test_a_dataset_says_what_it_cannot(store: Store) -> None:
    version = store.version()
    with pytest.raises(UsageError, match="known ahead"):
        Stream(version, sampler="prioritised").as_iterable_dataset()
    with pytest.raises(UsageError, match="at least 1 step"):
        Stream(version).as_iterable_dataset(steps=0)
    endless = Stream(version).as_iterable_dataset()
    with pytest.raises(TypeError, match="no length"):
        len(endless)
    with pytest.raises(UsageError, match="steps="):
        endless.set_epoch(1)
    with pytest.raises(ConfigError, match="seed"):
        endless.load_state_dict(Stream(version, seed=3).state_dict())
    elsewhere = Stream(version, device="meta").as_iterable_dataset()
    with pytest.raises(UsageError, match="device='cpu'"):
        next(batches(elsewhere, 1))


# -- by number ------------------------------------------------------------------------------------


def test_every_number_is_a_transition(store: Store) -> None:
    made = Stream(store.version(), batch_size=32)
    dataset = made.as_map_dataset()
    assert len(dataset) == made.transitions
    everything = dataset[range(len(dataset))]
    at = {int(place): row for row, place in enumerate(everything["indices"])}
    assert len(at) == len(dataset)
    for batch in take(made, 3):
        rows = [at[int(place)] for place in batch["indices"]]
        assert_same([dataset[rows]], [batch])
    assert dataset[-1]["indices"] == everything["indices"][-1]
    for wrong in (len(dataset), -len(dataset) - 1):
        with pytest.raises(IndexError):
            dataset[wrong]


def test_the_numbers_are_exactly_the_transitions_there_are(make_store: MakeStore) -> None:
    episodes = [made_episode(k, 1 + k % 5, ends=ENDS[k % 3]) for k in range(24)]
    known = Reference(episodes)
    dataset = Stream(make_store(episodes).version()).as_map_dataset()
    meant = [known.position(place) for place in known.places()]
    assert dataset[range(len(dataset))]["indices"].tolist() == meant
    lost = [k for k in range(24) if ENDS[k % 3] == "lost"]
    last = {known.position(Place(k, episodes[k].length - 1)) for k in range(24)}
    missing = {known.position(Place(k, episodes[k].length - 1)) for k in lost}
    assert last & set(meant) == last - missing


@pytest.mark.parametrize("workers", [0, 2])
def test_samplers_of_a_data_loader_draw_from_it(store: Store, workers: int) -> None:
    dataset = Stream(store.version(), episode_ids=True).as_map_dataset()
    everything = dataset[np.arange(len(dataset))]
    random = RandomSampler(dataset, generator=torch.Generator().manual_seed(3))
    loader = DataLoader(dataset, batch_size=20, sampler=random, num_workers=workers)
    found = list(loader)
    places = torch.cat([batch["indices"] for batch in found])
    assert sorted(places.tolist()) == everything["indices"].tolist()
    assert places.tolist() != everything["indices"].tolist()
    numbers = torch.searchsorted(everything["indices"], places)
    joined = torch.cat([batch["next_observations"] for batch in found])
    assert torch.equal(joined, everything["next_observations"][numbers])
    ids = list(itertools.chain.from_iterable(batch["episode_ids"] for batch in found))
    assert ids == everything["episode_ids"][numbers.numpy()].tolist()
    # A batch at once, without a row of its own for each number.
    whole = BatchSampler(range(len(dataset)), 20, drop_last=False)
    direct = DataLoader(dataset, batch_size=None, sampler=whole, num_workers=workers)
    rows = torch.cat([batch["actions"] for batch in direct])
    assert torch.equal(rows, everything["actions"])


def test_ranks_share_what_a_distributed_sampler_gives_them(store: Store) -> None:
    dataset = Stream(store.version()).as_map_dataset()
    places = []
    for rank in range(3):
        mine = DistributedSampler(dataset, num_replicas=3, rank=rank, drop_last=True)
        places += [batch["indices"] for batch in DataLoader(dataset, batch_size=8, sampler=mine)]
    drawn = torch.cat(places)
    assert len(set(drawn.tolist())) == len(drawn) == len(dataset) // 3 * 3


def test_windows_and_nested_fields_come_by_number(make_store: MakeStore) -> None:
    random = np.random.default_rng(0)
    made = Stream(
        make_store(
            [
                Episode(
                    episode_id=f"n{k}",
                    observations={"arm": random.normal(size=(9, 2)), "hand": random.normal(size=9)},
                    actions=random.normal(size=(8, 2)),
                    rewards=random.normal(size=8),
                    terminated=True,
                    truncated=False,
                )
                for k in range(3)
            ]
        ).version(),
        sampler="window",
        window=4,
    )
    dataset = made.as_map_dataset()
    batch = next(iter(DataLoader(dataset, batch_size=5)))
    assert batch["observations"]["arm"].shape == (5, 4, 2)
    assert batch["observations"]["hand"].shape == (5, 4)
    assert batch["mask"].shape == (5, 4)


def test_rows_that_are_drawn_for_batches_have_no_number(store: Store) -> None:
    version = store.version()
    for form in ({"sampler": "episode"}, {"goals": "final"}):
        with pytest.raises(UsageError, match="as_iterable_dataset"):
            Stream(version, **form).as_map_dataset()


# -- tensordicts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
def test_tensordicts_hold_the_same(store: Store, workers: int) -> None:
    tensordict = pytest.importorskip("tensordict")
    form: dict[str, Any] = {"batch_size": 24, "episode_ids": True}
    plain = take(Stream(store.version(), **form), 3)
    made = Stream(store.version(), **form, output="tensordict").as_iterable_dataset()
    found = take(batches(made, workers, collate_fn=as_is), 3)
    for mine, theirs in zip(found, plain, strict=True):
        assert isinstance(mine, tensordict.TensorDict)
        assert mine.batch_size == torch.Size([24])
        assert list(mine["episode_ids"]) == theirs["episode_ids"].tolist()
        for name in theirs.keys() - {"episode_ids"}:
            assert torch.equal(mine[name], theirs[name])
        assert torch.equal(mine[3:5]["actions"], theirs["actions"][3:5])


def test_nested_fields_are_nested_tensordicts(make_store: MakeStore) -> None:
    pytest.importorskip("tensordict")
    episode = Episode(
        episode_id="t",
        observations={"arm": (np.arange(5.0), np.ones((5, 2))), "hand": np.zeros(5)},
        actions=np.zeros((4, 2)),
        rewards=np.zeros(4),
        terminated=True,
        truncated=False,
    )
    batch = next(Stream(make_store([episode]).version(), batch_size=6, output="tensordict"))
    assert batch["observations", "arm", "1"].shape == (6, 2)
    assert batch["next_observations"].batch_size == torch.Size([6])
    with pytest.raises(ConfigError, match="framework='torch'"):
        Stream(make_store([episode]).version(), framework="numpy", output="tensordict")
