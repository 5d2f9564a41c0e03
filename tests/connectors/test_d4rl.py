from __future__ import annotations

import hashlib
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.d4rl import D4rlSource
from schemas.errors import SourceError
from tests.connectors.contracts import check_missing, check_source, healthy, read_all
from tests.connectors.makers import LENGTHS, d4rl_arrays, write_hdf5

SOURCE = D4rlSource()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "d4rl.hdf5"


def first_24(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array, "<f4").tobytes()).hexdigest()[:24]


@pytest.mark.parametrize(
    ("file", "truth", "episodes", "steps", "final"),
    [
        ("hopper-medium-replay/d4rl.hdf5", "TRUTH.json", 798, 89_895, "missing"),
        ("hopper-medium/d4rl.hdf5", "TRUTH.json", 33, 15_389, "present"),
        ("pendulum/expert_d4rl.hdf5", "expert_TRUTH.json", 20, 4_000, "present"),
        ("public/door_human/door_human_d4rl_layout.hdf5", "TRUTH.json", 25, 6_729, "missing"),
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
        assert episode.length == true["length"]
        assert episode.episode_return == pytest.approx(true["ret"], abs=1e-9)
        assert first_24(episode.observations["observations"][: episode.length]) == true["obs"]
        assert first_24(episode.actions) == true["act"]
        assert first_24(episode.rewards) == true["rew"]
        assert episode.rewards.dtype == np.float32
        assert episode.final_observation == final
        if "terminated" in true:
            assert episode.is_terminated == true["terminated"]
            assert episode.is_truncated == true["truncated"]


def test_rows_become_episodes(path: Path) -> None:
    arrays = d4rl_arrays()
    write_hdf5(
        path, {**arrays, "infos/qpos": arrays["observations"] * 2, "metadata/algorithm": "x"}
    )
    listing, found = check_source(SOURCE, str(path))
    assert listing.metadata == {"algorithm": "x"}
    assert [f.key for f in found] == ["rows 0:5", "rows 5:6", "rows 6:14"]
    for f, start, length in zip(found, (0, 5, 6), LENGTHS, strict=True):
        episode, stop = f.episode, start + length
        assert episode is not None
        assert episode.final_observation == "present"
        observations = episode.observations["observations"]
        np.testing.assert_array_equal(observations[:-1], arrays["observations"][start:stop])
        np.testing.assert_array_equal(observations[-1], arrays["next_observations"][stop - 1])
        np.testing.assert_array_equal(episode.actions, arrays["actions"][start:stop])
        np.testing.assert_array_equal(
            episode.extras["qpos"], 2 * arrays["observations"][start:stop]
        )
        assert (episode.is_terminated, episode.is_truncated) == (start == 0, start != 0)
        assert episode.source_key == f"rows {start}:{stop}"


def test_without_next_observations_finals_are_missing(path: Path) -> None:
    arrays = d4rl_arrays()
    del arrays["next_observations"]
    episodes = healthy(SOURCE, write_hdf5(path, arrays))
    assert {e.final_observation for e in episodes} == {"missing"}
    assert [len(e.observations["observations"]) for e in episodes] == list(LENGTHS)


def test_a_final_observation_that_repeats_the_last_is_a_copy(path: Path) -> None:
    arrays = d4rl_arrays()
    arrays["next_observations"][13] = arrays["observations"][13]
    episodes = healthy(SOURCE, write_hdf5(path, arrays))
    assert [e.final_observation for e in episodes] == ["present", "present", "copied"]


def test_columns_of_one_are_squeezed_and_numbers_are_flags(path: Path) -> None:
    arrays = d4rl_arrays()
    plain = healthy(SOURCE, write_hdf5(path.with_name("plain.hdf5"), arrays))
    arrays["rewards"] = arrays["rewards"][:, None]
    arrays["terminals"] = arrays["terminals"][:, None].astype(np.float32)
    arrays["timeouts"] = arrays["timeouts"].astype(np.int64)
    for one, two in zip(healthy(SOURCE, write_hdf5(path, arrays)), plain, strict=True):
        assert one.rewards.shape == (one.length,)
        np.testing.assert_array_equal(one.rewards, two.rewards)
        np.testing.assert_array_equal(one.terminated, two.terminated)


def test_rows_after_the_last_end_are_kept(path: Path) -> None:
    arrays = d4rl_arrays()
    arrays["timeouts"][-1] = False
    listing, found = check_source(SOURCE, write_hdf5(path, arrays))
    last = found[-1].episode
    assert last is not None
    assert (last.length, last.is_terminated, last.is_truncated) == (8, False, False)
    assert any("merely stops" in guess for guess in listing.guesses)


def test_without_timeouts_cuts_show_in_next_observations(path: Path) -> None:
    arrays = d4rl_arrays()
    expected = healthy(SOURCE, write_hdf5(path.with_name("with.hdf5"), arrays))
    del arrays["timeouts"]
    listing, found = check_source(SOURCE, write_hdf5(path, arrays))
    assert any("cut off where next_observations" in guess for guess in listing.guesses)
    lengths = [f.episode.length for f in found if f.episode]
    assert lengths == [e.length for e in expected]
    assert [f.episode.is_truncated for f in found if f.episode] == [False, True, False]


def test_without_timeouts_and_next_observations_only_terminals_end(path: Path) -> None:
    arrays = d4rl_arrays()
    del arrays["timeouts"], arrays["next_observations"]
    listing, found = check_source(SOURCE, write_hdf5(path, arrays))
    assert [f.key for f in found] == ["rows 0:5", "rows 5:14"]
    assert any("runs into the next" in guess for guess in listing.guesses)


def test_missing_steps_are_a_gap_and_spare_their_neighbours(path: Path) -> None:
    arrays = d4rl_arrays()
    arrays["next_observations"][9] += 1
    found = read_all(SOURCE, write_hdf5(path, arrays))
    assert [f.fault and f.fault.code for f in found] == [None, None, "gap"]
    assert "row 9" in found[2].fault.message


def test_nan_passes_through(path: Path) -> None:
    arrays = d4rl_arrays()
    arrays["rewards"][3] = np.nan
    arrays["observations"][2] = np.nan
    arrays["next_observations"][1] = np.nan
    episodes = healthy(SOURCE, write_hdf5(path, arrays))
    assert np.isnan(episodes[0].rewards[3])


@pytest.mark.parametrize("name", ["observations", "actions", "rewards", "terminals", "infos/q"])
def test_arrays_of_different_lengths_refuse_the_file(path: Path, name: str) -> None:
    arrays = {**d4rl_arrays(), "infos/q": np.zeros(14)}
    arrays[name] = arrays[name][:-1]
    where = write_hdf5(path, arrays)
    with pytest.raises(SourceError, match=rf"one length.*{name} 13"):
        SOURCE.discover(where)


def test_what_is_no_d4rl_file(path: Path, tmp_path: Path) -> None:
    check_missing(SOURCE, tmp_path)
    arrays = d4rl_arrays()
    del arrays["rewards"]
    with pytest.raises(SourceError, match="rewards missing; there is actions"):
        SOURCE.discover(write_hdf5(path, arrays))
    arrays = {**d4rl_arrays(), "terminals": np.full(14, 2)}
    with pytest.raises(SourceError, match="Expected 0 and 1"):
        SOURCE.discover(write_hdf5(path, arrays))
    arrays = {**d4rl_arrays(), "rewards": np.zeros((14, 2))}
    with pytest.raises(SourceError, match=r"shape \(N,\)"):
        SOURCE.discover(write_hdf5(path, arrays))
    arrays = {**d4rl_arrays(), "next_observations": np.zeros((14, 4))}
    with pytest.raises(SourceError, match="the shape of observations"):
        read_all(SOURCE, write_hdf5(path, arrays))


def test_truncated_file(path: Path) -> None:
    write_hdf5(path, d4rl_arrays())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SourceError, match="truncated file"):
        SOURCE.discover(str(path))


def test_a_link_to_another_file_is_refused(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.hdf5"
    arrays = d4rl_arrays()
    write_hdf5(other, {"rewards": arrays.pop("rewards")})
    write_hdf5(path, arrays)
    with h5py.File(path, "a") as file:
        file["rewards"] = h5py.ExternalLink(str(other), "/rewards")
    with pytest.raises(SourceError, match="links are never followed"):
        SOURCE.discover(str(path))


def test_a_file_that_changed_after_discovery_is_refused(path: Path) -> None:
    where = write_hdf5(path, d4rl_arrays())
    [unit] = SOURCE.discover(where).units
    before = SOURCE.discover(where).fingerprint
    write_hdf5(path, d4rl_arrays((5, 9)))
    assert SOURCE.discover(where).fingerprint != before
    with pytest.raises(SourceError, match="changed while it was read"):
        list(SOURCE.read(unit))


def test_an_empty_file_has_no_episodes(path: Path) -> None:
    empty = {name: array[:0] for name, array in d4rl_arrays().items()}
    listing, found = check_source(SOURCE, write_hdf5(path, empty))
    assert (listing.episodes, found) == (0, [])


@settings(max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=12),
    unit=st.integers(1, 40),
    has_timeouts=st.booleans(),
)
def test_units_of_any_size_give_the_same_episodes(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], unit: int, has_timeouts: bool
) -> None:
    arrays = d4rl_arrays(lengths)
    if not has_timeouts:
        del arrays["timeouts"]
    where = write_hdf5(tmp_path_factory.mktemp("d") / "f.hdf5", arrays)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("connectors.units.UNIT_STEPS", unit)
        patch.setattr("connectors.units.NARROW_TIMES", 1)
        patch.setattr("connectors.d4rl.UNIT_STEPS", unit)
        listing, found = check_source(SOURCE, where)
    assert [f.episode.length for f in found if f.episode] == lengths
    assert all(u.steps <= unit or u.stop == u.start + 1 for u in listing.units)
