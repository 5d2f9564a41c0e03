from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pytest
from gymnasium import spaces
from minari.dataset.minari_dataset import MinariDataset
from PIL import Image

from connectors.minari import MinariSource
from connectors.minari_layout import locate
from schemas.errors import MissingExtraError, NotFoundError, SourceError
from tests.connectors.contracts import check_missing, check_source, healthy, read_all
from tests.connectors.makers import action_box, buffer, minari_dataset, rng

SOURCE = MinariSource()
STORAGES = ("hdf5", "arrow", "parquet")
BOX = spaces.Box(-np.inf, np.inf, (3,), np.float64)


def plain(steps: int, **changes: Any) -> Any:
    return buffer(rng().normal(size=(steps + 1, 3)), steps, **changes)


@pytest.mark.parametrize(
    ("name", "episodes", "steps", "task"),
    [
        ("hopper/medium-v0", 33, 15_389, "Hopper-v5"),
        ("pendulum/expert-v0", 20, 4_000, "Pendulum-v1"),
        ("pendulum/random-v0", 20, 4_000, "Pendulum-v1"),
        ("pointmaze/umaze-v0", 121, 9_000, "PointMaze_UMaze-v3"),
        ("pointmaze/umaze-episodic-v0", 87, 6_000, "PointMaze_UMaze-v3"),
    ],
)
def test_real_datasets_are_read_as_minari_reads_them(
    shared_data: Path, name: str, episodes: int, steps: int, task: str
) -> None:
    where = str(shared_data / "minari" / name)
    listing, found = check_source(SOURCE, where)
    assert (listing.episodes, listing.steps, listing.identity) == (episodes, steps, name)
    library = MinariDataset(f"{where}/data")
    seeds = [meta.get("seed") for meta in library.storage.get_episode_metadata(range(episodes))]
    for f, theirs, seed in zip(found, library.iterate_episodes(), seeds, strict=True):
        ours = f.episode
        assert ours is not None
        assert f.native_id == f"episode_{theirs.id}"
        assert (ours.task, ours.seed, ours.final_observation) == (task, seed, "present")
        for array, expected in (
            (ours.actions, theirs.actions),
            (ours.rewards, theirs.rewards),
            (ours.terminated, theirs.terminations),
            (ours.truncated, theirs.truncations),
        ):
            np.testing.assert_array_equal(array, expected)
            assert array.dtype == expected.dtype
        flat = theirs.observations
        flat = flat if isinstance(flat, dict) else {"": flat}
        for key, array in flat.items():
            mine = ours.observations[f"observations/{key}".rstrip("/")]
            assert mine.dtype == array.dtype
            np.testing.assert_array_equal(mine, array)
        for key, array in (theirs.infos or {}).items():
            np.testing.assert_array_equal(ours.extras[key], array)


def test_hopper_medium_matches_its_truth(shared_data: Path) -> None:
    truth = json.loads((shared_data / "hopper-medium" / "TRUTH.json").read_text())
    episodes = healthy(SOURCE, str(shared_data / "minari/hopper/medium-v0"))
    for episode, true in zip(episodes, truth, strict=True):
        observations = episode.observations["observations"]
        assert observations.dtype == np.float64
        assert len(observations) == episode.length + 1
        first = np.ascontiguousarray(observations[:-1], "<f4")
        assert hashlib.sha256(first.tobytes()).hexdigest()[:24] == true["obs"]


