"""Pictures, videos, texts and ragged rows live in the store as they came."""

from __future__ import annotations

import datetime as dt
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.store import blocks, layout
from pipeline.store.objects import LocalObjects
from pipeline.store.store import Store, open_store
from pipeline.store.writer import encoded_bytes, rows_of, write_blocks
from schemas.episode import Episode
from schemas.errors import DamagedStoreError, FilesExpiredError, SourceError
from schemas.identity import digest
from schemas.packed import Media, Packed, Video, plain
from schemas.rows import layout_of, to_rows
from tests.encoded import PICTURE, camera_episode, clip, encoded_episodes, film, picture, words
from tests.store.makers import ids_of
from tests.strategies import assert_same_episode, same_array

AT_ONCE = dt.timedelta(0)
FRONT, WRIST = "observations/front", "observations/wrist"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "s"


@pytest.fixture
def store(root: Path) -> Store:
    return open_store(root, create=True)


def filmed(name: str, *clips: int, steps: int = 3) -> Episode:
    """An episode whose only camera is a video."""
    return camera_episode(name, steps, observations={"wrist": film(steps + 1, *clips)}, extras={})


def media_in(root: Path) -> list[str]:
    folder = root / "media"
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def sha(seed: int) -> str:
    return Media.of(clip(seed)).sha256


# -- what goes in comes out --------------------------------------------------------------------


@settings(max_examples=15)
@given(one=encoded_episodes(), start=st.integers(0, 5), stop=st.integers(0, 6))
def test_any_encoded_episode_through_a_tail_and_a_shard(
    one: Episode, start: int, stop: int
) -> None:
    of, rows = layout_of(one), to_rows(one)
    media = {m.sha256: m for r in rows.values() if isinstance(r, Video) for m in r.media}
    part = slice(min(start, stop), stop)
    _, table = blocks.open_tail(blocks.encode_tail(rows, of))
    span = table.slice(part.start, max(min(stop, table.num_rows) - part.start, 0))
    tail = blocks.decode_tail(span, of.fields, media.__getitem__)
    files, paths = blocks.encode_shard(rows, of), blocks.node_paths(of.fields)
    shard = blocks.decode_shard(files, of.fields, paths, part, media.__getitem__)
    for name, mine in rows.items():
        assert same_array(tail[name], mine[part]), name
        assert same_array(shard[name], mine[part]), name


@settings(max_examples=6)
@given(found=st.lists(encoded_episodes(), min_size=1, max_size=3))
def test_any_encoded_episodes_through_a_store(
    tmp_path_factory: pytest.TempPathFactory, found: list[Episode]
) -> None:
    folder = tmp_path_factory.mktemp("s")
    for number, one in enumerate(found):
        row = open_store(folder / f"s{number}", create=True).append([one]).episodes()
        back = open_store(folder / f"s{number}").version().episode(one.episode_id)
        assert_same_episode(back, one)
        assert digest(back) == digest(one) == row["digest"][0].as_py()


@pytest.mark.parametrize(("steps", "container"), [(30, "tail"), (2500, "shard")])
def test_many_episodes_through_a_store(store: Store, steps: int, container: str) -> None:
    offered = [camera_episode(f"e{k}", steps + k, seed=k) for k in range(3)]
    version = store.append(offered)
    assert [b.container for b in version.state.parts[0].blocks] == [container]
    again = open_store(store.url).version()
    for one, back in zip(offered, again.iter_episodes(), strict=True):
        assert_same_episode(back, one)
        assert_same_episode(again.episode(one.episode_id), one)
    assert store.doctor().problems == []


def test_fields_are_decoded_where_they_are_asked_for(store: Store) -> None:
    offered = [camera_episode(f"e{k}", 4 + k, seed=k) for k in range(2)]
    version = store.append(offered)
    for name in (FRONT, WRIST):
        wanted = np.concatenate([plain(one.observations[name]) for one in offered])
        np.testing.assert_array_equal(version.field(name), wanted)
        assert len(version.field(name, rows=True)) == len(wanted)
    texts = version.field("extras/instruction").compute()
    assert texts.tolist() == [t for one in offered for t in plain(one.extras["instruction"])]
    clouds = version.field("observations/scan").compute()
    assert [len(c) for c in clouds] == [n % 4 for steps in (5, 6) for n in range(steps)]
    stored = list(version.iter_field(FRONT))
    assert [row for piece in stored for row in piece] == [
        row for one in offered for row in one.observations[FRONT]
    ]


def test_xarray_shows_decoded_rows(store: Store) -> None:
    pytest.importorskip("xarray")
    one = camera_episode("e", 3)
    shown = store.append([one]).to_xarray("e")
    np.testing.assert_array_equal(shown[FRONT], plain(one.observations[FRONT]))
    assert shown["extras/thought"].values.tolist() == plain(one.extras["thought"]).tolist()


# -- what lies on the disk ---------------------------------------------------------------------


