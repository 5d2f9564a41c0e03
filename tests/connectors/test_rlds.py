from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors import registry
from connectors.facts import FACTS
from connectors.rlds import RldsSource
from connectors.rlds_example import (
    encode_feature,
    join_example,
    split_example,
    values_of,
)
from connectors.rlds_features import Leaf, features_document, parse_features
from connectors.rlds_records import RecordWriter, frame, index_records, masked_crc
from connectors.rlds_sink import RldsSink
from connectors.rlds_values import decode_rows
from schemas.episode import Episode
from schemas.errors import EpisodeError, SourceError, UsageError
from schemas.identity import digest
from schemas.packed import Packed, plain
from schemas.spec import FieldSpec
from tests.connectors.conformance import encoded, smooth_pictures
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
from tests.connectors.test_d4rl import first_24
from tests.encoded import film

SOURCE = RldsSource()
FORMATS = ("array_record", "tfrecord")


@pytest.fixture(params=FORMATS)
def file_format(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# -- real data -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "truth", "final"),
    [
        ("hopper_medium", "hopper-medium", "present"),
        ("metaworld_labelled", "metaworld", "missing"),
        ("metaworld_images", "metaworld-images", "missing"),
    ],
)
def test_real_datasets_match_their_truth(
    shared_data: Path, name: str, truth: str, final: str
) -> None:
    listing, found = check_source(SOURCE, str(shared_data / "rlds" / name))
    expected = json.loads((shared_data / truth / "TRUTH.json").read_text())
    assert listing.identity == f"{name}:1.0.0"
    assert listing.metadata["last_step_action_valid"] is (final == "missing")
    assert any("last_step_action_valid is" in guess for guess in listing.guesses)
    assert listing.steps == sum(true["length"] for true in expected)
    for f, true in zip(found, expected, strict=True):
        episode = f.episode
        assert episode is not None
        state = next(a for n, a in episode.observations.items() if n.endswith(("s", "state")))
        assert first_24(plain(state)[: episode.length]) == true["obs"]
        assert first_24(episode.flat_actions["actions"]) == true["act"]
        assert first_24(episode.rewards) == true["rew"]
        assert (episode.is_terminated, episode.is_truncated) == (
            true["terminated"],
            true["truncated"],
        )
        assert episode.final_observation == final
        assert episode.labels == {"split": "train"}
        assert episode.success == true.get("success")
        assert episode.columns["source_episode_id"] == f.position
        assert "discount" not in episode.extras


def test_pictures_stay_encoded_and_decode_to_the_truth(shared_data: Path) -> None:
    ours = healthy(SOURCE, str(shared_data / "rlds/metaworld_images"))
    truth = registry.source("robomimic")
    theirs = healthy(truth, str(shared_data / "metaworld-images/robomimic_image.hdf5"))
    for one, two in zip(ours, theirs, strict=True):
        frames = one.observations["observations/image"]
        assert isinstance(frames, Packed)
        assert frames[0].startswith(b"\x89PNG")
        [pixels] = [a for a in two.observations.values() if len(a.shape) == 4]
        np.testing.assert_array_equal(plain(frames), plain(pixels)[: one.length])


def test_bridge_both_splits(shared_data: Path) -> None:
    listing, found = check_source(SOURCE, str(shared_data / "public/bridge_v2_sample"))
    assert (listing.episodes, listing.steps) == (50, 500)
    assert listing.metadata["splits"] == {"train": 25, "val": 25}
    episodes = [f.episode for f in found if f.episode is not None]
    assert [e.labels["split"] for e in episodes] == ["train"] * 25 + ["val"] * 25
    assert len({f.native_id for f in found}) == 50
    assert found[25].native_id == "val/0"
    first = episodes[0]
    assert first.task == "put cup from counter or drying rack into sink"
    assert {n: a.shape for n, a in first.observations.items()} == {
        "observations/state": (10, 7),
        **{f"observations/image_{k}": (10, 64, 64, 3) for k in range(4)},
    }
    assert first.extras["language_embedding"].shape == (10, 512)
    assert (first.is_terminated, first.is_truncated) == (False, True), "is_last is never set there"
    train, val = ({digest(e) for e in part} for part in (episodes[:25], episodes[25:]))
    assert train == val, "both splits hold the same episodes, in another order"
    assert len(train) == 25