@pytest.mark.parametrize("storage", STORAGES)
def test_nested_spaces_keep_their_names(tmp_path: Path, storage: str) -> None:
    random, steps = rng(), 4
    space = spaces.Dict(
        {
            "robot": spaces.Dict({"qpos": BOX, "7": spaces.Box(0, 1, (2, 2), np.float32)}),
            "parts": spaces.Tuple([spaces.Discrete(5), spaces.MultiBinary(3)]),
            "mode": spaces.MultiDiscrete([3, 4]),
        }
    )
    observations = {
        "robot": {
            "qpos": random.normal(size=(steps + 1, 3)),
            "7": random.random((steps + 1, 2, 2)).astype(np.float32),
        },
        "parts": (random.integers(0, 5, steps + 1), random.integers(0, 2, (steps + 1, 3), np.int8)),
        "mode": random.integers(0, 3, (steps + 1, 2)),
    }
    infos = {
        "energy": random.normal(size=steps + 1),
        "contact": random.normal(size=(steps + 1, 2, 3)),
    }
    where = minari_dataset(
        tmp_path / "set",
        [buffer(observations, steps, seed=11, options={"difficulty": 3}, infos=infos)],
        (space, action_box()),
        storage,
    )
    _, [found] = check_source(SOURCE, where)
    episode = found.episode
    assert episode is not None
    expected = {
        "observations/robot/qpos": observations["robot"]["qpos"],
        "observations/robot/~27": observations["robot"]["7"],
        "observations/parts/0": observations["parts"][0],
        "observations/parts/1": observations["parts"][1],
        "observations/mode": observations["mode"],
    }
    assert episode.observations.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(episode.observations[name], array, name)
    np.testing.assert_array_equal(episode.extras["contact"], infos["contact"])
    np.testing.assert_array_equal(episode.extras["energy"], infos["energy"])
    assert episode.seed == 11
    assert episode.columns == {"options/difficulty": 3}


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("is_jpeg", [True, False])
def test_images(tmp_path: Path, storage: str, is_jpeg: bool) -> None:
    ramp = np.linspace(0, 255, 40 * 32 * 3).reshape(40, 32, 3)
    frames = np.stack([(ramp * scale).astype(np.uint8) for scale in (1, 0.5, 0.25, 0)])
    space = spaces.Dict({"camera": spaces.Box(0, 255, (40, 32, 3), np.uint8), "state": BOX})
    observations = {"camera": frames, "state": np.zeros((4, 3))}
    where = minari_dataset(
        tmp_path / "set", [buffer(observations, 3)], (space, action_box()), storage, is_jpeg=is_jpeg
    )
    listing, [found] = check_source(SOURCE, where)
    assert found.episode is not None
    camera = found.episode.observations["observations/camera"]
    assert (camera.dtype, camera.shape) == (np.uint8, (4, 40, 32, 3))
    [theirs] = MinariDataset(f"{where}/data").iterate_episodes()
    np.testing.assert_array_equal(camera, theirs.observations["camera"])
    assert any("JPEG" in guess for guess in listing.guesses) == is_jpeg
    assert np.array_equal(camera, frames) == (not is_jpeg)


def test_jpeg_frames_of_one_length_are_read_too(tmp_path: Path) -> None:
    frames = np.zeros((4, 32, 32), np.uint8)  # equal frames have equal encodings
    space = spaces.Box(0, 255, (32, 32), np.uint8)
    where = minari_dataset(tmp_path / "set", [buffer(frames, 3)], (space, action_box()))
    with h5py.File(f"{where}/data/main_data.hdf5") as file:
        assert file["episode_0/observations"].ndim == 2
    [episode] = healthy(SOURCE, where)
    np.testing.assert_array_equal(episode.observations["observations"], frames)


def jpeg(pixels: np.ndarray) -> bytes:
    held = io.BytesIO()
    Image.fromarray(pixels).save(held, "JPEG")
    return held.getvalue()


@pytest.mark.parametrize(
    ("encoded", "said"),
    [
        (jpeg(np.zeros((64, 48), np.uint8)), "its size is 48 x 64"),
        (jpeg(np.zeros((32, 32, 3), np.uint8)), r"its shape is \(32, 32, 3\)"),
        (b"no picture", "cannot identify"),
    ],
    ids=["size", "colour", "noise"],
)
def test_a_frame_that_is_not_what_the_space_says_is_a_fault(
    tmp_path: Path, encoded: bytes, said: str
) -> None:
    frames = rng().integers(0, 255, (4, 32, 32), np.uint8)
    space = spaces.Box(0, 255, (32, 32), np.uint8)
    where = minari_dataset(
        tmp_path / "set", [buffer(frames, 3), buffer(frames, 3)], (space, action_box())
    )
    with h5py.File(f"{where}/data/main_data.hdf5", "a") as file:
        file["episode_0/observations"][2] = np.frombuffer(encoded, np.uint8)
    bad, good = read_all(SOURCE, where)
    assert bad.fault is not None
    assert (bad.fault.code, good.fault) == ("unreadable", None)
    assert re.search(f"frame 2 .*{said}", bad.fault.message)


def test_plain_images_of_old_datasets_are_read_as_they_are(tmp_path: Path) -> None:
    frames = rng().integers(0, 255, (4, 32, 32), np.uint8)
    space = spaces.Box(0, 255, (32, 32), np.uint8)
    where = minari_dataset(
        tmp_path / "set", [buffer(frames, 3)], (space, action_box()), is_jpeg=False
    )
    change_metadata(where, jpeg_encoding=None)
    [episode] = healthy(SOURCE, where)
    np.testing.assert_array_equal(episode.observations["observations"], frames)


def test_images_without_pillow_name_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = np.zeros((4, 32, 32), np.uint8)
    space = spaces.Box(0, 255, (32, 32), np.uint8)
    where = minari_dataset(tmp_path / "set", [buffer(frames, 3)], (space, action_box()))
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtraError, match=r"penstock\[images\]"):
        read_all(SOURCE, where)


