"""LeRobot v3.0 and v2.1: real datasets, there and back again, and folders that lie."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors import detection
from connectors.arrow_files import read_groups
from connectors.lerobot import LerobotSource
from connectors.lerobot_encode import PSNR, encode
from connectors.lerobot_sink import LerobotSink
from schemas.episode import Episode
from schemas.errors import EpisodeError, NotFoundError, SourceError, UsageError
from schemas.identity import digest
from schemas.packed import Media, Packed, Video, plain
from schemas.spec import FieldSpec
from tests.connectors.contracts import (
    assert_same,
    check_missing,
    check_sink,
    check_source,
    healthy,
    read_all,
)
from tests.connectors.makers import rng, toy_episode
from tests.connectors.strategies import datasets

VERSIONS = ("v3.0", "v2.1")
CAMERA = "observations/images/corner2"
REAL = {
    "hopper_medium": "hopper-medium",
    "metaworld_labelled": "metaworld",
    "metaworld_images_png": "metaworld-images",
    "metaworld_images_video": "metaworld-images",
    "metaworld_images_video_v21": "metaworld-images",
}


def short_digest(array: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(array, "<f4").tobytes()).hexdigest()[:24]


def decibels(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """PSNR of each frame."""
    error = np.mean((one.astype(np.float64) - two) ** 2, axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return np.asarray(10 * np.log10(255**2 / error))


# -- real datasets -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REAL)
def test_real_datasets_are_their_truth(shared_data: Path, name: str) -> None:
    truth = json.loads((shared_data / REAL[name] / "TRUTH.json").read_text())
    where = str(shared_data / "lerobot" / name)
    listing, found = check_source(LerobotSource(), where)
    assert detection.detect(where) == "lerobot"
    assert listing.identity is None
    assert listing.guesses == ()
    for f, true in zip(found, truth, strict=False):
        episode = f.episode
        assert episode is not None
        assert short_digest(episode.observations["observations/state"]) == true["obs"]
        assert short_digest(episode.actions) == true["act"]
        assert short_digest(episode.rewards) == true["rew"]
        assert (episode.is_terminated, episode.is_truncated) == (
            true["terminated"],
            true["truncated"],
        )
        assert episode.task == true["task"]
        assert episode.success == true.get("success")
        assert episode.final_observation == "missing"
        assert episode.labels == {"split": "train"}


def test_png_pictures_are_the_pixels_that_robomimic_has(shared_data: Path) -> None:
    h5py = pytest.importorskip("h5py")
    episodes = healthy(LerobotSource(), str(shared_data / "lerobot/metaworld_images_png"))
    with h5py.File(shared_data / "metaworld-images/robomimic_image.hdf5") as file:
        for at, episode in enumerate(episodes):
            rows = episode.observations[CAMERA]
            assert isinstance(rows, Packed)
            [frames] = [a[:] for a in file[f"data/demo_{at}/obs"].values() if a.ndim == 4]
            np.testing.assert_array_equal(plain(rows), frames)


@pytest.mark.parametrize("name", ["metaworld_images_video", "metaworld_images_video_v21"])
def test_videos_show_the_same_frames(shared_data: Path, name: str) -> None:
    """AV1 as LeRobot writes it: 31.7 dB on average, 29.5 dB the worst frame; a frame off is 25."""
    pictures = healthy(LerobotSource(), str(shared_data / "lerobot/metaworld_images_png"))
    videos = healthy(LerobotSource(), str(shared_data / "lerobot" / name))
    found = []
    for one, two in zip(pictures, videos, strict=True):
        rows = two.observations[CAMERA]
        assert isinstance(rows, Video)
        found.append(decibels(plain(one.observations[CAMERA]), plain(rows)))
    assert np.concatenate(found).mean() > 31.5
    assert np.concatenate(found).min() > 29.4


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["hopper_medium", "metaworld_images_png"])
def test_real_datasets_come_back_the_same(
    shared_data: Path, tmp_path: Path, name: str, version: str
) -> None:
    where, out = str(shared_data / "lerobot" / name), str(tmp_path / "out")
    metadata = {**LerobotSource().discover(where).metadata, "codebase_version": version}
    episodes = healthy(LerobotSource(), where)
    LerobotSink().write(episodes, out, metadata)
    assert [digest(e) for e in healthy(LerobotSource(), out)] == [digest(e) for e in episodes]
    listing = LerobotSource().discover(out)
    assert listing.metadata["robot_type"] == metadata["robot_type"]
    assert listing.metadata["codebase_version"] == version


@pytest.mark.parametrize(
    ("name", "version"),
    [("metaworld_images_video", "v3.0"), ("metaworld_images_video_v21", "v2.1")],
)
def test_whole_videos_are_kept_as_they_came(
    shared_data: Path, tmp_path: Path, name: str, version: str
) -> None:
    source = shared_data / "lerobot" / name
    episodes = healthy(LerobotSource(), str(source))
    LerobotSink().write(episodes, str(tmp_path / "out"), {"codebase_version": version})
    assert [digest(e) for e in healthy(LerobotSource(), str(tmp_path / "out"))] == [
        digest(e) for e in episodes
    ]
    came = [p.read_bytes() for p in sorted(source.rglob("*.mp4"))]
    assert [p.read_bytes() for p in sorted((tmp_path / "out").rglob("*.mp4"))] == came


def test_a_part_of_a_video_is_encoded_anew_and_takes_nothing_along(
    shared_data: Path, tmp_path: Path
) -> None:
    source = shared_data / "lerobot/metaworld_images_video"
    [one] = [e for e in healthy(LerobotSource(), str(source)) if e.length == 46]
    LerobotSink().write([one], str(tmp_path / "out"), {})
    [came] = healthy(LerobotSource(), str(tmp_path / "out"))
    rows = came.observations[CAMERA]
    assert isinstance(rows, Video)
    assert len(rows) == 46
    assert decibels(plain(one.observations[CAMERA]), plain(rows)).min() >= PSNR
    [file] = (tmp_path / "out").rglob("*.mp4")
    assert rows.media[0].load() == file.read_bytes()
    alone = Video(rows.spec, rows.media, np.zeros(1, np.int32), np.array([46 / 20 + 0.01]))
    with pytest.raises(EpisodeError, match="came none"):
        plain(alone)


# -- there and back again ------------------------------------------------------------------------


def expected_of(episodes: list[Episode], fps: float = 30.0) -> list[Episode]:
    """Applies the losses that the sink declares."""
    shared = set.intersection(*(set(e.extras) for e in episodes))
    fps = next((e.fps for e in episodes[:1] if e.fps), fps)
    return [
        e.replace(
            observations={n: a[: e.length] for n, a in e.observations.items()},
            final_observation="missing",
            extras={n: a[: e.length] for n, a in e.extras.items() if n in shared},
            fps=fps,
        )
        for e in episodes
    ]


@settings(max_examples=50)
@given(episodes=datasets(is_nested=True), version=st.sampled_from(VERSIONS))
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory, episodes: list[Episode], version: str
) -> None:
    place = tmp_path_factory.mktemp("lerobot")
    episodes = [e.replace(fps=episodes[0].fps) for e in episodes]
    metadata: dict[str, object] = {"codebase_version": version}
    came = check_sink(LerobotSink(), LerobotSource(), episodes, place, metadata)
    facts = ("task", "kind", "policy", "policy_version", "seed", "success", "collected_at", "fps")
    for one, two in zip(expected_of(episodes), came, strict=True):
        assert_same(one, two, (*facts, "columns", "labels", "final_observation"))


@pytest.mark.parametrize("version", VERSIONS)
def test_texts_pictures_tasks_and_odd_names(tmp_path: Path, version: str) -> None:
    steps = 4
    pixels = rng().integers(0, 255, (steps, 16, 18, 3), np.uint8)
    episode = toy_episode(
        steps,
        observations={
            "state": np.zeros((steps, 2)),
            "images": {"top": pixels},
            "flat": pixels[:, 0],
        },
        extras={
            "task": Packed.texts(["pick", "pick", "place", "pick"]),
            "complementary_info/note": Packed.texts(["", "é", "b", "c"]),
            "action/gripper": np.arange(steps),
            "timestamp": np.arange(steps) / 7,
            "next/success": np.array([False, True, False, True]),
            "ragged": Packed.ragged([np.arange(n) for n in range(steps)]),
        },
        success=True,
        labels={"split": "valid", "mask_good": True},
        columns={"note": "x", "n": 3},
        final_observation="missing",
    )
    LerobotSink().write([episode], str(tmp_path / "x"), {"codebase_version": version})
    [came] = healthy(LerobotSource(), str(tmp_path / "x"))
    assert came.observations.keys() == episode.observations.keys()
    image = came.observations["observations/images/top"]
    assert isinstance(image, Packed)
    np.testing.assert_array_equal(plain(image), pixels)
    assert came.extras.keys() == episode.extras.keys() - {"ragged"}
    for name, rows in came.extras.items():
        np.testing.assert_array_equal(plain(rows), plain(episode.extras[name]))
    assert (came.task, came.labels, came.columns) == (None, episode.labels, episode.columns)


def test_extras_and_success_that_not_all_have_are_left_out(tmp_path: Path) -> None:
    episodes = [
        toy_episode(extras={"q": np.zeros(4), "v": np.zeros(4)}, success=True),
        toy_episode(extras={"v": np.ones(4)}, success=None),
        toy_episode(extras={"q": np.zeros((4, 2)), "v": np.ones(4)}, success=False),
    ]
    LerobotSink().write(episodes, str(tmp_path / "x"), {})
    came = healthy(LerobotSource(), str(tmp_path / "x"))
    assert [list(e.extras) for e in came] == [["v"]] * 3
    assert [e.success for e in came] == [True, None, False]
    schema = pq.read_schema(tmp_path / "x/data/chunk-000/file-000.parquet")
    features = json.loads((tmp_path / "x/meta/info.json").read_text())["features"]
    assert set(schema.names) == set(features)
    assert "next.success" not in features


def test_statistics_are_those_of_all_steps(tmp_path: Path) -> None:
    random = rng()
    pixels = random.integers(0, 255, (7, 16, 16, 3), np.uint8)
    episodes = [
        toy_episode(n, observations={"a": random.normal(size=(n + 1, 2)), "p": pixels[: n + 1]})
        for n in (5, 3, 6)
    ]
    LerobotSink().write(episodes, str(tmp_path / "x"), {})
    stats = json.loads((tmp_path / "x/meta/stats.json").read_text())
    rows = np.concatenate([e.observations["observations/a"][:-1] for e in episodes])
    for name in ("min", "max", "mean", "std"):
        np.testing.assert_allclose(stats["observation.a"][name], getattr(rows, name)(axis=0))
    assert stats["observation.a"]["count"] == [14]
    shown = np.concatenate([e.observations["observations/p"][:-1] for e in episodes]) / 255
    mean, std = shown.mean(axis=(0, 1, 2)), shown.std(axis=(0, 1, 2))
    np.testing.assert_allclose(np.ravel(stats["observation.p"]["mean"]), mean, rtol=1e-5)
    np.testing.assert_allclose(np.ravel(stats["observation.p"]["std"]), std, rtol=1e-5)
    assert np.shape(stats["observation.p"]["q50"]) == (3, 1, 1)
    table = pq.read_table(tmp_path / "x/meta/episodes/chunk-000/file-000.parquet").to_pylist()
    first = episodes[0].actions
    np.testing.assert_allclose(
        table[0]["stats/action/q90"], np.quantile(first.astype(np.float64), 0.9, axis=0)
    )


def smooth(steps: int = 6) -> np.ndarray:
    """Pictures that a video can hold."""
    ramp = np.add.outer(np.arange(64), np.arange(66)).astype(np.uint8)
    return np.stack([np.stack([ramp + 3 * t] * 3, axis=-1) for t in range(steps)])


def test_pictures_as_videos(tmp_path: Path) -> None:
    episode = toy_episode(6, observations=smooth(7), fps=12.5)
    LerobotSink().write([episode, episode], str(tmp_path / "x"), {"use_videos": True})
    for came in healthy(LerobotSource(), str(tmp_path / "x")):
        rows = came.observations["observations"]
        assert isinstance(rows, Video)
        assert decibels(smooth(6), plain(rows)).min() >= PSNR
    noise = rng().integers(0, 255, (5, 64, 64, 3), np.uint8)
    with pytest.raises(UsageError, match="write them as pictures"):
        LerobotSink().write(
            [toy_episode(observations=noise)], str(tmp_path / "y"), {"use_videos": True}
        )
    assert not (tmp_path / "y").exists()
    odd = toy_episode(observations=noise[:, :63])
    LerobotSink().write([odd], str(tmp_path / "z"), {"use_videos": True})
    (came,) = healthy(LerobotSource(), str(tmp_path / "z"))
    assert np.array_equal(plain(came.observations["observations"]), noise[:4, :63])


@pytest.mark.parametrize(
    ("episodes", "said"),
    [
        ([], "at least one episode"),
        ([toy_episode(0)], "at least one step"),
        ([toy_episode(), toy_episode(observations=np.zeros((5, 4)))], "spec of the first"),
        ([toy_episode(), toy_episode(rewards=None)], "spec of the first"),
        ([toy_episode(fps=10.0), toy_episode(fps=20.0)], "came 20"),
        ([toy_episode(observations=np.zeros((5, 0)))], "cannot hold it"),
        ([toy_episode(observations=Packed.ragged([np.zeros(n) for n in range(5)]))], "cannot hold"),
        ([toy_episode(observations={"a.b": np.zeros(5), "a": {"b": np.zeros(5)}})], "different"),
    ],
    ids=["none", "no steps", "shape", "no rewards", "fps", "empty axis", "ragged", "names"],
)
def test_what_does_not_fit_is_refused_whole(
    tmp_path: Path, episodes: list[Episode], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        LerobotSink().write(episodes, str(tmp_path / "x"), {})
    with pytest.raises(UsageError, match=r"came 'v1\.6'"):
        LerobotSink().write(episodes, str(tmp_path / "x"), {"codebase_version": "v1.6"})
    assert list(tmp_path.iterdir()) == []


# -- folders that lie ----------------------------------------------------------------------------

LENGTHS = (5, 1, 8)


@pytest.fixture(params=VERSIONS)
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Three episodes with a picture each step, some texts and a video."""
    encode(smooth(sum(LENGTHS)), tmp_path / "all.mp4", 10.0, "test")
    media = Media.of((tmp_path / "all.mp4").read_bytes())
    (tmp_path / "all.mp4").unlink()
    episodes, first = [], 0
    for steps in LENGTHS:
        times = (first + np.arange(steps)) / 10
        first += steps
        video = Video(
            FieldSpec("|u1", (64, 66, 3), "video"), (media,), np.zeros(steps, np.int32), times
        )
        observations = {"state": np.ones((steps, 3)), "image": smooth(steps), "film": video}
        episodes.append(toy_episode(steps, observations=observations, fps=10.0, task=f"t{steps}"))
    where = tmp_path / "set"
    LerobotSink().write(episodes, str(where), {"codebase_version": request.param})
    return where