def test_real_datasets_come_back_whole(shared_data: Path, tmp_path: Path, file_format: str) -> None:
    for name in ("rlds/hopper_medium", "rlds/metaworld_images", "public/bridge_v2_sample"):
        episodes = healthy(SOURCE, str(shared_data / name))
        where = tmp_path / Path(name).name
        RldsSink().write(iter(episodes), str(where), {"file_format": file_format})
        for one, two in zip(episodes, healthy(SOURCE, str(where)), strict=True):
            assert_same(one, two, (*FACTS, "columns", "labels", "final_observation"))


# -- round trips ---------------------------------------------------------------------------------


def expected_of_rlds(episodes: list[Episode]) -> list[Episode]:
    """Applies the losses that the sink declares."""
    is_open = all(e.final_observation == "missing" for e in episodes)
    return [_expected(episode, is_open=is_open) for episode in episodes]


def _expected(episode: Episode, *, is_open: bool) -> Episode:
    steps = episode.length
    is_short = episode.final_observation == "missing" and not is_open
    if is_short and not episode.is_terminated:
        episode = episode.replace(
            actions={n: a[:-1] for n, a in episode.flat_actions.items()},
            rewards=episode.rewards[:-1],
            terminated=episode.terminated[:-1],
            truncated=episode.truncated[:-1],
            extras={n: a[:-1] for n, a in episode.extras.items()},
            final_observation="present",
        )
        steps -= 1
    elif is_short:
        observations = {n: np.concatenate([a, a[-1:]]) for n, a in episode.observations.items()}
        episode = episode.replace(observations=observations, final_observation="copied")
    if is_open:
        episode = episode.replace(extras={n: a[:steps] for n, a in episode.extras.items()})
    return episode.replace(truncated=(np.arange(steps) == steps - 1) & (not episode.is_terminated))


@settings(max_examples=50)
@given(episodes=datasets(is_nested=True), file_format=st.sampled_from(FORMATS))
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory, episodes: list[Episode], file_format: str
) -> None:
    place = tmp_path_factory.mktemp("rlds")
    came = check_sink(RldsSink(), SOURCE, episodes, place, {"file_format": file_format})
    for one, two in zip(expected_of_rlds(episodes), came, strict=True):
        assert_same(one, two, (*FACTS, "columns"))
        copied = one.final_observation == "copied" and episodes_have(episodes, "missing")
        assert copied or one.final_observation == two.final_observation


def episodes_have(episodes: list[Episode], final: str) -> bool:
    return any(e.final_observation == final for e in episodes)


def rich_episode(seed: int, split: str) -> Episode:
    """An episode with all kinds of rows."""
    rng = np.random.default_rng(seed)
    frames = smooth_pictures(seed, 5, 32)
    grey = Packed.of(FieldSpec("|u1", (32, 32), "frames"), _grey(frames))
    return Episode(
        episode_id="x",
        observations={
            "state": rng.normal(size=(5, 3)).astype(np.float32),
            "precise": rng.normal(size=(5, 2)),
            "camera": encoded(frames, "PNG"),
            "depth": grey,
            "points": Packed.ragged([rng.normal(size=(k, 2)).astype("f4") for k in range(5)]),
            "said": Packed.texts(["ä", "", "b", "c", "d"]),
        },
        actions={"arm": rng.normal(size=(4, 2)).astype(np.float32), "grip": np.arange(4) - 2},
        rewards=rng.normal(size=4),
        terminated=seed % 2 == 0,
        truncated=seed % 2 == 1,
        task="lift",
        columns={"operator": "ann", "sigma": 0.1},
        labels={"split": split},
        extras={"wide": rng.normal(size=(5, 70)).astype(np.float32), "big": np.arange(4) + 2**62},
    )


def _grey(frames: np.ndarray) -> list[bytes]:
    import io

    from PIL import Image

    rows = []
    for pixels in frames:
        sink = io.BytesIO()
        Image.fromarray(pixels[..., 0]).save(sink, "PNG")
        rows.append(sink.getvalue())
    return rows


RICH = [rich_episode(0, "train"), rich_episode(1, "train"), rich_episode(2, "val")]


def test_every_kind_of_row_and_both_splits_come_back(tmp_path: Path, file_format: str) -> None:
    came = check_sink(RldsSink(), SOURCE, RICH, tmp_path, {"file_format": file_format})
    for one, two in zip(RICH, came, strict=True):
        assert one.labels == two.labels
        assert (one.task, dict(one.columns)) == (two.task, dict(two.columns))
        assert one.spec == two.spec
        for name, rows in one.arrays.items():
            other = two.arrays[name]
            if isinstance(rows, Packed):
                assert isinstance(other, Packed)
                assert list(rows) == list(other), name
            else:
                np.testing.assert_array_equal(rows, plain(other), name)
                assert rows.dtype == other.dtype