@pytest.mark.parametrize("storage", STORAGES)
def test_one_observation_too_few_spares_the_neighbours(tmp_path: Path, storage: str) -> None:
    where = minari_dataset(
        tmp_path / "set", [plain(4), plain(3), plain(5)], (BOX, action_box()), storage
    )
    if storage == "hdf5":
        with h5py.File(f"{where}/data/main_data.hdf5", "a") as file:
            file["episode_1/observations"].resize(3, axis=0)
    else:
        _cut_one_row(Path(where) / "data" / "1", storage)
    _, found = check_source(SOURCE, where)
    assert [f.fault and f.fault.code for f in found] == [None, "length_mismatch", None]
    assert [f.native_id for f in found] == ["episode_0", "episode_1", "episode_2"]


def _cut_one_row(folder: Path, storage: str) -> None:
    import pyarrow.feather as feather
    import pyarrow.parquet as pq

    [path] = folder.glob("part-0.*")
    if storage == "parquet":
        pq.write_table(pq.read_table(path)[:-1], path)
    else:
        table = feather.read_table(path, memory_map=False)
        feather.write_feather(table[:-1], path, compression="uncompressed")


@pytest.mark.parametrize("storage", STORAGES)
def test_damage_of_one_episode_spares_the_neighbours(tmp_path: Path, storage: str) -> None:
    where = minari_dataset(tmp_path / "set", [plain(4), plain(3)], (BOX, action_box()), storage)
    if storage == "hdf5":
        with h5py.File(f"{where}/data/main_data.hdf5", "a") as file:
            del file["episode_0/rewards"]
    else:
        [path] = (Path(where) / "data" / "0").glob("part-0.*")
        path.write_bytes(path.read_bytes()[:-50])
    _, found = check_source(SOURCE, where)
    assert [f.fault and f.fault.code for f in found] == ["unreadable", None]


def test_compressed_arrow_batches_are_refused(tmp_path: Path) -> None:
    where = minari_dataset(tmp_path / "set", [plain(4)], (BOX, action_box()), "arrow")
    path = Path(where) / "data" / "0" / "part-0.arrow"
    table = pa.ipc.open_file(pa.BufferReader(path.read_bytes())).read_all()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(str(path), table.schema, options=options) as file:
        file.write_table(table)
    [found] = read_all(SOURCE, where)
    assert found.fault is not None
    assert "compressed" in found.fault.message


@pytest.mark.parametrize("storage", ["arrow", "parquet"])
def test_parts_of_a_long_episode_come_in_order(tmp_path: Path, storage: str) -> None:
    import pyarrow.parquet as pq

    where = minari_dataset(tmp_path / "set", [plain(11)], (BOX, action_box()), storage)
    [whole] = healthy(SOURCE, where)
    folder = Path(where) / "data" / "0"
    [path] = folder.glob("part-0.*")
    is_parquet = storage == "parquet"
    table = pq.read_table(path) if is_parquet else pa.ipc.open_file(path.read_bytes()).read_all()
    path.unlink()
    for part in range(12):  # part-10 sorts before part-2 as text
        target = folder / f"part-{part}.{storage}"
        if is_parquet:
            pq.write_table(table[part : part + 1], target)
        else:
            with pa.ipc.new_file(str(target), table.schema) as file:
                file.write_table(table[part : part + 1])
    [parted] = healthy(SOURCE, where)
    np.testing.assert_array_equal(
        parted.observations["observations"], whole.observations["observations"]
    )


@pytest.mark.parametrize("storage", STORAGES)
def test_text_spaces_are_refused_by_name(tmp_path: Path, storage: str) -> None:
    space = spaces.Dict({"mission": spaces.Text(20), "state": BOX})
    observations = {"mission": ["go"] * 4, "state": np.zeros((4, 3))}
    where = minari_dataset(
        tmp_path / "s", [buffer(observations, 3)], (space, action_box()), storage
    )
    with pytest.raises(SourceError, match=r"'Text'; it is not supported"):
        SOURCE.discover(where)


def test_infos_that_are_no_arrays_of_steps_are_left_out(tmp_path: Path) -> None:
    where = minari_dataset(tmp_path / "set", [plain(4)], (BOX, action_box()))
    with h5py.File(f"{where}/data/main_data.hdf5", "a") as file:
        infos = file["episode_0"].create_group("infos")
        infos["good"] = np.arange(4)
        infos["nested/also"] = np.arange(5.0)
        infos["text"] = ["a"] * 5
        infos["short"] = np.arange(2)
    [episode] = healthy(SOURCE, where)
    assert sorted(episode.extras) == ["good", "nested/also"]


