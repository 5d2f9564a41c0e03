"""Mixtures: exact counts in every batch, and the promises of a stream."""

from __future__ import annotations

import hashlib
import itertools
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.store.store import Store, open_store
from pipeline.stream.counts import interleave
from pipeline.stream.loader import Stream
from pipeline.stream.mixture import Mixture
from pipeline.stream.shares import Shares, exact_weight
from schemas.errors import ConfigError, UsageError
from tests.stream.conftest import made_episode, made_episodes


@pytest.fixture
def online(tmp_path: Path, cache_dir: Path) -> Store:
    """A second store, of the episodes 100 to 109."""
    made = open_store(tmp_path / "online", create=True)
    made.append(made_episodes(range(100, 110)))
    return made


def stream(data: Any, **settings: Any) -> Stream:
    return Stream(data, **{"framework": "numpy", **settings})


def is_online(batch: dict[str, Any]) -> np.ndarray:
    return np.asarray(batch["observations"][:, 0] >= 100_000)


WEIGHTS = st.lists(st.integers(0, 1000), min_size=1, max_size=5).filter(any)


@given(weights=WEIGHTS, batch_size=st.integers(1, 300), step=st.integers(0, 10**9))
def test_counts_are_the_share_rounded_down_or_up(
    weights: list[int], batch_size: int, step: int
) -> None:
    shares = Shares([Fraction(weight) for weight in weights], batch_size)
    counts = shares.counts(step)
    assert sum(counts) == batch_size
    for count, weight in zip(counts, weights, strict=True):
        exact = Fraction(weight * batch_size, sum(weights))
        assert exact // 1 <= count <= -(-exact // 1)


@pytest.mark.parametrize(
    ("weights", "batch_size"),
    [((0.5, 0.5), 256), ((0.5, 0.5), 255), ((0.1, 0.2, 0.7), 64), ((1, 2, 4), 100), ((0.25, 0), 7)],
)
def test_counts_are_exact_over_ten_thousand_batches(
    weights: tuple[float, ...], batch_size: int
) -> None:
    exact = [exact_weight(weight) for weight in weights]
    shares = Shares(exact, batch_size)
    counts = np.array([shares.counts(step) for step in range(10_000)])
    assert (counts.sum(axis=1) == batch_size).all()
    due = np.array([[float(weight * batch_size / sum(exact)) for weight in exact]])
    drift = np.cumsum(counts, axis=0) - due * np.arange(1, 10_001)[:, None]
    assert np.abs(drift).max() < 2
    period = np.lcm.reduce([(w * batch_size / sum(exact)).denominator for w in exact])
    whole = counts[: 10_000 // period * period].reshape(-1, period, len(weights)).sum(axis=1)
    np.testing.assert_allclose(whole, np.repeat(due * period, len(whole), axis=0), atol=1e-6)


@given(counts=st.lists(st.integers(0, 40), min_size=1, max_size=4).filter(any).map(tuple))
def test_sources_are_spread_over_the_batch(counts: tuple[int, ...]) -> None:
    owners = interleave(counts)
    assert np.bincount(owners, minlength=len(counts)).tolist() == list(counts)
    for source, count in enumerate(counts):
        reached = np.cumsum(owners == source)
        due = np.arange(1, len(owners) + 1) * count / len(owners)
        assert np.abs(reached - due).max() <= len(counts)


@pytest.mark.parametrize("weight", [-1, float("nan"), float("inf")])
def test_weights_that_are_none_are_refused(weight: float) -> None:
    with pytest.raises(ConfigError, match="weight"):
        exact_weight(weight)


def test_every_batch_holds_the_counts_it_says(store: Store, online: Store) -> None:
    mixture = Mixture(
        [(stream(store.version()), 0.3), (stream(online.version()), 0.7)], batch_size=25, seed=3
    )
    for step, batch in zip(range(200), mixture, strict=False):
        counts = [int((~is_online(batch)).sum()), int(is_online(batch).sum())]
        assert counts == mixture.counts(step)
        assert counts in ([7, 18], [8, 17])
        np.testing.assert_array_equal(batch["is_demonstration"], ~is_online(batch))
        at = batch["observations"][:, 0]
        np.testing.assert_array_equal(batch["next_observations"][:, 0], at + 1)


def test_flags_can_be_chosen(store: Store, online: Store) -> None:
    sources = [(stream(store.version()), 1.0), (stream(online.version()), 1.0)]
    batch = next(Mixture(sources, demonstration=[False, True]))
    np.testing.assert_array_equal(batch["is_demonstration"], is_online(batch))
    with pytest.raises(ConfigError, match="flag"):
        Mixture(sources, demonstration=[True])


def sha_of_rows(ranks: list[Mixture], steps: int) -> str:
    sha = hashlib.sha256()
    for _ in range(steps):
        rows = np.concatenate([next(rank)["observations"][:, 0] for rank in ranks])
        sha.update(rows.tobytes())
    return sha.hexdigest()


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 8])
def test_any_world_size_reads_the_same_rows(store: Store, online: Store, world_size: int) -> None:
    def ranks(world_size: int) -> list[Mixture]:
        return [
            Mixture(
                [
                    (stream(data.version(), rank=rank, world_size=world_size), weight)
                    for data, weight in ((store, 0.45), (online, 0.55))
                ],
                batch_size=50,
                seed=1,
            )
            for rank in range(world_size)
        ]

    assert sha_of_rows(ranks(world_size), 130) == sha_of_rows(ranks(1), 130)


