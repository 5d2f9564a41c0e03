from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from connectors.robomimic import RobomimicSource
from schemas.errors import SourceError
from tests.connectors.contracts import check_missing, check_source, healthy, read_all
from tests.connectors.makers import demo, write_hdf5, write_robomimic
from tests.connectors.test_d4rl import first_24

SOURCE = RobomimicSource()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "demos.hdf5"


@pytest.mark.parametrize(
    ("file", "truth", "episodes", "steps", "final"),
    [
        ("metaworld/robomimic_labelled.hdf5", "TRUTH.json", 270, 25_489, "missing"),
        ("metaworld-images/robomimic_image.hdf5", "TRUTH.json", 5, 409, "missing"),
        ("hopper-medium/robomimic.hdf5", "TRUTH.json", 33, 15_389, "present"),
    ],
)
def test_real_files_match_their_truth(
    shared_data: Path, file: str, truth: str, episodes: int, steps: int, final: str
) -> None:
    where = shared_data / file
    listing, found = check_source(SOURCE, str(where))
    assert (listing.episodes, listing.steps, listing.identity) == (episodes, steps, None)
    for f, true in zip(found, json.loads((where.parent / truth).read_text()), strict=True):
        episode = f.episode
        assert episode is not None
        assert first_24(episode.observations["observations/flat"][: episode.length]) == true["obs"]
        assert first_24(episode.actions) == true["act"]
        assert first_24(episode.rewards) == true["rew"]
        assert (episode.is_terminated, episode.is_truncated) == (
            true["terminated"],
            true["truncated"],
        )
        assert (episode.task, episode.seed) == (true["task"], true["seed"])
        assert episode.success == true.get("success")
        assert episode.columns.get("sigma") == true.get("sigma")
        assert episode.columns["source_kind"] == true["kind"]
        assert episode.kind == "demonstration"
        assert episode.final_observation == final


def test_filter_keys_become_labels(shared_data: Path) -> None:
    where = str(shared_data / "metaworld/robomimic_labelled.hdf5")
    episodes = healthy(SOURCE, where)
    counts = {name: sum(e.labels[name] is True for e in episodes) for name in episodes[0].labels}
    assert counts["mask_train"] == 243
    assert counts["mask_valid"] == 27
    assert counts["mask_success"] == sum(e.success is True for e in episodes) == 252
    assert all(e.labels["mask_reach_v3"] == (e.task == "reach-v3") for e in episodes)


def test_demonstrations_in_the_order_of_their_numbers(path: Path) -> None:
    write_robomimic(
        path,
        {f"demo_{i}": demo(i + 1) for i in (10, 2, 0)},
        {"train": ["demo_10", "demo_0"], "valid": ["demo_2"]},
    )
    listing, found = check_source(SOURCE, str(path))
    assert [f.key for f in found] == ["demo_0", "demo_2", "demo_10"]
    assert [f.episode.length for f in found if f.episode] == [1, 3, 11]
    assert [f.episode.labels["mask_train"] for f in found if f.episode] == [True, False, True]
    assert listing.metadata["masks"] == ["train", "valid"]
    assert listing.metadata["env_args"]["env_name"] == "Lift"
    episode = found[1].episode
    assert episode is not None
    assert episode.task == "Lift"
    assert sorted(episode.observations) == ["observations/eef", "observations/image"]
    assert sorted(episode.extras) == ["states"]
    assert episode.columns == {}
    assert any("model_file" in guess for guess in listing.guesses)


def with_next(parts: dict[str, Any], *, is_copy: bool) -> dict[str, Any]:
    for key in ("eef", "image"):
        rows = parts[f"obs/{key}"]
        last = rows[-1:] if is_copy else rows[-1:] + 1
        parts[f"next_obs/{key}"] = np.concatenate([rows[1:], last])
    return parts


def test_the_final_observation_is_present_copied_or_missing(path: Path) -> None:
    demos = {
        "demo_0": with_next(demo(), is_copy=False),
        "demo_1": with_next(demo(), is_copy=True),
        "demo_2": demo(),
        "demo_3": {**demo(), "next_obs/eef": demo()["obs/eef"]},  # not of every key
    }
    episodes = healthy(SOURCE, write_robomimic(path, demos))
    assert [e.final_observation for e in episodes] == ["present", "copied", "missing", "missing"]
    assert [len(e.observations["observations/eef"]) for e in episodes] == [7, 7, 6, 6]
    np.testing.assert_array_equal(
        episodes[0].observations["observations/image"][-1], demos["demo_0"]["next_obs/image"][-1]
    )