def edit_info(folder: Path, **changes: Any) -> None:
    path = folder / "meta/info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_data(folder: Path, change: Callable[[dict[str, list[Any]]], None]) -> None:
    """Changes the last data file, in which the last episode lies."""
    path = max((folder / "data").rglob("*.parquet"))
    table = pq.read_table(path)
    columns = table.to_pydict()
    change(columns)
    pq.write_table(pa.Table.from_pydict(columns, schema=table.schema), path)


def codes(folder: Path) -> list[str | None]:
    return [f.fault.code if f.fault else None for f in read_all(LerobotSource(), str(folder))]


def put(name: str, value: Any, at: int = -2) -> Callable[[dict[str, list[Any]]], None]:
    def change(columns: dict[str, list[Any]]) -> None:
        columns[name][at] = value

    return change


def drop_row(columns: dict[str, list[Any]]) -> None:
    for values in columns.values():
        del values[-2]


def test_the_folder_is_read(folder: Path) -> None:
    _, found = check_source(LerobotSource(), str(folder))
    assert [f.episode and f.episode.length for f in found] == list(LENGTHS)
    assert [f.episode and f.episode.task for f in found] == ["t5", "t1", "t8"]
    check_missing(LerobotSource(), folder)
    (folder / "meta/info.json").unlink()
    with pytest.raises(NotFoundError, match=r"no meta/info\.json"):
        LerobotSource().discover(str(folder))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (put("timestamp", float("nan")), "bad_timestamp"),
        (put("timestamp", 0.0), "bad_timestamp"),
        (put("timestamp", 0.63), "bad_timestamp"),
        (put("frame_index", 9), "gap"),
        (put("index", 0), "gap"),
        (put("next.reward", None), "unreadable"),
        (put("task_index", 77), "unreadable"),
        (put("observation.image", {"bytes": None, "path": "/etc/passwd"}), "unreadable"),
        (put("observation.image", {"bytes": b"GIF89a", "path": None}), "unreadable"),
        (
            put(
                "observation.image",
                {"bytes": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\1\0\0\0\1\0\0\x08\2", "path": None},
                -8,
            ),
            "unreadable",
        ),
        (drop_row, "length_mismatch"),
    ],
    ids=[
        *("nan time", "time back", "off the grid", "frame", "index", "null", "task"),
        *("path", "gif", "bomb", "row lost"),
    ],
)
def test_a_bad_row_is_its_episodes_fault_alone(
    folder: Path, change: Callable[[dict[str, list[Any]]], None], code: str
) -> None:
    edit_data(folder, change)
    assert codes(folder) == [None, None, code]