def truth_arrays() -> dict[str, np.ndarray]:
    """What TFDS must give of `RICH`."""
    wanted: dict[str, np.ndarray] = {}
    for at, episode in enumerate(RICH):
        place = f"{episode.labels['split']}/{at if at < 2 else 0}"
        steps = {
            "observation/state": plain(episode.observations["observations/state"]),
            "observation/precise": plain(episode.observations["observations/precise"]),
            "observation/camera": plain(episode.observations["observations/camera"]),
            "observation/depth": plain(episode.observations["observations/depth"])[..., None],
            "observation/said": plain(episode.observations["observations/said"]),
            "action/arm": _padded(episode.flat_actions["actions/arm"]),
            "reward": _padded(episode.rewards),
            "is_first": np.arange(5) == 0,
            "is_last": np.arange(5) == 4,
            "is_terminal": (np.arange(5) == 4) & episode.is_terminated,
            "discount": np.float32([1, 1, 1, *([0, 0] if episode.is_terminated else [1, 1])]),
            "language_instruction": np.array(["lift"] * 5),
            "wide": plain(episode.extras["wide"]),
        }
        wanted.update({f"{place}/steps/{path}": array for path, array in steps.items()})
        wanted[f"{place}/episode_metadata/operator"] = np.array("ann")
        wanted[f"{place}/episode_metadata/sigma"] = np.array(0.1)
    return wanted


def _padded(rows: np.ndarray) -> np.ndarray:
    return np.concatenate([rows, np.zeros_like(rows[:1])])


@pytest.mark.slow
def test_tfds_itself_reads_what_we_write(tmp_path: Path) -> None:
    """Without TensorFlow, which TFDS needs for TFRecord only; in a process of its own."""
    RldsSink().write(iter(RICH), str(tmp_path / "rich"), {})
    np.savez(tmp_path / "truth.npz", **truth_arrays())
    script = Path(__file__).parents[1] / "conformance" / "check_rlds.py"
    command = [sys.executable, str(script), str(tmp_path / "rich/1.0.0"), tmp_path / "truth.npz"]
    quiet = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=quiet)
    assert done.returncode == 0, done.stdout + done.stderr
    wrong = {**truth_arrays(), "val/0/steps/reward": np.zeros(5)}
    np.savez(tmp_path / "truth.npz", **wrong)
    assert subprocess.run(command, capture_output=True, check=False, env=quiet).returncode == 1


def test_videos_and_raw_pictures_are_written_as_png(tmp_path: Path) -> None:
    raw = smooth_pictures(1, 5)
    observations = {"raw": raw, "film": film(5, 0)}
    RldsSink().write([toy_episode(observations=observations)], str(tmp_path / "x"), {})
    [came] = healthy(SOURCE, str(tmp_path / "x"))
    for name, rows in observations.items():
        there = came.observations[f"observations/{name}"]
        assert isinstance(there, Packed)
        np.testing.assert_array_equal(plain(there), plain(rows))


def test_shards_and_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("connectors.rlds_sink.SHARD_BYTES", 400)
    episodes = [toy_episode(n) for n in (4, 3, 9, 2)]
    where = tmp_path / "robot-data" / "2.1.0"
    RldsSink().write(episodes, str(where), {"file_format": "tfrecord", "description": "toy"})
    shards = sorted(path.name for path in where.glob("robot_data-train.tfrecord-*"))
    assert shards == [f"robot_data-train.tfrecord-0000{k}-of-00004" for k in range(4)]
    listing, found = check_source(SOURCE, str(where))
    assert listing.identity == "robot_data:2.1.0"
    assert listing.metadata["description"] == "toy"
    assert [f.native_id for f in found] == [f"train/{k}" for k in range(4)]
    for one, f in zip(episodes, found, strict=True):
        assert_same(one, f.episode)
    assert registry.detect(str(where)) == registry.detect(str(where.parent)) == "rlds"


