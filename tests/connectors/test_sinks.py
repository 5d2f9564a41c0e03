"""Every sink against the source of its format: all comes back but the losses it declares."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from minari.dataset.minari_dataset import MinariDataset

from connectors.d4rl import D4rlSource
from connectors.d4rl_sink import D4rlSink
from connectors.facts import FACTS
from connectors.minari import MinariSource
from connectors.minari_sink import MinariSink
from connectors.robomimic import RobomimicSource
from schemas.episode import Episode, has_transition
from schemas.errors import UsageError
from schemas.nesting import flatten
from tests.connectors.contracts import assert_same, check_sink, healthy
from tests.connectors.makers import demo, toy_episode, write_robomimic
from tests.connectors.strategies import datasets

STORAGES = ("hdf5", "arrow", "parquet")


def without_final(episode: Episode) -> Episode:
    """The episode as a format without room for final observations gives it back."""
    observations = {n: a[: episode.length] for n, a in episode.observations.items()}
    return episode.replace(observations=observations, final_observation="missing")


def expected_of_d4rl(episodes: list[Episode]) -> list[Episode]:
    """Applies the losses that the D4RL sink declares."""
    has_finals = all(e.final_observation != "missing" or e.is_terminated for e in episodes)
    expected = []
    for episode in episodes:
        if not has_finals:
            episode = without_final(episode)
        elif episode.final_observation == "missing":
            observations = {n: np.concatenate([a, a[-1:]]) for n, a in episode.observations.items()}
            episode = episode.replace(observations=observations, final_observation="copied")
        truncated = np.array(episode.truncated)
        truncated[-1] |= not episode.is_terminated
        extras = {n: a[: episode.length] for n, a in episode.extras.items()}
        expected.append(episode.replace(truncated=truncated, extras=extras))
    return expected


def expected_of_minari(episode: Episode) -> Episode:
    """Applies the losses that the Minari sink declares."""
    episode = episode.replace(columns={k: v for k, v in episode.columns.items() if v is not None})
    if episode.final_observation != "missing":
        return episode
    if episode.is_terminated:
        observations = {n: np.concatenate([a, a[-1:]]) for n, a in episode.observations.items()}
        return episode.replace(observations=observations, final_observation="copied")
    steps = episode.length - 1
    return episode.replace(
        final_observation="present",
        actions={n: a[:steps] for n, a in episode.flat_actions.items()}
        if isinstance(episode.actions, dict)
        else episode.actions[:steps],
        rewards=episode.rewards[:steps],
        terminated=episode.terminated[:steps],
        truncated=np.arange(steps) == steps - 1,
        extras={n: a[:-1] for n, a in episode.extras.items()},
    )


@settings(max_examples=60)
@given(episodes=datasets(is_nested=False))
def test_d4rl_round_trip(tmp_path_factory: pytest.TempPathFactory, episodes: list[Episode]) -> None:
    place = tmp_path_factory.mktemp("d4rl")
    came = check_sink(D4rlSink(), D4rlSource(), episodes, place, {"algorithm": "x", "list": [1]})
    for one, two in zip(expected_of_d4rl(episodes), came, strict=True):
        assert_same(one, two, ("final_observation",))


@settings(max_examples=60)
@given(episodes=datasets(is_nested=True), storage=st.sampled_from(STORAGES))
def test_minari_round_trip(
    tmp_path_factory: pytest.TempPathFactory, episodes: list[Episode], storage: str
) -> None:
    place = tmp_path_factory.mktemp("minari")
    metadata: dict[str, object] = {"data_format": storage, "dataset_id": "toy/x-v1"}
    came = check_sink(MinariSink(), MinariSource(), episodes, place, metadata)
    for one, two in zip(map(expected_of_minari, episodes), came, strict=True):
        assert_same(one, two, (*FACTS, "columns", "final_observation"))


@settings(max_examples=40)
@given(episodes=datasets(is_nested=True), storage=st.sampled_from(STORAGES))
def test_no_sink_invents_a_transition(
    tmp_path_factory: pytest.TempPathFactory, episodes: list[Episode], storage: str
) -> None:
    def transitions(found: list[Episode]) -> int:
        last = [has_transition(e.is_terminated, e.final_observation) for e in found]
        return sum(e.length - 1 + is_one for e, is_one in zip(found, last, strict=True))

    where = str(tmp_path_factory.mktemp("t") / "x-v0")
    MinariSink().write(episodes, where, {"data_format": storage})
    came = healthy(MinariSource(), where)
    assert transitions(came) == transitions(episodes)


@settings(max_examples=40)
@given(episodes=datasets(is_nested=True), storage=st.sampled_from(STORAGES))
def test_minari_itself_reads_what_we_write(
    tmp_path_factory: pytest.TempPathFactory, episodes: list[Episode], storage: str
) -> None:
    where = tmp_path_factory.mktemp("library") / "x-v0"
    episodes = [e.replace(extras={}) for e in episodes]
    MinariSink().write(episodes, str(where), {"data_format": storage})
    dataset = MinariDataset(where / "data")
    assert len(dataset) == len(episodes)
    for theirs, ours in zip(
        dataset.iterate_episodes(), map(expected_of_minari, episodes), strict=True
    ):
        flat = flatten("observations", theirs.observations)
        assert flat.keys() == ours.observations.keys()
        for name, array in ours.observations.items():
            np.testing.assert_array_equal(flat[name].reshape(array.shape), array)
        np.testing.assert_array_equal(theirs.actions, ours.actions)
        np.testing.assert_array_equal(theirs.rewards, ours.rewards)
        np.testing.assert_array_equal(theirs.terminations, ours.terminated)
        np.testing.assert_array_equal(theirs.truncations, ours.truncated)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("name", ["hopper/medium-v0", "pointmaze/umaze-episodic-v0"])
def test_real_minari_datasets_come_back_whole(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, storage: str
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    origin = str(shared_data / "minari" / name)
    source = MinariSource()
    episodes, listing = healthy(source, origin), source.discover(origin)
    metadata = {**listing.metadata, "data_format": storage}
    where = tmp_path / "copies" / name
    assert MinariSink().write(episodes, str(where), metadata) == listing.episodes
    again = source.discover(str(where))
    assert again.identity == f"copies/{name}", "the id is not the one of its place"
    for key in ("observation_space", "action_space", "env_spec", "algorithm_name"):
        assert again.metadata[key] == listing.metadata[key]
    for one, two in zip(episodes, healthy(source, str(where)), strict=True):
        assert_same(one, two, (*FACTS, "columns", "final_observation"))
    theirs, copy = MinariDataset(f"{origin}/data"), MinariDataset(where / "data")
    assert copy.observation_space == theirs.observation_space
    assert copy.action_space == theirs.action_space
    assert copy.env_spec == theirs.env_spec
    assert copy.total_steps == theirs.total_steps
    for one, two in zip(theirs.iterate_episodes(), copy.iterate_episodes(), strict=True):
        np.testing.assert_array_equal(one.rewards, two.rewards)
        for key, array in (one.infos or {}).items():
            np.testing.assert_array_equal(array, two.infos[key])


def test_spaces_that_do_not_fit_are_written_anew(tmp_path: Path) -> None:
    wrong = json.dumps({"type": "Box", "dtype": "float32", "shape": [3], "low": 0, "high": 1})
    metadata = {"observation_space": wrong, "action_space": "nonsense"}
    assert MinariSink().write([toy_episode()], str(tmp_path / "x"), metadata) == 1
    dataset = MinariDataset(tmp_path / "x" / "data")
    assert dataset.observation_space.dtype == np.float64
    assert np.isneginf(dataset.observation_space.low).all()
    assert dataset.action_space.shape == (2,)
    assert dataset.id == "x-v0"
    MinariSink().write([toy_episode()], str(tmp_path / "y"), {"dataset_id": "named/it-v3"})
    assert MinariDataset(tmp_path / "y" / "data").id == "named/it-v3"


def test_images_are_written_without_loss(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (5, 40, 32, 3), np.uint8)
    MinariSink().write([toy_episode(observations=frames)], str(tmp_path / "x"), {})
    [episode] = healthy(MinariSource(), str(tmp_path / "x"))
    np.testing.assert_array_equal(episode.observations["observations"], frames)
    [theirs] = MinariDataset(tmp_path / "x" / "data").iterate_episodes()
    np.testing.assert_array_equal(theirs.observations, frames)


def test_a_single_named_array_loses_its_name_in_d4rl(tmp_path: Path) -> None:
    write_robomimic(
        tmp_path / "r", {"demo_0": demo(obs__image=None), "demo_1": demo(obs__image=None)}
    )
    episodes = healthy(RobomimicSource(), str(tmp_path / "r"))
    came = check_sink(D4rlSink(), D4rlSource(), episodes, tmp_path, {})
    for one, two in zip(expected_of_d4rl(episodes), came, strict=True):
        assert_same(one, two, rename=lambda name: name.replace("observations/eef", "observations"))


def test_extras_that_not_all_episodes_have_are_left_out_of_d4rl(tmp_path: Path) -> None:
    extras = {"q": np.zeros(4), "v": np.zeros((5, 2))}
    episodes = [toy_episode(extras=extras), toy_episode(extras={"v": np.ones((4, 2))})]
    D4rlSink().write(episodes, str(tmp_path / "x"), {})
    one, two = healthy(D4rlSource(), str(tmp_path / "x"))
    assert one.extras.keys() == two.extras.keys() == {"v"}
    np.testing.assert_array_equal(one.extras["v"], np.zeros((4, 2)))


def test_long_datasets_are_appended_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("connectors.d4rl_sink.UNIT_STEPS", 7)
    late = toy_episode(final_observation="missing", observations=np.zeros((4, 3)))
    episodes = [*[toy_episode(n, extras={"q": np.arange(n)}) for n in (3, 4, 9, 1)], late]
    D4rlSink().write(episodes, str(tmp_path / "x"), {})
    came = healthy(D4rlSource(), str(tmp_path / "x"))
    assert [e.length for e in came] == [3, 4, 9, 1, 4]
    for one, two in zip(episodes, came, strict=True):
        assert_same(without_final(one.replace(extras={})), two)


SINKS: dict[str, Any] = {"d4rl": D4rlSink(), "minari": MinariSink()}


@pytest.mark.parametrize("name", SINKS)
@pytest.mark.parametrize(
    "episodes",
    [
        [toy_episode(rewards=None)],
        [toy_episode(actions=None)],
        [toy_episode(0)],
        [toy_episode(), toy_episode(observations=np.zeros((5, 4)))],
        [toy_episode(), toy_episode(rewards=np.zeros(4, np.float32))],
    ],
    ids=["no rewards", "no actions", "no steps", "another shape", "another dtype"],
)
def test_what_does_not_fit_is_refused_whole(
    tmp_path: Path, name: str, episodes: list[Episode]
) -> None:
    with pytest.raises(UsageError, match="Expected"):
        SINKS[name].write(episodes, str(tmp_path / "x"), {})
    assert list(tmp_path.iterdir()) == []


def test_what_single_formats_cannot_hold(tmp_path: Path) -> None:
    nested = toy_episode(observations={"a": np.zeros((5, 1)), "b": np.zeros((5, 1))})
    with pytest.raises(UsageError, match="D4RL holds flat arrays only"):
        D4rlSink().write([nested], str(tmp_path / "x"), {})
    early = toy_episode(terminated=np.array([True, False, False, False]))
    with pytest.raises(UsageError, match="would end the episode there"):
        D4rlSink().write([early], str(tmp_path / "x"), {})
    for key in ("a/b", "", "."):
        odd = toy_episode(observations={key: np.zeros((5, 1))})
        with pytest.raises(UsageError, match="names that HDF5 can hold"):
            MinariSink().write([odd], str(tmp_path / "x"), {})
        MinariSink().write(
            [odd], str(tmp_path / f"arrow{len(key)}{key == '.'}"), {"data_format": "arrow"}
        )
    with pytest.raises(UsageError, match="came 'zip'"):
        MinariSink().write([toy_episode()], str(tmp_path / "x"), {"data_format": "zip"})
    with pytest.raises(UsageError, match="at least one episode"):
        MinariSink().write([], str(tmp_path / "x"), {})
    assert not (tmp_path / "x").exists()