def test_files_that_are_cut_off_or_missing(folder: Path) -> None:
    last = max((folder / "data").rglob("*.parquet"))
    alone = [None, None] if "episode_" in last.name else ["unreadable", "unreadable"]
    last.write_bytes(last.read_bytes()[:-40])
    assert codes(folder) == [*alone, "unreadable"]
    last.unlink()
    assert codes(folder) == [*alone, "unreadable"]


def test_videos_that_are_cut_off_missing_or_of_another_size(folder: Path, tmp_path: Path) -> None:
    last = max((folder / "videos").rglob("*.mp4"))
    alone = [None, None] if "episode_" in last.name else ["unreadable", "unreadable"]
    data = last.read_bytes()
    last.write_bytes(data[:-40])
    assert codes(folder) == [*alone, "unreadable"]
    encode(smooth(14)[:, :32], last, 10.0, "test")
    assert codes(folder) == [*alone, "unreadable"]
    encode(smooth(4), last, 10.0, "test")
    assert codes(folder)[-1] == "length_mismatch"
    last.unlink()
    assert codes(folder) == [*alone, "unreadable"]
    (tmp_path / "elsewhere.mp4").write_bytes(data)
    last.symlink_to(tmp_path / "elsewhere.mp4")
    with pytest.raises(SourceError, match="is a link"):
        codes(folder)