def test_every_rank_gets_its_share_of_each(store: Store, online: Store) -> None:
    for rank in range(4):
        sources = [
            (stream(data.version(), rank=rank, world_size=4), 0.5) for data in (store, online)
        ]
        batch = next(Mixture(sources, batch_size=256))
        assert int(batch["is_demonstration"].sum()) == 32


@pytest.mark.parametrize("stop", [1, 63, 64, 100])
def test_a_resume_reads_on(store: Store, online: Store, stop: int) -> None:
    def fresh() -> Mixture:
        return Mixture([(stream(store.url), 0.5), (stream(online.url), 0.5)], 30, seed=4)

    live = fresh()
    whole = [batch["indices"] for batch in itertools.islice(live, 140)]
    stopped = fresh()
    list(itertools.islice(stopped, stop))
    resumed = fresh()
    resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    for expected, batch in zip(whole[stop:], resumed, strict=False):
        np.testing.assert_array_equal(batch["indices"], expected)


def test_a_mixture_follows_what_its_streams_follow(store: Store, online: Store) -> None:
    live = stream(online.version())
    mixture = Mixture([(stream(store.version()), 0.5), (live, 0.5)], batch_size=64)
    first = online.version()
    seen = list(itertools.islice(mixture, 10))
    grown = online.append([made_episode(500, 400)])
    live.follow(grown)
    seen += list(itertools.islice(mixture, 10))
    newest = [bool((batch["observations"][:, 0] >= 500_000).any()) for batch in seen]
    assert newest == [False] * 10 + [True] * 10
    state = mixture.state_dict()
    assert state["versions"][1] == [[0, first.id], [10, grown.id]]
    again = Mixture([(stream(store.version()), 0.5), (stream(grown), 0.5)], batch_size=64)
    again.load_state_dict({**state, "step": 0})
    for expected, batch in zip(seen, again, strict=False):
        np.testing.assert_array_equal(batch["observations"], expected["observations"])


def test_a_mixture_in_a_mixture_counts_as_its_streams(store: Store, online: Store) -> None:
    offline = Mixture([(stream(store.version()), 0.25), (stream(store.version()), 0.75)])
    mixture = Mixture([(offline, 0.5), (stream(online.version()), 0.5)], batch_size=64)
    assert mixture.counts(0) == [8, 24, 32]
    batch = next(mixture)
    assert int(is_online(batch).sum()) == 32
    np.testing.assert_array_equal(batch["is_demonstration"], ~is_online(batch))


def test_one_version_twice_draws_apart(store: Store) -> None:
    sources = [(stream(store.version()), 0.5), (stream(store.version()), 0.5)]
    batch = next(Mixture(sources, batch_size=256))
    first, second = (batch["indices"][batch["is_demonstration"] == flag] for flag in (True, False))
    assert (first == second).mean() < 0.1


def test_states_of_other_mixtures_are_refused(store: Store, online: Store) -> None:
    def mixed(weight: float, seed: int = 0) -> Mixture:
        sources = [(stream(store.version()), weight), (stream(online.version()), 1 - weight)]
        return Mixture(sources, seed=seed)

    state = mixed(0.5).state_dict()
    with pytest.raises(ConfigError, match="weights"):
        mixed(0.25).load_state_dict(state)
    with pytest.raises(ConfigError, match="seed"):
        mixed(0.5, seed=1).load_state_dict(state)


def test_streams_of_different_form_are_refused(store: Store, online: Store) -> None:
    with pytest.raises(UsageError, match=r"'actions' as float32.* and absent"):
        Mixture(
            [(stream(store.version()), 1), (stream(online.version(), fields=["observations"]), 1)]
        )
    with pytest.raises(UsageError, match="discount"):
        Mixture([(stream(store.version()), 1), (stream(online.version(), discount=0.9), 1)])
    with pytest.raises(ConfigError, match="at least one stream"):
        Mixture([])


def test_a_mixture_makes_tensors(store: Store, online: Store) -> None:
    torch = pytest.importorskip("torch")
    sources = [(Stream(store.version()), 0.5), (Stream(online.version()), 0.5)]
    batch = next(Mixture(sources, batch_size=16))
    assert batch["is_demonstration"].dtype == torch.bool
    assert batch["observations"].shape == (16, 3)


def test_the_description_names_all_sources(store: Store, online: Store) -> None:
    said = Mixture([(stream(store.url), 0.25), (stream(online.url), 0.75)]).describe()
    for expected in ("0.25 of each batch (demonstrations)", "0.75", store.url, online.url):
        assert expected in said
