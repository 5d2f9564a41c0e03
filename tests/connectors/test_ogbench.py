from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from connectors.detection import detect
from connectors.npz import open_npz
from connectors.ogbench import OgbenchSource
from connectors.ogbench_sink import INFOS, OgbenchSink
from schemas.episode import Episode
from schemas.errors import SourceError, UsageError
from tests.connectors.contracts import (
    assert_same,
    check_missing,
    check_sink,
    check_source,
    healthy,
    read_all,
)
from tests.connectors.makers import toy_episode
from tests.connectors.strategies import datasets

SOURCE = OgbenchSource()
SINK = OgbenchSink()
ROWS = (5, 2, 8)


def arrays(rows: tuple[int, ...] = ROWS) -> dict[str, np.ndarray]:
    """Arrays of an OGBench file; `terminals` is 1 in the last row of each trajectory."""
    random, total = np.random.default_rng(5), sum(rows)
    terminals = np.zeros(total, np.float32)
    terminals[np.cumsum(rows) - 1] = 1
    return {
        "observations": random.normal(size=(total, 3)).astype(np.float32),
        "actions": random.normal(size=(total, 2)).astype(np.float32),
        "terminals": terminals,
        "qpos": random.normal(size=(total, 4)),
    }


def write(path: Path, made: dict[str, Any], *, is_compressed: bool = True) -> str:
    (np.savez_compressed if is_compressed else np.savez)(path, **made)
    return str(path)


def load_dataset(where: str) -> dict[str, np.ndarray]:
    """What OGBench's own loader makes of a file (ogbench 1.2.2, `utils.load_dataset`)."""
    with np.load(where) as file:
        found = {name: file[name] for name in ("observations", "actions", "terminals")}
    kept = (1.0 - found["terminals"]).astype(bool)
    following = np.concatenate([[False], kept[:-1]])
    ends = np.concatenate([found["terminals"][1:], [1.0]])
    return {
        "observations": found["observations"][kept],
        "actions": found["actions"][kept],
        "next_observations": found["observations"][following],
        "terminals": ends[kept],
    }


def transitions(episodes: list[Episode]) -> dict[str, np.ndarray]:
    """The same of our episodes."""
    seen = [np.asarray(e.observations["observations"]) for e in episodes]
    return {
        "observations": np.concatenate([rows[:-1] for rows in seen]),
        "actions": np.concatenate([e.actions for e in episodes]),
        "next_observations": np.concatenate([rows[1:] for rows in seen]),
        "terminals": np.concatenate([e.truncated for e in episodes]),
    }


@pytest.mark.parametrize("is_compressed", [True, False])
def test_trajectories_become_episodes(tmp_path: Path, is_compressed: bool) -> None:
    made = arrays()
    where = write(tmp_path / "x.npz", made, is_compressed=is_compressed)
    assert detect(where) == "ogbench"
    listing, found = check_source(SOURCE, where)
    assert (listing.episodes, listing.steps) == (3, sum(ROWS) - 3)
    assert [f.key for f in found] == ["rows 0:5", "rows 5:7", "rows 7:15"]
    episodes = [f.episode for f in found if f.episode]
    for episode, rows in zip(episodes, ROWS, strict=True):
        assert episode.length == rows - 1
        assert episode.final_observation == "present"
        assert episode.rewards is None
        assert episode.is_truncated
        assert not episode.terminated.any()
        assert episode.extras["qpos"].shape == (rows, 4)
    theirs, ours = load_dataset(where), transitions(episodes)
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array, name)


def test_units_read_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("connectors.units.UNIT_STEPS", 6)
    monkeypatch.setattr("connectors.units.NARROW_TIMES", 1)
    made = {**arrays(), "observations": np.zeros((15, 4, 4, 3), np.uint8)}
    for is_compressed in (True, False):
        where = write(tmp_path / f"{is_compressed}.npz", made, is_compressed=is_compressed)
        listing, found = check_source(SOURCE, where)
        assert [unit.options["rows"] for unit in listing.units] == [[0, 5], [5, 7], [7, 15]]
        episodes = [f.episode for f in found if f.episode]
        np.testing.assert_array_equal(
            np.concatenate([e.actions for e in episodes]), load_dataset(where)["actions"]
        )
        assert episodes[0].observations["observations"].dtype == np.uint8


def test_odd_ends(tmp_path: Path) -> None:
    made = arrays((5, 1, 3))
    made["terminals"][-1] = 0
    _, found = check_source(SOURCE, write(tmp_path / "x.npz", made))
    assert [f.fault.code if f.fault else None for f in found] == [None, "length_mismatch", None]
    last = found[2].episode
    assert last is not None
    assert (last.length, last.is_truncated) == (2, False)