def test_a_video_that_changes_after_it_was_read(folder: Path) -> None:
    episode = healthy(LerobotSource(), str(folder))[-1]
    last = max((folder / "videos").rglob("*.mp4"))
    last.write_bytes(last.read_bytes() + b"\0\0\0\x08free")
    with pytest.raises(SourceError, match="it changed"):
        plain(episode.observations["observations/film"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"codebase_version": "v9.9"}, "came 'v9.9'"),
        ({"codebase_version": None}, "codebase_version"),
        ({"data_path": "../x.parquet"}, "inside the dataset's folder"),
        ({"data_path": "/etc/passwd"}, "inside the dataset's folder"),
        ({"data_path": "a\\..\\x"}, "inside the dataset's folder"),
        ({"video_path": "videos/../../x.mp4"}, "inside the dataset's folder"),
        ({"data_path": "{chunk_index.__class__}"}, "path template"),
        ({"data_path": "{secret}"}, "came 'secret'"),
        ({"data_path": "{episode_index:0999999999d}"}, "path template"),
        ({"fps": 0}, "fps as a positive number"),
        ({"fps": float("nan")}, "fps as a positive number"),
        ({"total_episodes": 4}, "total_episodes 4"),
        ({"total_frames": 1}, "total_frames 1"),
        ({"features": {}}, "Expected features"),
        ({"features": {"action": {"dtype": "float32", "shape": "x"}}}, "shape of the feature"),
    ],
)
def test_an_info_that_lies_is_refused(folder: Path, changes: dict[str, Any], said: str) -> None:
    edit_info(folder, **changes)
    with pytest.raises(SourceError, match=said):
        read_all(LerobotSource(), str(folder))