SPARSE_HIT, SPARSE_MISS = np.eye(6)[-1], np.zeros(6)
DONE_EARLY = np.array([0, 0, 1, 0, 0, 0])


@pytest.mark.parametrize(
    ("changes", "is_terminated"),
    [
        ({"@success": True}, True),
        ({"@success": False}, False),
        ({"@success": 0.0, "rewards": SPARSE_HIT}, False),
        ({"rewards": SPARSE_HIT}, True),
        ({"rewards": SPARSE_MISS}, False),
        ({"rewards": None}, True),
        ({}, True),
        ({"dones": np.zeros(6, int), "@success": True}, False),
        ({"dones": DONE_EARLY, "@success": True}, False),
        ({"dones": np.ones(6, int)}, True),
        ({"dones": None}, False),
    ],
    ids=str,
)
def test_what_ended_a_demonstration(
    path: Path, changes: dict[str, Any], is_terminated: bool
) -> None:
    [episode] = healthy(SOURCE, write_robomimic(path, {"demo_0": demo(**changes)}))
    assert (episode.is_terminated, episode.is_truncated) == (is_terminated, not is_terminated)
    assert not (episode.terminated | episode.truncated)[:-1].any()
    assert episode.success == (bool(changes["@success"]) if "@success" in changes else None)


def test_attributes_become_facts_or_columns(path: Path) -> None:
    attributes = {
        "@task": "Säge",
        "@seed": 3,
        "@success": 1,
        "@kind": "policy",
        "@length": 99,
        "@operator": "A",
        "@weights": np.array([0.5, 1.0]),
        "@policy_version": 2,
    }
    [episode] = healthy(SOURCE, write_robomimic(path, {"demo_0": demo(**attributes)}))
    assert (episode.task, episode.seed, episode.success) == ("Säge", 3, True)
    assert (episode.kind, episode.policy_version) == ("demonstration", None)
    assert episode.columns == {
        "source_kind": "policy",
        "source_length": 99,
        "operator": "A",
        "weights": "[0.5, 1.0]",
        "source_policy_version": 2,
    }


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"actions": np.zeros((5, 2))}, "length_mismatch"),
        ({"obs__eef": np.zeros((5, 3))}, "length_mismatch"),
        ({"states": np.zeros((7, 3))}, "length_mismatch"),
        ({"rewards": np.zeros((6, 2))}, "length_mismatch"),
        ({"next_obs__eef": np.zeros((5, 3)), "next_obs__image": np.zeros(5)}, "length_mismatch"),
        ({"next_obs__eef": np.zeros((6, 3)), "next_obs__image": np.zeros(6)}, "gap"),
        ({"actions": None}, "unreadable"),
        ({"obs__eef": None, "obs__image": None}, "unreadable"),
    ],
    ids=str,
)
def test_faults_spare_the_neighbours(path: Path, changes: dict[str, Any], code: str) -> None:
    demos = {"demo_0": demo(), "demo_1": demo(**changes), "demo_2": demo()}
    found = read_all(SOURCE, write_robomimic(path, demos))
    assert [f.fault and f.fault.code for f in found] == [None, code, None]


def test_what_is_no_robomimic_file(path: Path, tmp_path: Path) -> None:
    check_missing(SOURCE, tmp_path)
    with pytest.raises(SourceError, match=r"group 'data'.* there is x"):
        SOURCE.discover(write_hdf5(path, {"x": np.arange(3)}))
    write_robomimic(path, {"demo_0": demo(200)})
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(SourceError, match="truncated file"):
        SOURCE.discover(str(path))


def test_a_link_to_another_file_is_refused(path: Path, tmp_path: Path) -> None:
    write_robomimic(tmp_path / "other.hdf5", {"demo_0": demo()})
    write_robomimic(path, {"demo_0": demo()})
    with h5py.File(path, "a") as file:
        file["data/demo_1"] = h5py.ExternalLink(str(tmp_path / "other.hdf5"), "data/demo_0")
    with pytest.raises(SourceError, match="links are never followed"):
        SOURCE.discover(str(path))


def test_nan_passes_through(path: Path) -> None:
    rewards = np.array([0, np.nan, 0, 0, 0, 1])
    [episode] = healthy(SOURCE, write_robomimic(path, {"demo_0": demo(rewards=rewards)}))
    assert np.isnan(episode.rewards[1])
