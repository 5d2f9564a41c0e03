from __future__ import annotations

import json
import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pyarrow as pa
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, ZstdCodec

from connectors.detection import detect
from connectors.replay_zarr import ReplayZarrSource
from connectors.replay_zarr_sink import ReplayZarrSink
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
from tests.connectors.truth import check_truth

SOURCE = ReplayZarrSource()
SINK = ReplayZarrSink()
ENDS = (5, 6, 14)
CHUNK = 4


def arrays() -> dict[str, np.ndarray]:
    random, rows = np.random.default_rng(1), ENDS[-1]
    return {
        "state": random.normal(size=(rows, 3)).astype(np.float32),
        "img": random.integers(0, 255, (rows, 4, 5, 3), np.uint8),
        "action": random.normal(size=(rows, 2)),
        "reward": random.normal(size=(rows, 1)).astype(np.float32),
    }


def write(
    path: Path,
    data: dict[str, np.ndarray],
    ends: Any = ENDS,
    *,
    zarr_format: Any = 2,
    **options: Any,
) -> str:
    """A buffer written with Zarr itself; zipped by it where the path says so."""
    is_zip = path.suffix == ".zip"
    store: Any = zarr.storage.ZipStore(path, mode="w") if is_zip else path
    group = zarr.open_group(store, mode="w", zarr_format=zarr_format)
    for name, array in data.items():
        chunks = (CHUNK, *array.shape[1:])
        made = group.create_array(
            f"data/{name}",
            shape=array.shape,
            dtype=array.dtype,
            chunks=chunks,
            config={"write_empty_chunks": True},
            **options,
        )
        made[...] = array
    group.create_array("meta/episode_ends", data=np.asarray(ends), compressors=None)
    if is_zip:
        store.close()
    return str(path)


def check_arrays(where: str) -> None:
    """The episodes of a buffer are those of `arrays`."""
    listing, found = check_source(SOURCE, where)
    assert (listing.episodes, listing.steps) == (len(ENDS), ENDS[-1])
    made, start = arrays(), 0
    for f, stop in zip(found, ENDS, strict=True):
        assert f.episode is not None
        assert f.key == f"rows {start}:{stop}"
        assert set(f.episode.observations) == {"observations/state", "observations/img"}
        for name in ("state", "img"):
            rows = f.episode.observations[f"observations/{name}"]
            np.testing.assert_array_equal(rows, made[name][start:stop])
            assert rows.dtype == made[name].dtype
        np.testing.assert_array_equal(f.episode.actions, made["action"][start:stop])
        np.testing.assert_array_equal(f.episode.rewards, made["reward"][start:stop, 0])
        assert f.episode.final_observation == "missing"
        assert not f.episode.terminated.any()
        assert not f.episode.truncated.any()
        start = stop


def faults(where: str) -> list[str | None]:
    return [f.fault.code if f.fault else None for f in read_all(SOURCE, where)]


def change(where: str, name: str, **changes: Any) -> None:
    """Changes an array's metadata, in either format."""
    [path] = [p for p in (Path(where, name, m) for m in (".zarray", "zarr.json")) if p.exists()]
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("name", "episodes", "steps"),
    [("hopper-medium", 33, 15_389), ("metaworld", 270, 25_489), ("metaworld-images", 5, 409)],
)
def test_real_buffers_match_their_truth(
    shared_data: Path, tmp_path: Path, name: str, episodes: int, steps: int
) -> None:
    where = str(shared_data / name / "replay_buffer.zarr")
    assert detect(where) == "replay_zarr"
    listing, found = check_source(SOURCE, where)
    assert (listing.episodes, listing.steps, listing.identity) == (episodes, steps, None)
    check_truth(found, shared_data / name / "TRUTH.json", "observations/state")
    came = [f.episode for f in found if f.episode]
    if "images" in name:
        assert came[0].observations["observations/img"].shape[1:] == (84, 84, 3)
    SINK.write(came, str(tmp_path / "x"), {})
    for one, two in zip(came, healthy(SOURCE, str(tmp_path / "x")), strict=True):
        assert_same(one, two, ("final_observation",))