def test_a_shard_is_open_to_any_zarr_reader(store: Store, root: Path) -> None:
    one = camera_episode("e", 5000)
    store.append([one])
    (shard,) = (root / "shards").iterdir()
    front = zarr.open_group(str(shard / "observations" / "front"), mode="r")
    offsets = front["offsets"][:]
    frames = [front["data"][offsets[t] : offsets[t + 1]].tobytes() for t in (0, 7, 5000)]
    assert frames == [one.observations[FRONT][t] for t in (0, 7, 5000)]
    assert front.attrs["encoding"] == "frames"
    wrist = zarr.open_group(str(shard / "observations" / "wrist"), mode="r")
    media = [wrist.attrs["media"][at] for at in wrist["media"][:3]]
    assert media == [sha(0)] * 3
    np.testing.assert_array_equal(wrist["timestamp"][:3], [0, 0.1, 0.2])
    text = zarr.open_group(str(shard / "extras" / "thought"), mode="r")
    ends = text["offsets"][:4]
    assert text["data"][ends[2] : ends[3]].tobytes().decode() == "grüße 🙂 2" * 2


@pytest.mark.parametrize("rows", [100, 5000])
def test_pictures_cost_what_they_came_with(store: Store, root: Path, rows: int) -> None:
    frames = [picture(row % 50, size=(48, 64)) for row in range(rows)]
    spec = PICTURE.__class__("|u1", (48, 64, 3), "frames")
    store.append([Episode("e", {"front": Packed.of(spec, frames)}, actions=np.zeros(rows - 1))])
    came = sum(map(len, frames))
    held = sum(p.stat().st_size for p in root.rglob("*") if p.is_file())
    assert came <= held <= 1.05 * came


def test_piles_are_measured_by_their_encoded_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "ENCODED_SHARD_BYTES", 200_000)
    offered = [camera_episode(f"e{k}", 60, seed=k) for k in range(12)]
    written = list(write_blocks(LocalObjects(tmp_path), rows_of(offered)))
    assert len(written) > 2
    sizes = [sum(encoded_bytes(offered[at]) for at in one.positions) for one in written]
    assert max(sizes) <= 200_000
    assert min(sizes[:-1]) > 100_000
    assert {one.block.container for one in written[:-1]} == {"shard"}


def test_a_part_of_a_shard_reads_that_part_of_its_bytes(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.store.encoded.DATA_CHUNK_BYTES", 50_000)
    store.append([camera_episode(f"e{k}", 600, seed=k) for k in range(8)])
    fresh = open_store(store.url)
    version, read = fresh.version(), []
    find = LocalObjects.read
    monkeypatch.setattr(LocalObjects, "read", lambda o, key: (read.append(key), find(o, key))[1])
    version.episode("e5")
    chunks = [key for key in read if "/front/data/c." in key]
    every = list(Path(store.url).glob("shards/*/observations/front/data/c.*"))
    assert 0 < len(chunks) < len(every) / 4


# -- media files -------------------------------------------------------------------------------


def test_a_media_file_is_stored_once_and_as_it_came(store: Store, root: Path) -> None:
    store.append([filmed("a", 0, 1)])
    version = store.append([filmed("b", 1), filmed("c", 0)])
    assert media_in(root) == sorted([sha(0), sha(1)])
    assert (root / "media" / sha(0)).read_bytes() == clip(0)
    held = sum(p.stat().st_size for p in root.glob("media/*"))
    parts = version.state.parts
    rest = sum(p.rows.bytes + sum(b.bytes for b in p.blocks) for p in parts)
    assert version.commit.totals.bytes == held + rest


def test_a_media_file_that_changed_since_it_was_listed_is_refused(store: Store) -> None:
    media = Media(sha(0), len(clip(0)), lambda: clip(1))
    video = Video(film(1, 0).spec, (media,), np.zeros(4, np.int32), np.zeros(4))
    with pytest.raises(SourceError, match="has changed"):
        store.append([filmed("e", 0).replace(observations={"observations/wrist": video})])
    assert store.branches() == {}


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "exchange"])
def test_damage_of_a_media_file_is_found(store: Store, root: Path, damage: str) -> None:
    store.append([filmed("a", 0)])
    store.append([filmed("b", 1)])
    path = root / "media" / sha(0)
    data = bytearray(clip(0))
    if damage == "remove":
        path.unlink()
    else:
        data[100] ^= 1
        changed = {"flip": bytes(data), "cut": clip(0)[:-9], "exchange": clip(1)}
        path.write_bytes(changed[damage])
    again = open_store(root)
    assert [problem.where for problem in again.doctor().damage] == [f"media/{sha(0)}"]
    with pytest.raises(DamagedStoreError):
        plain(again.version().episode("a").observations[WRIST])
    assert plain(again.version().episode("b").observations[WRIST]).shape == (4, 16, 24, 3)
    (repaired,) = again.repair()
    assert ids_of(open_store(root).version()) == ["b"]
    assert repaired.left_out
    assert open_store(root).doctor().damage == []
    store = open_store(root)  # what was lost comes in again, beside the damaged file
    store.append([filmed("a", 0)])
    assert_same_episode(store.version().episode("a"), filmed("a", 0))
    assert open_store(root).doctor().damage == []


