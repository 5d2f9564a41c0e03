"""Views: what they show is what streams draw; other libraries' training is in tests/peers."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pyarrow as pa
import pytest
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from connectors.parquet_sink import ParquetSink
from pipeline.store.reader import Version
from pipeline.store.store import Store, open_store
from pipeline.stream.views.episodes import cut, kept, transitions
from pipeline.stream.views.folders import made_once
from pipeline.stream.views.minari import registered
from schemas.episode import Episode
from schemas.errors import DiskFullError, MissingExtraError, UsageError
from schemas.packed import Packed
from tests.connectors.makers import action_box, buffer, minari_dataset
from tests.jobs.running import ingest
from tests.stream.conftest import made_episode
from tests.stream.test_loader import all_rows

FIELDS = ("observations", "actions", "rewards")


def narrowed(store: Store) -> Version:
    """The version with ranges of steps to keep, some empty and some up to the end."""
    version = store.version()
    table = version.episodes(columns=["episode_id", "length"])
    at, length = np.arange(len(table)), table["length"].to_numpy()
    return version.annotate(
        pa.table(
            {
                "episode_id": table["episode_id"],
                "keep_start": at % 4,
                "keep_stop": np.maximum(length - at % 3, 0),
            }
        )
    )


@pytest.fixture(params=["whole", "narrowed"])
def version(store: Store, request: pytest.FixtureRequest) -> Version:
    return store.version() if request.param == "whole" else narrowed(store)


def test_transitions_are_those_of_a_stream(version: Version) -> None:
    shown = kept(version).with_transitions()
    found: dict[tuple[float, ...], tuple[float, bool]] = {}
    for count, episode in zip(shown.usable, shown.read(), strict=True):
        one = transitions(episode)
        assert len(one.rewards) == count > 0
        at = one.observations["observations"][:, 0].tolist()
        steps = zip(at, one.actions["actions"][:, 0].tolist(), one.rewards.tolist(), strict=False)
        found |= dict(zip(steps, zip(at[1:], one.terminated, strict=True), strict=True))
        assert (one.truncated | one.terminated)[-1]
        assert not (one.truncated | one.terminated)[:-1].any()
    rows = all_rows(version)
    drawn = [rows[name] if name == "rewards" else rows[name][:, 0] for name in FIELDS]
    assert sorted(found) == sorted({tuple(map(float, row)) for row in zip(*drawn, strict=True)})
    following = rows["next_observations"][:, 0]
    for *row, after, terminated in zip(*drawn, following, rows["terminated"], strict=True):
        # A terminated step's next observation is read by nobody.
        assert found[tuple(map(float, row))][1] == terminated
        assert terminated or found[tuple(map(float, row))][0] == after


def test_a_cut_keeps_the_observation_after_it() -> None:
    episode = made_episode(1, 10, ends="lost")
    inner, last = cut(episode, 2, 5), cut(episode, 4, 10)
    assert inner.final_observation == "present"
    assert inner.observations["observations"][:, 0].tolist() == [1002, 1003, 1004, 1005]
    assert last.final_observation == "missing"
    assert (last.length, last.is_truncated, inner.is_truncated) == (6, True, False)
    assert len(transitions(last).rewards) == 5


def test_views_say_what_they_cannot_show(tmp_path: Path, cache_dir: Path) -> None:
    store = open_store(tmp_path / "store", create=True)
    made = made_episode(0, 5)
    for name, wrong, said in (
        ("texts", made.replace(observations={"words": Packed.texts(["a"] * 6)}), "one shape"),
        ("still", made.replace(rewards=None), "rewards in the spec"),
        ("short", made_episode(0, 1, ends="lost"), "came none"),
    ):
        version = store.append([wrong.replace(episode_id=name)], branch=name)
        with pytest.raises(UsageError, match=said):
            version.as_minari()
    mixed = store.append([made, made.replace(episode_id="e1", rewards=None)], branch="mixed")
    with pytest.raises(UsageError, match="Expected rewards in every episode, 'e1' has none"):
        list(mixed.as_minari())


@pytest.mark.parametrize("library", ["torchrl", "d3rlpy", "lerobot"])
def test_a_library_that_is_missing_is_named(store: Store, library: str) -> None:
    if find_spec(library) is not None:
        pytest.skip("it is there")
    with pytest.raises(MissingExtraError, match=f"pip install {library}"):
        getattr(store.version(), f"as_{library}")()


# -- Minari -------------------------------------------------------------------------------------


def test_minari_shows_every_transition(version: Version) -> None:
    dataset = version.as_minari()
    shown = kept(version).with_transitions()
    assert (dataset.total_episodes, dataset.total_steps) == (len(shown.ids), shown.ends[-1])
    assert sum(len(episode) for episode in dataset) == dataset.total_steps
    for episode, ours in zip(dataset, shown.read(), strict=True):
        one = transitions(ours)
        assert np.array_equal(episode.observations, one.observations["observations"])
        assert np.array_equal(episode.actions, one.actions["actions"])
        assert np.array_equal(episode.rewards, one.rewards)
        assert len(episode.observations) == len(episode) + 1
        assert dataset.action_space.shape == episode.actions.shape[1:]
        assert dataset.observation_space.dtype == episode.observations.dtype


def test_minari_samples_and_filters(store: Store) -> None:
    dataset = store.version().as_minari()
    dataset.set_seed(0)
    sampled = dataset.sample_episodes(5)
    assert len({episode.id for episode in sampled}) == 5
    for episode in sampled:
        assert np.array_equal(episode.observations, dataset[episode.id].observations)
    ended = dataset.filter_episodes(lambda episode: bool(episode.terminations[-1]))
    assert len(ended) == 10
    assert all(episode.terminations[-1] for episode in ended)
    assert ended.total_steps == sum(len(episode) for episode in ended)
    assert dataset.spec.total_episodes == len(dataset)
    assert next(iter(dataset.storage.get_episode_metadata([0])))["episode_id"] == "e0"
    with pytest.raises(UsageError, match="never changes"):
        dataset.update_dataset_from_buffer([])
    with pytest.raises(ValueError, match="cannot be recovered"):
        dataset.recover_environment()


def test_minari_keeps_nested_spaces(tmp_path: Path, cache_dir: Path) -> None:
    store = open_store(tmp_path / "store", create=True)
    rows: dict[str, Any] = {"arm": {"angle": np.zeros((4, 2))}, "seen": np.zeros((4, 3, 3), "u1")}
    done = Episode("a", rows, np.array([0, 1, 2]), np.ones(3), terminated=True)
    dataset = store.append([done]).as_minari()
    episode = dataset[0]
    assert episode.observations.keys() == {"arm", "seen"}
    assert episode.observations["arm"]["angle"].shape == (4, 2)
    assert dataset.observation_space["arm"]["angle"] == spaces.Box(-np.inf, np.inf, (2,), float)
    assert dataset.observation_space["seen"] == spaces.Box(0, 255, (3, 3), np.uint8)
    assert dataset.action_space.contains(np.asarray(episode.actions[0]))


def test_environments_are_installed_ones() -> None:
    known = gymnasium.spec("CartPole-v1")
    stated = json.loads(known.to_json())
    hostile = {**stated, "entry_point": "os:system", "vector_entry_point": "os:system"}
    text = registered(json.dumps(hostile))
    assert text is not None
    assert EnvSpec.from_json(text).entry_point == known.entry_point
    shorter = registered(json.dumps({**stated, "max_episode_steps": 7}))
    assert shorter is not None
    assert EnvSpec.from_json(shorter).max_episode_steps == 7
    for change in (
        {"id": "os:system"},
        {"id": "Nobody-v0"},
        {"id": ["CartPole-v1"]},
        {"kwargs": {"xml_file": "/etc/passwd"}},
        {"kwargs": [1]},
        {"max_episode_steps": -1},
        {"additional_wrappers": [{"name": "a", "entry_point": "os:system", "kwargs": {}}]},
    ):
        assert registered(json.dumps({**stated, **change})) is None
    for text in ("{", "[]", '"x"', None, 3, "[" * 100_000):
        assert registered(text) is None


def test_minari_takes_spaces_and_environment_from_the_sources(
    tmp_path: Path, cache_dir: Path
) -> None:
    box = spaces.Box(-1, 1, (2,), np.float32)
    record = {"observations": np.zeros((4, 2), np.float32), "steps": 3}
    minari_dataset(tmp_path / "toy", [buffer(**record)], (box, action_box()))
    document = tmp_path / "toy" / "data" / "metadata.json"
    env_spec = gymnasium.spec("CartPole-v1").to_json()
    document.write_text(json.dumps({**json.loads(document.read_text()), "env_spec": env_spec}))
    ingest(tmp_path / "store", tmp_path / "toy")
    store = open_store(tmp_path / "store")
    dataset = store.version().as_minari()
    assert (dataset.observation_space, dataset.action_space) == (box, action_box())
    environment = dataset.recover_environment()
    assert environment.spec.id == "CartPole-v1"
    environment.close()
    rows = np.ones((2, 2), np.float32)
    ParquetSink().write([Episode("o", rows, rows[:1], np.ones(1))], str(tmp_path / "other"), {})
    ingest(tmp_path / "store", tmp_path / "other")
    both = store.version().as_minari()
    assert len(both) == 2
    assert both.env_spec is None, "the sources do not agree"


# -- folders -------------------------------------------------------------------------------------


def test_folders_are_made_once_and_whole(store: Store, tmp_path: Path) -> None:
    calls = []

    def make(where: Path) -> None:
        calls.append(where)
        where.mkdir()
        if len(calls) == 1:
            raise ValueError("half way")

    def made(settings: str = "a", shown: Any = None, size: int = 0) -> Path:
        chosen = kept(store.version()) if shown is None else shown
        return made_once("kind", chosen, settings, make, cache_dir=str(tmp_path), size=size)

    with pytest.raises(ValueError, match="half way"):
        made()
    assert list((tmp_path / "views" / "kind").iterdir()) == []
    first = made()
    assert first.is_dir()
    assert made() == first
    assert len(calls) == 2
    fewer = kept(store.version()).pick(np.arange(29))  # one was erased from the version
    assert len({first, made("b"), made(shown=fewer)}) == 3
    with pytest.raises(DiskFullError, match="bytes"):
        made("c", size=1 << 60)