def raw(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> str:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return str(path)


def npy(array: np.ndarray, **header: Any) -> bytes:
    """An .npy file whose header may say something else than its data."""
    file = io.BytesIO()
    stated = {
        "descr": array.dtype.str,
        "fortran_order": False,
        "shape": array.shape,
        **header,
    }
    np.lib.format.write_array_header_1_0(file, stated)
    return file.getvalue() + array.tobytes()


def test_hostile_archives(tmp_path: Path) -> None:
    check_missing(SOURCE, tmp_path)
    made = arrays()
    good = {f"{name}.npy": npy(array) for name, array in made.items()}
    assert len(read_all(SOURCE, raw(tmp_path / "good.npz", good))) == 3
    objects = io.BytesIO()
    np.save(objects, np.array([{}, []], dtype=object), allow_pickle=True)
    long = npy(made["actions"])
    cases = {
        "unpickling": {"actions.npy": objects.getvalue()},
        "columns first": {"actions.npy": npy(made["actions"], fortran_order=True)},
        "the archive holds": {"actions.npy": npy(made["actions"], shape=(2**40, 2))},
        "the archive holds 247": {"actions.npy": long[:-1]},
        "version 1.0": {"actions.npy": long[:6] + b"\x03" + long[7:]},
        "cannot be read": {"actions.npy": b"no array"},
        "one length": {"actions.npy": npy(made["actions"][:-1])},
        "0 and 1": {"terminals.npy": npy(made["terminals"] + 0.5)},
        "terminals of shape": {"terminals.npy": npy(np.zeros((15, 2)))},
        "actions missing": {"actions.npy": None},
    }
    for said, changes in cases.items():
        members = {k: v for k, v in {**good, **changes}.items() if v is not None}
        with pytest.raises(SourceError, match=said):
            SOURCE.discover(raw(tmp_path / "x.npz", members))
    (tmp_path / "x.npz").write_bytes(b"no zip")
    with pytest.raises(SourceError, match="cannot be read"):
        SOURCE.discover(str(tmp_path / "x.npz"))


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    members = {"a.npy": npy(np.zeros(10**5), shape=(2**28,))}
    where = Path(raw(tmp_path / "x.npz", members))
    data = bytearray(where.read_bytes())
    size = len(members["a.npy"]) - 8 * 10**5 + 2**31
    at = data.index(b"PK\x01\x02")
    data[at + 24 : at + 28] = struct.pack("<I", size)
    where.write_bytes(data)
    with pytest.raises(SourceError, match="the archive holds"):
        open_npz(where)
    with pytest.raises(SourceError, match="neither"):
        open_npz(raw(tmp_path / "lzma.npz", members, zipfile.ZIP_LZMA))
    with pytest.raises(SourceError, match="there are none"):
        open_npz(raw(tmp_path / "none.npz", {"x.txt": b""}))


@pytest.mark.parametrize("seed", range(40))
def test_flipped_bytes_end_in_a_typed_error_or_data(tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    where = Path(write(tmp_path / "x.npz", arrays(), is_compressed=bool(seed % 2)))
    data = bytearray(where.read_bytes())
    for at in random.integers(0, len(data), 3):
        data[at] ^= int(random.integers(1, 256))
    where.write_bytes(data)
    try:
        found = read_all(SOURCE, str(where))
    except SourceError:
        return
    assert all((f.episode is None) == (f.fault is not None) for f in found)


def expected(episode: Episode, kept: set[str]) -> Episode:
    """Applies the losses that the sink declares."""
    steps = episode.length - (episode.final_observation != "present")
    [rows] = episode.observations.values()
    return episode.replace(
        observations={"observations": rows[: steps + 1]},
        actions=episode.actions[:steps],
        rewards=None,
        terminated=np.zeros(steps, bool),
        truncated=np.arange(steps) == steps - 1,
        final_observation="present",
        extras={name: episode.extras[name][: steps + 1] for name in kept},
    )


@settings(max_examples=60)
@given(episodes=datasets(is_nested=False))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, episodes: list[Episode]) -> None:
    came = check_sink(SINK, SOURCE, episodes, tmp_path_factory.mktemp("og"), {})
    kept = {
        name
        for name in INFOS
        if all(
            name in e.extras
            and len(e.extras[name]) >= e.length + (e.final_observation == "present")
            for e in episodes
        )
    }
    for one, two in zip(episodes, came, strict=True):
        assert_same(expected(one, kept), two, ("final_observation",))


def test_what_we_write_is_what_ogbench_loads(tmp_path: Path) -> None:
    SINK.write([toy_episode(n) for n in (4, 2, 6)], str(tmp_path / "x.npz"), {})
    theirs = load_dataset(str(tmp_path / "x.npz"))
    ours = transitions(healthy(SOURCE, str(tmp_path / "x.npz")))
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array, name)


def test_a_final_observation_that_is_not_there_costs_the_last_step(tmp_path: Path) -> None:
    rows = np.arange(12.0).reshape(4, 3)
    episode = toy_episode(observations=rows, final_observation="missing", terminated=True)
    SINK.write([episode], str(tmp_path / "x.npz"), {})
    [came] = healthy(SOURCE, str(tmp_path / "x.npz"))
    assert came.length == 3
    np.testing.assert_array_equal(came.observations["observations"], rows)
    with np.load(tmp_path / "x.npz") as file:
        np.testing.assert_array_equal(file["actions"], episode.actions)


@pytest.mark.parametrize(
    "episodes",
    [
        [],
        [toy_episode(0)],
        [toy_episode(1, observations=np.zeros((1, 3)), final_observation="missing")],
        [toy_episode(actions=None)],
        [toy_episode(), toy_episode(observations=np.zeros((5, 4)))],
        [toy_episode(observations={"a": np.zeros((5, 1)), "b": np.zeros((5, 1))})],
        [toy_episode(observations=np.array(list("abcde")))],
        [toy_episode(terminated=np.array([True, False, False, False]))],
    ],
)
def test_what_does_not_fit_is_refused_whole(tmp_path: Path, episodes: list[Episode]) -> None:
    with pytest.raises(UsageError, match="Expected"):
        SINK.write(episodes, str(tmp_path / "x"), {})
    assert list(tmp_path.iterdir()) == []