def test_tables_that_lie_are_refused(folder: Path) -> None:
    meta = folder / "meta"
    if (meta / "episodes.jsonl").exists():
        text = (meta / "episodes.jsonl").read_text()
        bad = ["{", text + text, text.replace('"length": 5', '"length": -5'), "[]\n"]
        for one in bad:
            (meta / "episodes.jsonl").write_text(one)
            with pytest.raises(SourceError, match="Expected"):
                LerobotSource().discover(str(folder))
        return
    path = meta / "episodes/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    video = "videos/observation.film/from_timestamp"
    for name, values in (
        ("episode_index", [0, 1, 1]),
        ("length", [5, 1, -8]),
        ("length", [5, 1, None]),
        ("data/file_index", ["0", "0", "0"]),
        (video, [0.0, 0.5, float("nan")]),
    ):
        at = table.schema.names.index(name)
        pq.write_table(table.set_column(at, name, pa.array(values)), path)
        with pytest.raises(SourceError, match="Expected"):
            read_all(LerobotSource(), str(folder))
    shutil.rmtree(meta / "episodes")
    with pytest.raises(SourceError, match="table of episodes"):
        LerobotSource().discover(str(folder))


def test_a_parquet_file_that_claims_gigabytes(folder: Path) -> None:
    path = max((folder / "data").rglob("*.parquet"))
    rows = 20_000_000
    zeros = pa.chunked_array(
        [pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int8)), [0])]
    )
    names = pq.read_schema(path).names
    columns = {name: zeros.cast(pa.int64()) for name in names[:1]}
    pq.write_table(pa.table(columns), path)
    faults = [f.fault for f in read_all(LerobotSource(), str(folder)) if f.fault]
    assert "decompression bomb" in faults[-1].message