@pytest.mark.parametrize(
    "episodes",
    [
        [],
        [toy_episode(0)],
        [toy_episode(), toy_episode(rewards=None)],
        [toy_episode(), toy_episode(extras={"q": np.zeros(4)})],
        [toy_episode(extras={"q": np.zeros(4)}), toy_episode(extras={"q": np.zeros(5)})],
        [toy_episode(extras={"reward": np.zeros(4)})],
        [toy_episode(extras={"observation/q": np.zeros(4)})],
        [toy_episode(extras={"q": np.zeros(4), "q/r": np.zeros(4)})],
        [toy_episode(observations=np.zeros((5, 0)))],
        [toy_episode(terminated=np.array([True, False, False, False]))],
        [toy_episode(columns={"invalid": True})],
        [toy_episode(columns={"a": 1, "a/b": 1})],
    ],
    ids=range(12),
)
def test_what_does_not_fit_is_refused_whole(tmp_path: Path, episodes: list[Episode]) -> None:
    with pytest.raises(UsageError, match="Expected"):
        RldsSink().write(episodes, str(tmp_path / "x"), {})
    assert list(tmp_path.iterdir()) == []


def test_file_formats_have_names(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="array_record or tfrecord, came 'riegeli'"):
        RldsSink().write([toy_episode()], str(tmp_path / "x"), {"file_format": "riegeli"})


# -- conventions ---------------------------------------------------------------------------------

LEAVES = (
    Leaf("steps/observation", "numbers", "<f4", (2,)),
    Leaf("steps/action", "numbers", "<f4", (1,)),
    Leaf("steps/reward", "numbers", "<f4", ()),
    *(Leaf(f"steps/{n}", "numbers", "|b1", ()) for n in ("is_first", "is_last", "is_terminal")),
)


def steps(rows: int, last_action: float = 0, **changes: Any) -> dict[str, Any]:
    """Lists of one episode of `rows` stored steps."""
    at = np.arange(rows)
    parts = {
        "observation": np.arange(2 * rows, dtype=np.float32),
        "action": np.append(np.ones(rows - 1, np.float32), np.float32(last_action)),
        "reward": at.astype(np.float32),
        "is_first": at == 0,
        "is_last": at == rows - 1,
        "is_terminal": at == rows - 1,
    }
    return {f"steps/{n}": v for n, v in {**parts, **changes}.items()}


def record(lists: dict[str, Any]) -> bytes:
    return join_example(encode_feature(n, v) for n, v in lists.items() if v is not None)


def write_raw(
    place: Path,
    records: list[bytes],
    leaves: tuple[Leaf, ...] = LEAVES,
    file_format: str = "tfrecord",
    **info: Any,
) -> str:
    """A dataset from finished records; returns its place."""
    place.mkdir(parents=True, exist_ok=True)
    writer = RecordWriter(place / f"toy-train.{file_format}-00000-of-00001", file_format)
    for one in records:
        writer.write(one)
    writer.close()
    document = {
        "name": "toy",
        "version": "1.0.0",
        "fileFormat": file_format,
        "splits": [{"name": "train", "shardLengths": [str(len(records))]}],
        **info,
    }
    (place / "dataset_info.json").write_text(json.dumps(document))
    (place / "features.json").write_text(json.dumps(features_document(leaves)))
    return str(place)


def test_the_convention_is_the_datasets(tmp_path: Path, file_format: str) -> None:
    rlds = write_raw(tmp_path / "a", [record(steps(n)) for n in (4, 2)], file_format=file_format)
    listing, found = check_source(SOURCE, rlds)
    assert [(f.episode.length, f.episode.final_observation) for f in found] == [
        (3, "present"),
        (1, "present"),
    ]
    assert listing.metadata["last_step_action_valid"] is False
    mixed = [record(steps(4)), record(steps(2, last_action=0.5))]
    listing, found = check_source(SOURCE, write_raw(tmp_path / "b", mixed))
    assert [(f.episode.length, f.episode.final_observation) for f in found] == [
        (4, "missing"),
        (2, "missing"),
    ], "one real last action speaks for all episodes"
    padded = [record(steps(3, last_action=np.nan))]
    [episode] = healthy(SOURCE, write_raw(tmp_path / "c", padded))
    assert episode.length == 2
    (tmp_path / "a/metadata.json").write_text('{"last_step_action_valid": true}')
    assert [e.length for e in healthy(SOURCE, rlds)] == [4, 2]
    assert not any("last_step_action" in guess for guess in SOURCE.discover(rlds).guesses)