def test_collection_keeps_media_files_that_are_used_and_takes_the_others(
    store: Store, root: Path
) -> None:
    store.append([filmed("a", 0, 1)], branch="old")
    store.append([filmed("b", 1, 2)])
    list(write_blocks(store.catalog.objects, rows_of([filmed("lost", 3)])))
    assert len(media_in(root)) == 4
    for _ in range(2):
        store.gc(AT_ONCE)
    assert media_in(root) == sorted([sha(0), sha(1), sha(2)])
    assert_same_episode(open_store(root).version("old").episode("a"), filmed("a", 0, 1))


def test_a_marked_media_file_is_not_used_again(store: Store, root: Path) -> None:
    store.append([filmed("a", 0)])
    list(write_blocks(store.catalog.objects, rows_of([filmed("lost", 1)])))
    store.gc(AT_ONCE)  # marks what was lost
    store.append([filmed("b", 1)])
    for _ in range(2):
        store.gc(AT_ONCE)
    again = open_store(root)
    assert_same_episode(again.version().episode("b"), filmed("b", 1))
    assert len(media_in(root)) == 2
    assert sha(1) not in media_in(root), "the marked one is gone, one beside it stands"
    assert again.doctor().damage == []


def test_compaction_keeps_encoded_rows_and_their_media(store: Store, root: Path) -> None:
    offered = [camera_episode(f"e{k}", 4, seed=k % 3) for k in range(6)]
    for one in offered:
        store.append([one])
    assert store.compact(everything=True).parts_after == 1
    again = open_store(root)
    for one, back in zip(offered, again.version().iter_episodes(), strict=True):
        assert_same_episode(back, one)
    assert len(again.version().state.parts[0].blocks[0].media) == 3
    assert again.doctor().damage == []


@pytest.mark.parametrize("steps", [4, 5000])
def test_erasing_takes_the_bytes_and_the_media_that_nobody_else_uses(
    store: Store, root: Path, steps: int
) -> None:
    secret = words(steps, "secret")
    erased = camera_episode("a", steps, seed=0, extras={"instruction": secret})
    erased = erased.replace(observations={**erased.observations, WRIST: film(steps + 1, 0, 1)})
    kept = camera_episode("b", steps, seed=1, extras={"instruction": words(steps)})
    store.append([erased, kept])
    assert store.erase(["a"]) == 1
    done = store.gc(AT_ONCE, erase=True)
    assert done.shared_media == (f"media/{sha(1)}",)
    assert media_in(root) == [sha(1)]
    again = open_store(root)
    assert ids_of(again.version()) == ["b"]
    assert_same_episode(again.version().episode("b"), kept)
    assert again.doctor().damage == []
    held = [path.read_bytes() for path in root.rglob("*") if path.is_file()]
    assert not any(b"secret" in data or picture(1) in data for data in held)
    store = open_store(root)  # what is gone does not come back under its old name
    back = camera_episode("c", steps)
    store.append([back])
    assert_same_episode(open_store(root).version().episode("c"), back)
    assert sha(0) not in media_in(root)
    assert open_store(root).doctor().damage == []
    store.erase(["b"])  # the last that uses it
    assert store.gc(AT_ONCE, erase=True).shared_media == ()
    assert sha(1) not in media_in(root)


def test_a_commit_that_names_an_erased_media_file_is_refused(store: Store) -> None:
    from pipeline.store.append import commit_batch, write_new

    store.append([filmed("a", 0), filmed("b", 1)])
    batch = write_new(store.catalog, "main", rows_of([filmed("late", 0)]))
    other = open_store(store.url)
    other.erase(["a"])
    other.gc(AT_ONCE, erase=True)
    with pytest.raises(FilesExpiredError, match="run the job again"):
        commit_batch(store.catalog, batch, branch="main", message="", run_id=layout.new_id())
    store.append([filmed("late", 0)])
    assert open_store(store.url).doctor().damage == []


WRITER = """
import sys
from pipeline.store.store import open_store
from tests.encoded import camera_episode
store = open_store(sys.argv[1])
for number in range(3):
    store.append([camera_episode(f"{sys.argv[2]}{number}", 3, seed=number)])
"""


@pytest.mark.slow
def test_two_processes_share_media_files(store: Store, root: Path) -> None:
    top = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", WRITER, str(root)]
    both = [subprocess.Popen([*command, name], cwd=top) for name in "ab"]
    assert [process.wait(120) for process in both] == [0, 0]
    version = open_store(root).version()
    assert sorted(ids_of(version)) == [f"{name}{n}" for name in "ab" for n in range(3)]
    assert media_in(root) == sorted(map(sha, range(3)))
    for one in version.iter_episodes():
        assert_same_episode(one, camera_episode(one.episode_id, 3, seed=int(one.episode_id[1])))
    assert open_store(root).doctor().damage == []


def test_a_commit_without_media_is_as_before(store: Store) -> None:
    version = store.append([Episode("e", np.zeros((3, 2)))])
    document = json.loads(version.commit.model_dump_json())
    block = document["operations"][0]["parts"][0]["blocks"][0]
    assert block.pop("media") == []
    assert block.pop("sources") is None
    assert set(block) == {"id", "container", "spec", "rows", "bytes", "file"}