def test_hdf5_without_spaces_is_read_as_it_lies(tmp_path: Path) -> None:
    space = spaces.Dict({"parts": spaces.Tuple([BOX, BOX]), "state": BOX})
    observations = {"parts": (np.ones((4, 3)), np.zeros((4, 3))), "state": np.ones((4, 3))}
    where = minari_dataset(tmp_path / "set", [buffer(observations, 3)], (space, action_box()))
    [before] = healthy(SOURCE, where)
    change_metadata(where, observation_space=None, action_space=None)
    [after] = healthy(SOURCE, where)
    assert after.spec == before.spec


def change_metadata(where: str, **changes: Any) -> None:
    path = Path(where) / "data" / "metadata.json"
    metadata = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in metadata.items() if v is not None}))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dataset_id": None}, "Expected dataset_id as str"),
        ({"dataset_id": ""}, "came an empty one"),
        ({"dataset_id": 7}, "came 7"),
        ({"total_episodes": -1}, "at least 0"),
        ({"total_episodes": True}, "Expected total_episodes as int"),
        ({"total_steps": "many"}, "Expected total_steps as int"),
        ({"data_format": "pickle"}, "came 'pickle'"),
        ({"data_format": "arrow"}, "metadata.json"),
        ({"total_episodes": 3}, "without episode_2"),
        ({"total_episodes": 1}, "and episode_1"),
        ({"observation_space": "{"}, "Expected a space as JSON"),
        ({"observation_space": '{"type": "Box", "dtype": "O", "shape": [1]}'}, "dtype object"),
        ({"observation_space": {"type": "Box"}}, "came dict"),
        ({"action_space": '{"type": "Graph"}'}, "'Graph'"),
    ],
    ids=str,
)
def test_metadata_that_cannot_be_trusted(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    where = minari_dataset(tmp_path / "set", [plain(4), plain(3)], (BOX, action_box()))
    change_metadata(where, **changes)
    with pytest.raises(SourceError, match=said):
        SOURCE.discover(where)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 1', "nul"])
def test_metadata_that_is_no_object(tmp_path: Path, text: str) -> None:
    where = minari_dataset(tmp_path / "set", [plain(4)], (BOX, action_box()))
    (Path(where) / "data" / "metadata.json").write_text(text)
    with pytest.raises(SourceError, match="Expected a JSON object"):
        SOURCE.discover(where)


def test_what_is_no_dataset(tmp_path: Path) -> None:
    check_missing(SOURCE, tmp_path)
    with pytest.raises(SourceError, match=r"has no data/metadata\.json"):
        SOURCE.discover(str(tmp_path))
    where = minari_dataset(tmp_path / "set", [plain(4)], (BOX, action_box()))
    main = Path(where) / "data" / "main_data.hdf5"
    main.write_bytes(main.read_bytes()[:2000])
    with pytest.raises(SourceError, match="truncated file"):
        SOURCE.discover(where)
    main.unlink()
    with pytest.raises(NotFoundError, match="nothing at"):
        SOURCE.discover(where)


def test_a_link_to_another_file_is_refused_whole(tmp_path: Path) -> None:
    where = minari_dataset(tmp_path / "set", [plain(4), plain(3)], (BOX, action_box()))
    copy = shutil.copytree(where, tmp_path / "other")
    with h5py.File(f"{where}/data/main_data.hdf5", "a") as file:
        del file["episode_1/observations"]
        target = str(copy / "data" / "main_data.hdf5")
        file["episode_1/observations"] = h5py.ExternalLink(target, "/episode_1/observations")
    with pytest.raises(SourceError, match="links are never followed"):
        read_all(SOURCE, where)


def test_ids_from_data_never_become_paths(tmp_path: Path) -> None:
    where = minari_dataset(tmp_path / "set", [plain(4)], (BOX, action_box()))
    change_metadata(where, dataset_id="../../../etc/passwd", env_spec='{"id": ["list"]}')
    listing, [found] = check_source(SOURCE, where)
    assert listing.identity == "../../../etc/passwd"
    assert found.episode is not None
    assert found.episode.task is None


def test_nan_passes_through(tmp_path: Path) -> None:
    where = minari_dataset(
        tmp_path / "set", [plain(4, rewards=[0.0, np.nan, 1.0, 2.0])], (BOX, action_box())
    )
    [episode] = healthy(SOURCE, where)
    assert np.isnan(episode.rewards).tolist() == [False, True, False, False]


def test_ids_lie_under_minaris_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    where = minari_dataset(tmp_path / "toy" / "set-v0", [plain(4)], (BOX, action_box()))
    assert locate("toy/set-v0") == where
    assert locate(where) == where
    assert SOURCE.discover("toy/set-v0").identity == "toy/set-v0"
    monkeypatch.delenv("MINARI_DATASETS_PATH")
    assert locate("toy/set-v0") == str(Path.home() / ".minari" / "datasets" / "toy" / "set-v0")
    for inside in ("", "data", "data/main_data.hdf5"):
        assert SOURCE.discover(str(Path(where) / inside)).identity == "toy/set-v0"