@pytest.mark.parametrize(
    ("changes", "end"),
    [
        ({}, (True, False)),
        ({"is_terminal": np.zeros(4, bool)}, (False, True)),
        ({"is_terminal": np.arange(4) >= 2}, (True, False)),
        ({"is_terminal": np.zeros(4, bool), "is_last": np.zeros(4, bool)}, (False, True)),
    ],
)
def test_ends(tmp_path: Path, changes: dict[str, Any], end: tuple[bool, bool]) -> None:
    [episode] = healthy(SOURCE, write_raw(tmp_path, [record(steps(4, **changes))]))
    assert (episode.is_terminated, episode.is_truncated) == end


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"is_first": np.array([1, 0, 1, 0])}, "flags_inconsistent"),
        ({"is_last": np.array([0, 1, 0, 1])}, "flags_inconsistent"),
        ({"is_terminal": np.array([0, 1, 0, 1])}, "flags_inconsistent"),
        ({"is_first": np.array([2, 0, 0, 0])}, "bad_dtype"),
        ({"action": np.zeros(3, np.float32)}, "length_mismatch"),
        ({"observation": np.zeros(7, np.float32)}, "length_mismatch"),
        ({"action": np.zeros(4, np.int64)}, "unreadable"),
        ({"action": [b"x"] * 4}, "unreadable"),
        ({"action": None}, "unreadable"),
        ({n: np.zeros(0, "f4") for n in ("action", "reward", "observation")}, "length_mismatch"),
    ],
    ids=str,
)
def test_faults_spare_the_neighbours(
    tmp_path: Path, changes: dict[str, Any], code: str, file_format: str
) -> None:
    records = [record(steps(3)), record(steps(4, **changes)), record(steps(5))]
    found = read_all(SOURCE, write_raw(tmp_path, records, file_format=file_format))
    assert [f.fault and f.fault.code for f in found] == [None, code, None]


def test_one_stored_step_without_action_is_no_episode(tmp_path: Path) -> None:
    found = read_all(SOURCE, write_raw(tmp_path, [record(steps(1)), record(steps(2))]))
    assert [f.fault and f.fault.code for f in found] == ["length_mismatch", None]


def test_facts_tasks_and_discounts(tmp_path: Path) -> None:
    leaves = (
        *LEAVES,
        Leaf("steps/language_instruction", "text", "str", ()),
        Leaf("steps/discount", "numbers", "<f4", ()),
        Leaf("invalid", "numbers", "|b1", ()),
        Leaf("episode_metadata/seed", "numbers", "<i4", ()),
        Leaf("episode_metadata/goal", "numbers", "<f4", (2,)),
        Leaf("episode_metadata/tags", "text", "str", (), is_list=True),
    )

    def one(says: list[bytes], discount: list[float], invalid: bool = False) -> bytes:
        facts = {
            "invalid": np.array([invalid]),
            "episode_metadata/seed": np.array([7]),
            "episode_metadata/goal": np.array([0.5, 1], np.float32),
            "episode_metadata/tags": [b"a", b"b"],
        }
        said = {"language_instruction": says, "discount": np.array(discount, np.float32)}
        return record({**steps(3, **said), **facts})

    records = [
        one([b"push"] * 2 + [b""], [1, 0, 0]),
        one([b"push", b"pull", b""], [1, 1, 1]),
        one([b"push"] * 3, [0.9, 0.9, 0]),
        one([b"push"] * 3, [1, 1, 1], invalid=True),
        one([b"push", b"\xff", b""], [1, 1, 1]),
    ]
    same, varied, discounted, invalid, no_text = read_all(
        SOURCE, write_raw(tmp_path, records, leaves)
    )
    assert (same.episode.task, same.episode.seed, same.episode.extras) == ("push", 7, {})
    assert same.episode.columns == {"goal": "[0.5, 1.0]", "tags": '["a", "b"]'}
    assert varied.episode.task is None
    assert list(varied.episode.extras["language_instruction"]) == [b"push", b"pull", b""]
    np.testing.assert_array_equal(discounted.episode.extras["discount"], np.float32([0.9, 0.9]))
    assert "marked invalid" in invalid.fault.message
    assert "UTF-8" in no_text.fault.message


# -- damage and malice ---------------------------------------------------------------------------


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def shard(place: Path) -> Path:
    [path] = [p for p in place.iterdir() if "-of-" in p.name]
    return path