@pytest.mark.parametrize("place", ["x.zarr", "x.zarr.zip"])
@pytest.mark.parametrize(
    ("zarr_format", "options"),
    [
        (2, {"compressors": None}),
        (2, {"compressors": numcodecs.Blosc("zstd", shuffle=numcodecs.Blosc.BITSHUFFLE)}),
        (2, {"compressors": numcodecs.LZ4()}),
        (2, {"compressors": numcodecs.Zlib()}),
        (2, {"compressors": numcodecs.GZip()}),
        (2, {"compressors": numcodecs.Zstd(checksum=True), "order": "F"}),
        (3, {"compressors": [ZstdCodec(), Crc32cCodec()]}),
        (3, {"compressors": [GzipCodec()]}),
        (3, {"compressors": [BloscCodec(cname="lz4")], "serializer": BytesCodec(endian="big")}),
        (3, {"compressors": None, "chunk_key_encoding": {"name": "v2", "separator": "."}}),
    ],
)
def test_both_formats_and_every_codec(
    tmp_path: Path, place: str, zarr_format: int, options: dict[str, Any]
) -> None:
    if options.get("serializer"):
        made = {n: a for n, a in arrays().items() if a.dtype != np.uint8}
        where = write(tmp_path / place, made, zarr_format=zarr_format, **options)
        [first, *_] = healthy(SOURCE, where)
        np.testing.assert_array_equal(first.actions, made["action"][:5])
        return
    where = write(tmp_path / place, arrays(), zarr_format=zarr_format, **options)
    assert detect(where) == "replay_zarr"
    check_arrays(where)


def test_shards(tmp_path: Path) -> None:
    def sharded(path: Path, index_location: str) -> str:
        group = zarr.open_group(path, mode="w", zarr_format=3)
        for name, array in arrays().items():
            made = group.create_array(
                f"data/{name}",
                shape=array.shape,
                dtype=array.dtype,
                chunks=(2, *array.shape[1:]),
                shards={"shape": (4, *array.shape[1:]), "index_location": index_location},
                config={"write_empty_chunks": True},
            )
            made[...] = array
        group.create_array("meta/episode_ends", data=np.asarray(ENDS))
        return str(path)

    for location in ("start", "end"):
        check_arrays(sharded(tmp_path / location, location))
    shard = tmp_path / "end" / "data" / "state" / "c" / "0" / "0"
    whole = shard.read_bytes()
    index = len(whole) - 2 * 16 - 4
    lost = struct.pack("<QQ", 2**64 - 1, 2**64 - 1)
    for damaged in (whole[:index] + lost + whole[index + 16 :], whole[:20], b""):
        shard.write_bytes(damaged)
        assert faults(str(tmp_path / "end")) == ["unreadable", None, None]


def test_no_rewards_and_no_actions_are_unknown(tmp_path: Path) -> None:
    where = write(tmp_path / "x", {"state": arrays()["state"]})
    listing, found = check_source(SOURCE, where)
    assert any("no rewards" in guess for guess in listing.guesses)
    assert all(f.episode and f.episode.rewards is None for f in found)
    assert all(f.episode and f.episode.actions is None for f in found)