# -- what other writers do -------------------------------------------------------------------------


def test_without_truncated_a_done_is_terminated(folder: Path) -> None:
    for path in (folder / "data").rglob("*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.drop_columns(["next.truncated", "next.terminated"]), path)
    features = json.loads((folder / "meta/info.json").read_text())["features"]
    for name in ("next.truncated", "next.terminated"):
        del features[name]
    edit_info(folder, features=features)
    assert any("taken as terminated" in g for g in LerobotSource().discover(str(folder)).guesses)
    assert all(e.is_terminated for e in healthy(LerobotSource(), str(folder)))


def test_a_part_beside_its_whole_is_an_extra_and_goes_back(tmp_path: Path) -> None:
    episode = toy_episode(actions={"gripper": np.arange(4.0), "arm": np.ones((4, 2))})
    LerobotSink().write([episode], str(tmp_path / "x"), {})
    info = tmp_path / "x/meta/info.json"
    info.write_text(info.read_text().replace('"action.arm"', '"action"'))
    data = tmp_path / "x/data/chunk-000/file-000.parquet"
    table = pq.read_table(data)
    pq.write_table(
        table.rename_columns(["action" if n == "action.arm" else n for n in table.schema.names]),
        data,
    )
    [came] = healthy(LerobotSource(), str(tmp_path / "x"))
    assert isinstance(came.actions, np.ndarray)
    assert list(came.extras) == ["action.gripper"]
    LerobotSink().write([came], str(tmp_path / "y"), {})
    features = json.loads((tmp_path / "y/meta/info.json").read_text())["features"]
    assert {"action", "action.gripper"} <= set(features)


def test_many_episodes_in_one_row_group_are_read_by_units(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("connectors.units.UNIT_STEPS", 9)
    monkeypatch.setattr("connectors.units.NARROW_TIMES", 1)
    episodes = [toy_episode(n, observations=np.full((n + 1, 2), n)) for n in (4, 4, 5, 20, 1, 1)]
    LerobotSink().write(episodes, str(tmp_path / "x"), {})
    path = tmp_path / "x/data/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(path), path)
    listing, found = check_source(LerobotSource(), str(tmp_path / "x"))
    assert [unit.steps for unit in listing.units] == [8, 5, 20, 2]
    for one, f in zip(expected_of(episodes), found, strict=True):
        assert f.episode is not None
        assert_same(one, f.episode)


@pytest.mark.parametrize("rows_per_group", [2, 3, 100])
@pytest.mark.parametrize("run_bytes", [1, 400])
def test_large_files_are_read_in_runs_of_episodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_per_group: int, run_bytes: int
) -> None:
    episodes = [toy_episode(n, observations=np.full((n + 1, 2), n)) for n in (4, 4, 5, 20, 1, 1)]
    LerobotSink().write(episodes, str(tmp_path / "x"), {})
    path = tmp_path / "x/data/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(path), path, row_group_size=rows_per_group)
    read: list[int] = []

    def count(*arguments: Any, **options: Any) -> pa.Table:
        table = read_groups(*arguments, **options)
        read.append(table.num_rows if table.num_columns > 1 else 0)
        return table

    monkeypatch.setattr("connectors.lerobot.RUN_BYTES", run_bytes)
    monkeypatch.setattr("connectors.lerobot.read_groups", count)
    _, found = check_source(LerobotSource(), str(tmp_path / "x"))
    for one, f in zip(expected_of(episodes), found, strict=True):
        assert f.episode is not None
        assert_same(one, f.episode)
    if rows_per_group == 100:
        assert set(read) == {0, 35}
    else:
        assert 0 < max(read) < 35