def test_a_flipped_payload_costs_one_record(tmp_path: Path, file_format: str) -> None:
    rng = np.random.default_rng(0)
    big = [
        record(steps(2000, observation=rng.normal(size=4000).astype(np.float32))) for _ in range(3)
    ]
    where = write_raw(tmp_path, big, file_format=file_format)
    flip(shard(tmp_path), 30_000 if file_format == "array_record" else len(big[0]) * 3 // 2)
    found = read_all(SOURCE, where)
    assert [f.fault and f.fault.code for f in found] == [None, "unreadable", None]


def test_a_flipped_length_hides_what_is_behind_it(tmp_path: Path) -> None:
    records = [record(steps(n)) for n in (3, 4, 5)]
    where = write_raw(tmp_path, records)
    flip(shard(tmp_path), len(frame(records[0])) + 1)
    _, found = check_source(SOURCE, where)
    assert [f.fault and f.fault.code for f in found] == [None, "unreadable", "unreadable"]
    assert "checksum of the length" in found[2].fault.message


@pytest.mark.parametrize("cut", [1, 5, 30, 100])
def test_a_truncated_tfrecord_keeps_its_whole_records(tmp_path: Path, cut: int) -> None:
    where = write_raw(tmp_path, [record(steps(n)) for n in (3, 4, 5)])
    path = shard(tmp_path)
    path.write_bytes(path.read_bytes()[:-cut])
    found = read_all(SOURCE, where)
    assert [f.fault and f.fault.code for f in found] == [None, None, "unreadable"]
    info = json.loads((tmp_path / "dataset_info.json").read_text())
    info["splits"][0] = {"name": "train", "numShards": "1"}
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    assert len(read_all(SOURCE, where)) == 3, "a lost record is one fault where none is counted"


def test_files_that_contradict_the_information(tmp_path: Path, file_format: str) -> None:
    records = [record(steps(3))] * 3
    where = write_raw(tmp_path, records, file_format=file_format)
    document = json.loads((tmp_path / "dataset_info.json").read_text())
    for count in ("2", "4", "9" * 14):
        document["splits"][0]["shardLengths"] = [count]
        (tmp_path / "dataset_info.json").write_text(json.dumps(document))
        with pytest.raises(SourceError, match=f"Expected {count} records"):
            SOURCE.discover(where)
    document["splits"][0]["shardLengths"] = ["3"]
    (tmp_path / "dataset_info.json").write_text(json.dumps(document))
    path = shard(tmp_path)
    path.write_bytes(path.read_bytes()[:40])
    if file_format == "array_record":
        with pytest.raises(SourceError, match="whole ArrayRecord"):
            SOURCE.discover(where)
    path.unlink()
    with pytest.raises(SourceError, match="there is no such file"):
        SOURCE.discover(where)


def test_a_length_beyond_the_file_is_not_allocated(tmp_path: Path) -> None:
    where = write_raw(tmp_path, [record(steps(3))])
    size = struct.pack("<Q", 2**62)
    head = size + struct.pack("<I", masked_crc(size))
    shard(tmp_path).write_bytes(head + bytes(100))
    [found] = read_all(SOURCE, where)
    assert "bytes, 96 are left" in found.fault.message


def test_an_array_record_chunk_may_not_claim_gigabytes(tmp_path: Path) -> None:
    where = write_raw(tmp_path, [record(steps(3))], file_format="array_record")
    path = shard(tmp_path)
    data = bytearray(path.read_bytes())
    assert data[64 + 24] == ord("r")
    struct.pack_into("<Q", data, 64 + 32, 2**40)
    path.write_bytes(data)
    with pytest.raises(SourceError, match="claim 1 records of 1099511627776 bytes"):
        SOURCE.discover(where)


def test_compressed_values_inflate_within_bounds(tmp_path: Path) -> None:
    def dataset(shape: tuple[int, ...], payload: bytes) -> list[Any]:
        leaves = (*LEAVES, Leaf("steps/z", "numbers", "|u1", shape, "zlib"))
        lists = {**steps(3), "steps/z": [zlib.compress(payload)] * 3}
        return read_all(SOURCE, write_raw(tmp_path, [record(lists)], leaves))

    [found] = dataset((4, 5), bytes(range(20)))
    assert found.episode.extras["z"].shape == (3, 4, 5)
    assert found.episode.extras["z"][2, 3, 4] == 19
    for shape, payload in (((4, 5), bytes(21)), ((4, 5), bytes(19)), ((2**34,), bytes(9))):
        [found] = dataset(shape, payload)
        assert found.fault.code in ("unreadable", "length_mismatch")
    [found] = dataset((-1,), bytes(2**27))
    assert found.fault.code == "unreadable"


IMPORTER = "tests.connectors.must_not_be_imported.Feature"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"pythonClassName": IMPORTER, "jsonFeature": {"json": "{}"}}, "must_not_be_imported"),
        ({"type": IMPORTER, "content": {}}, "must_not_be_imported"),
        (
            {"pythonClassName": "tensorflow_datasets.core.features.audio_feature.Audio"},
            "steps/x is of the class 'audio_feature.Audio'",
        ),
        ({"pythonClassName": 3}, "of the class '3'"),
        (None, "no feature"),
    ],
)
def test_no_document_makes_us_import(tmp_path: Path, change: Any, match: str) -> None:
    where = write_raw(tmp_path, [record(steps(3))])
    document = features_document(LEAVES)
    dataset = document["featuresDict"]["features"]["steps"]["sequence"]["feature"]
    dataset["featuresDict"]["features"]["x"] = change
    (tmp_path / "features.json").write_text(json.dumps(document))
    with pytest.raises(SourceError, match=match):
        SOURCE.discover(where)
    assert not any("must_not_be_imported" in name for name in sys.modules)