@pytest.mark.parametrize("run_bytes", [1, 100, 400, 10_000])
def test_wide_arrays_are_read_in_runs_of_episodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_bytes: int
) -> None:
    ends = (1, 5, 6, 9, 10, 14)
    where = write(tmp_path / "x.zarr", arrays(), ends)
    expected = healthy(SOURCE, where)
    monkeypatch.setattr("connectors.replay_zarr.RUN_BYTES", run_bytes)
    monkeypatch.setattr("connectors.replay_zarr._CHUNKS_PER_RUN", 1)
    check_source(SOURCE, where)
    for one, other in zip(expected, healthy(SOURCE, where), strict=True):
        assert_same(one, other)
    (Path(where) / "data/img/1.0.0.0").unlink()  # rows 4:8
    assert faults(where) == [None, "unreadable", "unreadable", "unreadable", None, None]


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("place", ["x.zarr", "x.zarr.zip"])
def test_a_missing_chunk_is_a_fault_of_the_episodes_that_need_it(
    tmp_path: Path, zarr_format: int, place: str
) -> None:
    where = write(tmp_path / "whole.zarr", arrays(), zarr_format=zarr_format)
    chunk = {2: "data/state/1.0", 3: "data/state/c/1/0"}[zarr_format]
    (Path(where) / chunk).unlink()
    if place.endswith(".zip"):
        zipped = shutil.make_archive(str(tmp_path / "x.zarr"), "zip", where)
        where = zipped
    assert faults(where) == ["unreadable", "unreadable", "unreadable"]
    found = read_all(SOURCE, where)
    assert "it is missing" in str(found[0].fault)
    last = {2: "data/action/3.0", 3: "data/action/c/3/0"}[zarr_format]
    other = write(tmp_path / "other.zarr", arrays(), zarr_format=zarr_format)
    (Path(other) / last).unlink()
    assert faults(other) == [None, None, "unreadable"]
    ends = {2: "meta/episode_ends/0", 3: "meta/episode_ends/c/0"}[zarr_format]
    (Path(other) / ends).unlink()
    with pytest.raises(SourceError, match="it is missing"):
        SOURCE.discover(other)


@pytest.mark.parametrize(
    ("compressor", "bomb"),
    [
        (numcodecs.Blosc("lz4"), struct.pack("<4B3I", 2, 1, 0x21, 1, 2**31 - 17, 2**20, 48)),
        (numcodecs.LZ4(), struct.pack("<I", 2**31 - 1) + bytes(40)),
        (numcodecs.Zstd(), b"\x28\xb5\x2f\xfd\xa0" + struct.pack("<I", 2**31) + bytes(40)),
        (numcodecs.Zlib(), numcodecs.Zlib(9).encode(bytes(2**27))),
        (numcodecs.GZip(), numcodecs.GZip(9).encode(bytes(2**20)) * 128),
        (numcodecs.Zlib(), b"no zlib stream" * 9),
        (numcodecs.Zstd(), b""),
    ],
    ids=["blosc", "lz4", "zstd", "zlib", "gzip", "damaged", "empty"],
)
def test_chunks_that_claim_too_much_are_never_decoded(
    tmp_path: Path, compressor: Any, bomb: bytes
) -> None:
    where = write(tmp_path / "x", arrays(), compressors=compressor)
    (Path(where) / "data" / "state" / "3.0").write_bytes(bomb)
    assert faults(where) == [None, None, "unreadable"]
    if len(bomb) > 2**16 or len(bomb) == 49 or bomb[:1] == b"\x02":
        said = str(read_all(SOURCE, where)[2].fault)
        assert "a decompression bomb?" in said


