from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings

from connectors.facts import FACTS
from connectors.robomimic import RobomimicSource
from connectors.robomimic_sink import RobomimicSink
from schemas.episode import Episode
from schemas.errors import UsageError
from schemas.packed import Packed
from tests.connectors.contracts import assert_same, check_sink, healthy
from tests.connectors.makers import toy_episode
from tests.connectors.strategies import datasets

SOURCE = RobomimicSource()
SINK = RobomimicSink()


def renamed(name: str) -> str:
    return "observations/flat" if name == "observations" else name


def expected(episode: Episode, env_name: str | None = None) -> Episode:
    """Applies the losses that the sink declares."""
    last = np.arange(episode.length) == episode.length - 1
    rewards = episode.rewards
    is_sparse = rewards is not None and np.isin(rewards, (0, 1)).all()
    is_denied = episode.success is False
    if episode.success is None and is_sparse:
        is_denied = not rewards[-1]
    is_terminated = episode.is_terminated and not is_denied
    states = episode.extras.get("states")
    return episode.replace(
        terminated=last & is_terminated,
        truncated=last & (not is_terminated),
        extras={} if states is None else {"states": states[: episode.length]},
        task=episode.task or env_name,
    )


@settings(max_examples=25)
@given(episodes=datasets(is_nested=True))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, episodes: list[Episode]) -> None:
    labelled = [
        e.replace(
            labels={"mask_train": i % 2 == 0, "mask_all": True},
            extras={**e.extras, "states": np.zeros((e.length + i % 2, 4))},
        )
        for i, e in enumerate(episodes)
    ]
    came = check_sink(SINK, SOURCE, labelled, tmp_path_factory.mktemp("r"), {})
    for one, two in zip(labelled, came, strict=True):
        facts = (*FACTS, "columns", "labels", "final_observation")
        assert_same(expected(one), two, facts, renamed)


@pytest.mark.parametrize(
    "name",
    ["hopper-medium/robomimic.hdf5", "metaworld-images/robomimic_image.hdf5"],
)
def test_real_files_come_back_whole(shared_data: Path, tmp_path: Path, name: str) -> None:
    origin = str(shared_data / name)
    metadata = dict(SOURCE.discover(origin).metadata)
    episodes = healthy(SOURCE, origin)
    SINK.write(episodes, str(tmp_path / "x"), metadata)
    assert SOURCE.discover(str(tmp_path / "x")).metadata == metadata
    for one, two in zip(episodes, healthy(SOURCE, str(tmp_path / "x")), strict=True):
        facts = (*FACTS, "columns", "labels", "final_observation")
        assert_same(one, two, facts)


def test_labels_are_filter_keys(tmp_path: Path) -> None:
    episodes = [
        toy_episode(labels={"split": "train", "mask_good": True, "score": 3}),
        toy_episode(labels={"split": "valid", "mask_good": False}),
        toy_episode(),
    ]
    SINK.write(episodes, str(tmp_path / "x"), {})
    with h5py.File(tmp_path / "x") as file:
        masks = {name: [v.decode() for v in keys] for name, keys in file["mask"].items()}
        assert masks == {"good": ["demo_0"], "train": ["demo_0"], "valid": ["demo_1"]}
        assert file["data"].attrs["total"] == 12
        assert file["data/demo_1"].attrs["num_samples"] == 4
    came = healthy(SOURCE, str(tmp_path / "x"))
    assert came[0].labels == {"mask_good": True, "mask_train": True, "mask_valid": False}


def test_what_robomimic_reads(tmp_path: Path) -> None:
    """The members that robomimic's loader opens, with the meanings that it gives them."""
    episode = toy_episode(actions=np.full((4, 2), 3.0), terminated=True, truncated=False)
    missing = toy_episode(final_observation="missing", observations=np.ones((4, 3)))
    metadata = {"env_args": {"env_name": "Lift", "type": 1, "env_kwargs": {}}}
    SINK.write([episode, missing], str(tmp_path / "x"), metadata)
    with h5py.File(tmp_path / "x") as file:
        assert json.loads(file["data"].attrs["env_args"])["env_name"] == "Lift"
        demo: Any = file["data/demo_0"]
        np.testing.assert_array_equal(demo["actions"], episode.actions)  # out of range, unclipped
        assert demo["dones"][:].tolist() == [0, 0, 0, 1]
        seen = np.asarray(episode.observations["observations"])
        np.testing.assert_array_equal(demo["obs/flat"], seen[:-1])
        np.testing.assert_array_equal(demo["next_obs/flat"], seen[1:])
        assert "next_obs" not in file["data/demo_1"]
        assert file["data/demo_1/dones"][:].tolist() == [0, 0, 0, 0]
    assert [e.task for e in healthy(SOURCE, str(tmp_path / "x"))] == ["Lift", "Lift"]


def test_a_common_task_names_the_environment(tmp_path: Path) -> None:
    SINK.write([toy_episode(task="reach"), toy_episode(task="reach")], str(tmp_path / "x"), {})
    SINK.write([toy_episode(task="reach"), toy_episode()], str(tmp_path / "y"), {})
    assert SOURCE.discover(str(tmp_path / "x")).metadata["env_args"]["env_name"] == "reach"
    assert [e.task for e in healthy(SOURCE, str(tmp_path / "y"))] == ["reach", None]


@pytest.mark.parametrize(
    "episodes",
    [
        [toy_episode(0)],
        [toy_episode(actions=None)],
        [toy_episode(actions={"a": np.zeros((4, 1)), "b": np.zeros((4, 1))})],
        [toy_episode(observations={".": np.zeros((5, 1))})],
        [toy_episode(observations={"a": Packed.texts("abcde")})],
        [toy_episode(labels={"mask_a/./b": True})],
        [toy_episode(policy="a\0b")],
    ],
)
def test_what_does_not_fit_is_refused_whole(tmp_path: Path, episodes: list[Episode]) -> None:
    with pytest.raises(UsageError, match="Expected"):
        SINK.write(episodes, str(tmp_path / "x"), {})
    assert list(tmp_path.iterdir()) == []