@pytest.mark.parametrize(
    "tensor",
    [
        {"dtype": "complex64", "shape": {}},
        {"dtype": "float32", "shape": {"dimensions": ["-1", "-1"]}},
        {"dtype": "float32", "shape": {"dimensions": ["-1"]}},
        {"dtype": "float32", "shape": {"dimensions": ["9" * 30]}},
        {"dtype": "float32", "shape": {"dimensions": ["1000000", "1000000", "1000000"]}},
        {"dtype": "float32", "shape": {"dimensions": ["0"]}},
        {"dtype": "float32", "shape": {"dimensions": ["1"] * 99}},
        {"dtype": "float32", "shape": "x"},
        {"dtype": "float32", "encoding": "pickle"},
    ],
    ids=str,
)
def test_tensors_that_are_refused_by_name(tensor: dict[str, Any]) -> None:
    document = features_document(LEAVES)
    inner = document["featuresDict"]["features"]["steps"]["sequence"]["feature"]
    name = "tensorflow_datasets.core.features.tensor_feature.Tensor"
    inner["featuresDict"]["features"]["x"] = {"pythonClassName": name, "tensor": tensor}
    with pytest.raises(SourceError, match="steps/x is of the"):
        parse_features(document, "features.json")


def test_documents_of_both_ages() -> None:
    prefix = "tensorflow_datasets.core.features."

    def old(name: str, content: dict[str, Any]) -> dict[str, Any]:
        return {"type": prefix + name, "content": content, "proto_cls": ""}

    step = {
        "observation": old("image_feature.Image", {"shape": [8, 8, 3], "dtype": "uint8"}),
        "action": old("tensor_feature.Tensor", {"shape": [2], "dtype": "float32"}),
        "is_last": old("feature.Tensor", {"shape": [], "dtype": "bool"}),
        "said": old("text_feature.Text", {}),
    }
    inner = old("features_dict.FeaturesDict", step)
    dataset = old("dataset_feature.Dataset", {"feature": inner, "length": None})
    leaves = parse_features(old("features_dict.FeaturesDict", {"steps": dataset}), "x")
    assert [(leaf.path, leaf.kind, leaf.shape) for leaf in leaves] == [
        ("steps/observation", "image", (8, 8, 3)),
        ("steps/action", "numbers", (2,)),
        ("steps/is_last", "numbers", ()),
        ("steps/said", "text", ()),
    ]
    for one in (LEAVES, tuple(replace(leaf, encoding="bytes") for leaf in LEAVES)):
        assert sorted(parse_features(features_document(one), "x"), key=str) == sorted(one, key=str)


@pytest.mark.parametrize(
    ("info", "match"),
    [
        ({"fileFormat": "parquet"}, "came 'parquet', which is not supported"),
        ({"fileFormat": ["tfrecord"]}, "not supported"),
        ({"name": "../toy"}, "name, config and version"),
        ({"version": "1"}, "name, config and version"),
        ({"splits": []}, "came 0 splits"),
        ({"splits": [{"name": "../x", "shardLengths": ["1"]}]}, "splits with a name"),
        ({"splits": [{"name": "train", "shardLengths": ["-1"]}]}, "splits with a name"),
        ({"splits": [{"name": "train", "numShards": "1" * 9}]}, "splits with a name"),
        (
            {"splits": [{"name": "t", "shardLengths": [1], "filepathTemplate": "/etc/passwd"}]},
            "no such file",
        ),
        (
            {"splits": [{"name": "t", "shardLengths": [1], "filepathTemplate": "{A.__class__}"}]},
            "no such file",
        ),
        ({"splits": [{"name": "train", "shardLengths": [1]}] * 2}, "files of their own"),
    ],
    ids=str,
)
def test_hostile_information(tmp_path: Path, info: dict[str, Any], match: str) -> None:
    where = write_raw(tmp_path, [record(steps(3))], **info)
    with pytest.raises(SourceError, match=match):
        SOURCE.discover(where)