def test_a_zstd_frame_that_states_no_size_is_measured(tmp_path: Path) -> None:
    def frame(data: bytes) -> bytes:
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, "zstd") as stream:
            stream.write(data)
        return bytes(sink.getvalue())

    where = write(tmp_path / "x", arrays(), compressors=numcodecs.Zstd())
    chunk = Path(where) / "data" / "state" / "0.0"
    chunk.write_bytes(frame(arrays()["state"][:CHUNK].tobytes()))
    check_arrays(where)
    chunk.write_bytes(frame(bytes(2**26)))
    assert faults(where) == ["unreadable", None, None]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dtype": "|O"}, "objects would need a codec"),
        ({"dtype": "<U4"}, "dtype '<U4'"),
        ({"dtype": [["a", "<f4"]]}, "came dtype"),
        ({"compressor": {"id": "pickle"}}, "pickle is refused: it makes objects"),
        ({"filters": [{"id": "json2"}]}, "json2 is refused: it makes objects"),
        ({"filters": [{"id": "vlen-utf8"}]}, "vlen-utf8 is refused: it makes objects"),
        ({"compressor": {"id": "imagecodecs_jpegxl"}}, "imagecodecs_jpegxl is refused: pictures"),
        ({"compressor": {"id": "mine"}}, "mine is refused: these are read"),
        ({"filters": [{"id": "zlib"}]}, "zlib is refused"),
        ({"filters": [{"id": "delta", "dtype": "O"}]}, "dtype 'O'"),
        ({"filters": 3}, "3 is refused"),
        ({"chunks": [2**40, 3]}, "chunks of at most"),
        ({"chunks": [0, 3]}, "chunks with rows"),
        ({"chunks": [4]}, "chunks of 2 axes"),
        ({"chunks": "x"}, "a list of sizes"),
        ({"shape": [-14, 3]}, "a list of sizes"),
        ({"shape": [15, 3]}, "state 15"),
        ({"shape": [14, 2**40]}, "chunks per row"),
        ({"dimension_separator": "../"}, "joined with"),
    ],
)
def test_metadata_are_checked_at_the_door_v2(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    where = write(tmp_path / "x", arrays())
    change(where, "data/state", **changes)
    with pytest.raises(SourceError, match=said):
        SOURCE.discover(where)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data_type": "string"}, "dtype 'string'"),
        ({"codecs": [{"name": "vlen-utf8"}]}, "vlen-utf8 is refused: it makes objects"),
        ({"codecs": [{"name": "bytes"}, {"name": "jpegxl"}]}, "jpegxl is refused"),
        ({"codecs": [{"name": "gzip"}, {"name": "zstd"}]}, "compression in compression"),
        ({"codecs": "bytes"}, "a list of codecs"),
        ({"codecs": [{"name": "sharding_indexed"}]}, "hold whole chunks"),
        ({"chunk_grid": {"name": "rectilinear"}}, "a regular chunk grid"),
        ({"chunk_key_encoding": {"name": "mine"}}, "plain chunk keys"),
        ({"storage_transformers": [{"name": "x"}]}, "plain chunk keys"),
    ],
)
def test_metadata_are_checked_at_the_door_v3(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    where = write(tmp_path / "x", arrays(), zarr_format=3)
    change(where, "data/state", **changes)
    with pytest.raises(SourceError, match=said):
        SOURCE.discover(where)


@pytest.mark.parametrize(
    "ends", [(5, 5, 14), (0, 14), (6, 5, 14), (5, 15), (5, 13), (-1, 14), (2**63, 14), (5.0, 14.0)]
)
def test_episode_ends_must_fit(tmp_path: Path, ends: tuple[int, ...]) -> None:
    made = np.array(ends, np.uint64) if max(ends) > 2**62 else np.array(ends)
    with pytest.raises(SourceError, match=r"Expected (ascending ends|arrays of|.* integers)"):
        SOURCE.discover(write(tmp_path / "x", arrays(), made))


def test_hostile_places(tmp_path: Path) -> None:
    check_missing(SOURCE, tmp_path)
    where = write(tmp_path / "x", arrays())
    outside = tmp_path / "secret"
    outside.write_bytes((Path(where) / "data/state/0.0").read_bytes())
    (Path(where) / "data/state/0.0").unlink()
    (Path(where) / "data/state/0.0").symlink_to(outside)
    with pytest.raises(SourceError, match="is a link"):
        SOURCE.discover(where)
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(SourceError, match="no whole zip"):
        SOURCE.discover(str(tmp_path / "text.zip"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="meta/episode_ends"):
        SOURCE.discover(str(tmp_path / "empty"))
    for name in ("../evil", "data//x", "/etc/passwd"):
        with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
            archive.writestr(name, "x")
        with pytest.raises(SourceError, match="leads elsewhere"):
            SOURCE.discover(str(tmp_path / "evil.zip"))
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("meta/episode_ends/.zarray", bytes(2**23))
    with pytest.raises(SourceError, match="of metadata"):
        SOURCE.discover(str(tmp_path / "bomb.zip"))
    data = bytearray((tmp_path / "bomb.zip").read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at + 24 : at + 28] = struct.pack("<I", 2**31)
    (tmp_path / "bomb.zip").write_bytes(data)
    with pytest.raises(SourceError, match="decompression bomb"):
        SOURCE.discover(str(tmp_path / "bomb.zip"))
    encrypted = tmp_path / "lzma.zip"
    with zipfile.ZipFile(encrypted, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("x", "x")
    with pytest.raises(SourceError, match="neither stored nor deflated"):
        SOURCE.discover(str(encrypted))


def expected(episode: Episode) -> Episode:
    """Applies the losses that the sink declares."""
    steps = np.zeros(episode.length, bool)
    observations = {n: a[: episode.length] for n, a in episode.observations.items()}
    return episode.replace(
        observations=observations,
        final_observation="missing",
        terminated=steps,
        truncated=steps,
        extras={},
    )


@settings(max_examples=12)
@given(episodes=datasets(is_nested=True), zarr_format=st.sampled_from((2, 3)), is_zip=st.booleans())
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    episodes: list[Episode],
    zarr_format: int,
    is_zip: bool,
) -> None:
    metadata: dict[str, object] = {"zarr_format": zarr_format, "zip": is_zip}
    came = check_sink(SINK, SOURCE, episodes, tmp_path_factory.mktemp("z"), metadata)
    for one, two in zip(episodes, came, strict=True):
        assert_same(
            expected(one),
            two,
            ("final_observation",),
            lambda name: "observations/state" if name == "observations" else name,
        )


def test_diffusion_policy_finds_what_it_reads(tmp_path: Path) -> None:
    episodes = [toy_episode(n, observations=np.zeros((n + 1, 3))) for n in (4, 7)]
    where = str(tmp_path / "x.zarr")
    SINK.write(episodes, where, {})
    group: Any = zarr.open_group(where, mode="r", zarr_format=2)
    data, ends = group["data"], group["meta"]["episode_ends"]
    assert ends.dtype == np.int64
    assert ends[:].tolist() == [4, 11]
    assert ends.compressors == ()
    assert sorted(data) == ["action", "reward", "state"]
    assert all(array.shape[0] == ends[-1] for _, array in data.arrays())
    np.testing.assert_array_equal(data["action"][4:], episodes[1].actions)
    stated = json.loads((tmp_path / "x.zarr/data/action/.zarray").read_text())
    assert stated["zarr_format"] == 2
    assert stated["compressor"]["id"] == "blosc"
    assert stated["compressor"]["cname"] == "lz4"


def test_chunks_of_two_megabytes_are_all_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("connectors.replay_zarr_sink.CHUNK_BYTES", 3 * 8 * 5)
    episodes = [toy_episode(n, observations=np.zeros((n + 1, 3))) for n in (4, 7, 12)]
    SINK.write(episodes, str(tmp_path / "x"), {})
    names = sorted(p.name for p in (tmp_path / "x/data/state").iterdir() if p.name[0] != ".")
    assert names == ["0.0", "1.0", "2.0", "3.0", "4.0"]
    for one, two in zip(episodes, healthy(SOURCE, str(tmp_path / "x")), strict=True):
        np.testing.assert_array_equal(one.actions, two.actions)


@pytest.mark.parametrize(
    "episodes",
    [
        [],
        [toy_episode(0)],
        [toy_episode(), toy_episode(rewards=None)],
        [toy_episode(), toy_episode(actions=None)],
        [toy_episode(), toy_episode(observations=np.zeros((5, 4)))],
        [toy_episode(observations={"action": np.zeros((5, 4))})],
        [toy_episode(observations={"..": np.zeros((5, 4))})],
        [toy_episode(observations={"x": np.array(list("abcde"))})],
        [toy_episode(actions={"a": np.zeros((4, 1)), "b": np.zeros((4, 1))})],
    ],
)
def test_what_does_not_fit_is_refused_whole(tmp_path: Path, episodes: list[Episode]) -> None:
    with pytest.raises(UsageError, match="Expected"):
        SINK.write(episodes, str(tmp_path / "x"), {})
    with pytest.raises(UsageError, match="zarr_format 2 or 3"):
        SINK.write([toy_episode()], str(tmp_path / "x"), {"zarr_format": 4})
    assert list(tmp_path.iterdir()) == []
