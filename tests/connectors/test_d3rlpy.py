from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from connectors.d3rlpy import D3rlpySource
from schemas.errors import SourceError
from tests.connectors.contracts import check_missing, check_source, healthy, read_all
from tests.connectors.makers import d4rl_arrays, write_hdf5
from tests.data.make_formats import LENGTHS, TERMINATED, episodes

SOURCE = D3rlpySource()
SAMPLES = Path(__file__).parents[1] / "data" / "formats"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "buffer.h5"


def buffer(**changes: Any) -> dict[str, Any]:
    """Datasets of a version 2.1 file with two episodes."""
    random = np.random.default_rng(1)
    parts: dict[str, Any] = {
        "columns": [b"observations", b"actions", b"rewards", b"terminated"],
        "num_episodes": 2,
        "version": "2.1",
    }
    for index, steps in enumerate((4, 3)):
        parts[f"observations_{index}"] = random.normal(size=(steps, 3))
        parts[f"actions_{index}"] = random.integers(0, 5, (steps, 1))
        parts[f"rewards_{index}"] = random.normal(size=(steps, 1))
        parts[f"terminated_{index}"] = index == 0
    parts.update(changes)
    return {name: value for name, value in parts.items() if value is not None}


def test_what_d3rlpy_itself_wrote() -> None:
    listing, found = check_source(SOURCE, str(SAMPLES / "d3rlpy.h5"))
    assert (listing.episodes, listing.steps, listing.identity) == (3, sum(LENGTHS), None)
    for f, true, terminated in zip(found, episodes(), TERMINATED, strict=True):
        episode = f.episode
        assert episode is not None
        observed = episode.observations["observations"]
        np.testing.assert_array_equal(observed, true["observations"][:-1])
        np.testing.assert_array_equal(episode.actions, true["actions"])
        np.testing.assert_array_equal(episode.rewards, true["rewards"])
        assert (episode.is_terminated, episode.is_truncated) == (terminated, not terminated)
        assert episode.final_observation == "missing"
    assert any("final observations are missing" in guess for guess in listing.guesses)


def test_tuples_of_observations_are_named_by_position() -> None:
    found = healthy(SOURCE, str(SAMPLES / "d3rlpy_tuples.h5"))
    for episode, true in zip(found, episodes(), strict=True):
        rows = true["observations"][:-1]
        assert list(episode.observations) == ["observations/0", "observations/1"]
        np.testing.assert_array_equal(episode.observations["observations/0"], rows)
        assert episode.observations["observations/1"].dtype == np.uint8


def flat(**changes: Any) -> dict[str, Any]:
    """Datasets of a version 1 file: lengths 5, 1 and 8, the first terminated."""
    arrays = d4rl_arrays()
    parts = {name: arrays[name] for name in ("observations", "actions", "rewards")}
    parts["terminals"] = arrays["terminals"].astype(np.float32)
    ends = arrays["terminals"] | arrays["timeouts"]
    parts["episode_terminals"] = ends.astype(np.float32)
    parts.update(changes)
    return {name: value for name, value in parts.items() if value is not None}


def test_version_1(path: Path) -> None:
    listing, found = check_source(SOURCE, write_hdf5(path, flat()))
    assert [f.episode.length for f in found if f.episode] == [5, 1, 8]
    ends = [(f.episode.is_terminated, f.episode.is_truncated) for f in found if f.episode]
    assert ends == [(True, False), (False, True), (False, True)]
    np.testing.assert_array_equal(
        np.concatenate([f.episode.rewards for f in found if f.episode]), flat()["rewards"]
    )
    assert listing.metadata == {"version": "1"}


def test_version_1_without_ends_and_with_rows_after_the_last(path: Path) -> None:
    where = write_hdf5(path, flat(episode_terminals=None, discrete_action=False))
    listing, found = check_source(SOURCE, where)
    assert [f.episode.length for f in found if f.episode] == [5, 9]
    last = found[1].episode
    assert last is not None
    assert not last.is_terminated
    assert not last.is_truncated
    assert any("merely stops" in guess for guess in listing.guesses)
    assert any("runs into the next" in guess for guess in listing.guesses)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"rewards_0": np.zeros((3, 1))}, "length_mismatch"),
        ({"rewards_0": np.zeros((4, 2))}, "length_mismatch"),
        ({"actions_0": None}, "unreadable"),
        ({"observations_0": None}, "unreadable"),
        ({"terminated_0": 7}, "bad_dtype"),
        ({"terminated_0": "yes"}, "bad_dtype"),
    ],
)
def test_one_bad_episode_beside_a_healthy_one(
    path: Path, changes: dict[str, Any], code: str
) -> None:
    _, found = check_source(SOURCE, write_hdf5(path, buffer(**changes)))
    assert [f.fault.code if f.fault else None for f in found] == [code, None]


@pytest.mark.parametrize(
    ("parts", "match"),
    [
        (buffer(version="2.0"), "load and dump it with d3rlpy 2"),
        (buffer(version=None), "file version 2.1"),
        (buffer(num_episodes=10**9), "num_episodes"),
        (buffer(num_episodes=-1), "num_episodes"),
        (buffer(num_episodes=np.float64(2)), "num_episodes"),
        (buffer(columns=[b"observations"]), "the columns observations"),
        (flat(rewards=None), "rewards missing"),
        (flat(rewards=np.zeros(3)), "one length"),
        (flat(terminals=np.full(14, 0.5)), "0 and 1"),
    ],
)
def test_files_that_cannot_be_trusted(path: Path, parts: dict[str, Any], match: str) -> None:
    with pytest.raises(SourceError, match=match):
        read_all(SOURCE, write_hdf5(path, parts))


def test_links_are_refused(path: Path) -> None:
    with h5py.File(write_hdf5(path, buffer(observations_0=None)), "a") as file:
        file["observations_0"] = h5py.ExternalLink("/etc/hostname", "x")
    with pytest.raises(SourceError, match="link"):
        read_all(SOURCE, str(path))


def test_nothing_there(tmp_path: Path) -> None:
    check_missing(SOURCE, tmp_path)