def test_links_are_not_followed(tmp_path: Path) -> None:
    write_raw(tmp_path / "a", [record(steps(3))])
    for name in ("dataset_info.json", "features.json", shard(tmp_path / "a").name):
        place = tmp_path / f"of {name}"
        where = write_raw(place, [record(steps(3))])
        (place / name).unlink()
        (place / name).symlink_to(tmp_path / "a" / name)
        with pytest.raises(SourceError, match="links are not followed"):
            SOURCE.discover(where)


def test_where_there_is_no_one_version(tmp_path: Path) -> None:
    check_missing(SOURCE, tmp_path)
    for version in ("1.0.0", "10.0.0", "9.0.0"):
        write_raw(tmp_path / version, [record(steps(3))])
    with pytest.raises(SourceError, match=r"came 1\.0\.0, 9\.0\.0, 10\.0\.0"):
        SOURCE.discover(str(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="came none"):
        SOURCE.discover(str(tmp_path / "empty"))
    without = tuple(leaf for leaf in LEAVES if leaf.path != "steps/observation")
    where = write_raw(tmp_path / "x", [record(steps(3))], without)
    with pytest.raises(SourceError, match="feature steps/observation"):
        SOURCE.discover(where)


# -- the wire format -----------------------------------------------------------------------------

INTEGERS = st.lists(st.integers(-(2**63), 2**63 - 1))


@given(integers=INTEGERS, floats=st.lists(st.floats(width=32)), texts=st.lists(st.binary()))
def test_lists_come_back(integers: list[int], floats: list[float], texts: list[bytes]) -> None:
    lists = {
        "i": np.array(integers, np.int64),
        "f": np.array(floats, np.float32),
        "t": texts,
    }
    parsed = split_example(record(lists), "x")
    for name, values in lists.items():
        came = values_of(parsed[name], "x")
        if isinstance(values, list):
            assert list(came) == values
        else:
            np.testing.assert_array_equal(came, values)


def test_protobuf_itself_agrees() -> None:
    pb = pytest.importorskip("tensorflow_datasets.proto.tf_example_generated_pb2")
    lists = {"i": np.array([0, -1, 300, 2**62]), "f": np.float32([1.5, -2]), "t": [b"", b"abc"]}
    theirs = pb.Example.FromString(record(lists)).features.feature
    assert list(theirs["i"].int64_list.value) == [0, -1, 300, 2**62]
    assert list(theirs["f"].float_list.value) == [1.5, -2]
    assert list(theirs["t"].bytes_list.value) == [b"", b"abc"]
    parsed = split_example(pb.Example.FromString(record(lists)).SerializeToString(), "x")
    for name, values in lists.items():
        np.testing.assert_array_equal(values_of(parsed[name], "x"), values)


def mutations() -> Iterator[Callable[[bytes, int], bytes]]:
    yield lambda data, at: data[: at % len(data)]
    yield lambda data, at: data[: at % len(data)] + b"\xff" * 12 + data[at % len(data) :]
    yield lambda data, at: bytes(b ^ (i == at % len(data)) << at % 8 for i, b in enumerate(data))


@settings(max_examples=200)
@given(at=st.integers(0, 2**20), mutate=st.sampled_from(list(mutations())))
def test_damaged_records_never_crash(at: int, mutate: Callable[[bytes, int], bytes]) -> None:
    damaged = mutate(record(steps(20)), at)
    try:
        encoded_lists = split_example(damaged, "x")
        for leaf in LEAVES:
            assert len(decode_rows(leaf, encoded_lists, "x")) < 100
    except EpisodeError:
        return


def test_an_index_needs_no_payload(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"".join(frame(b"x" * n) for n in (0, 5, 70_000)))
    index = index_records(path, "tfrecord")
    assert index.sizes.tolist() == [0, 5, 70_000]
    assert index.damage is None
