"""Residency: chosen by size and a budget, said aloud, and never a change of order."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from pipeline.cli.main import app
from pipeline.store.reader import Version
from pipeline.store.store import Store
from pipeline.stream import fetching, owners, residency
from pipeline.stream.cache import PackedCache
from pipeline.stream.cache_index import CachedBlock
from pipeline.stream.eviction import Cached, caches, evict
from pipeline.stream.fetching import read_fields
from pipeline.stream.loader import Stream
from pipeline.stream.mixture import Mixture
from pipeline.stream.pictures import Pictures
from pipeline.stream.residency import available, choose
from pipeline.stream.windowed import Fill, Room, WindowedBlock, WindowedRecords
from schemas.errors import ConfigError, DamagedStoreError, UsageError
from schemas.packed import Rows
from schemas.sizes import parse_bytes, said_bytes
from schemas.stream import stream_config
from schemas.version import Block
from tests.stream.conftest import made_episodes
from tests.stream.filling import LAYOUT, numbered, pieces

ROOT = Path(__file__).resolve().parents[2]


def stream(store: Store, **settings: object) -> Stream:
    return Stream(store.version(), framework="numpy", **settings)  # type: ignore[arg-type]


# -- chosen ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "count"),
    [("4GB", 4 * 10**9), ("512 MiB", 512 << 20), ("1.5kb", 1500), ("77", 77), ("0B", 0)],
)
def test_sizes_are_read(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "GB", "-4GB", "4 parsecs", "1e9", "4GB4", "nan"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="such as 4GB"):
        parse_bytes(text)


def test_sizes_are_said() -> None:
    said = {0: "0 B", 999: "999 B", 1000: "1.0 kB", 4_200_000_000: "4.2 GB"}
    assert {count: said_bytes(count) for count in said} == said
    assert said_bytes(5 * 10**15) == "5000.0 TB"


@pytest.mark.parametrize(
    ("settings", "size", "where", "why"),
    [
        ({"memory": "1GB"}, 900 * 10**6, "ram", "900.0 MB fit the budget of 1.0 GB"),
        ({"memory": "1GB"}, 10**9 + 1, "mmap", "1.0 GB exceed the budget of 1.0 GB"),
        ({"memory": 10**9}, 1000, "mmap", "gain nothing"),
        ({"memory": "1GB", "world_size": 2}, 900 * 10**6, "mmap", "ranks on one machine"),
        ({"memory": "1GB", "residency": "ram"}, 10**12, "ram", "as asked"),
        ({"memory": "1GB", "residency": "mmap"}, 900 * 10**6, "mmap", "as asked"),
        ({}, 10**18, "mmap", "exceed a quarter of the free memory"),
    ],
)
def test_size_and_budget_choose(
    settings: dict[str, object], size: int, where: str, why: str
) -> None:
    choice = choose(stream_config(settings), size)
    assert choice.residency == where
    assert why in choice.why


def test_a_stream_says_what_was_chosen(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "gain nothing" in stream(store).describe()
    monkeypatch.setattr(residency, "LEAST", 1)
    assert "a copy in memory of the memory-mapped cache" in stream(store).describe()
    said = stream(store, memory=1000).describe()
    assert "exceed the budget of 1.0 kB" in said
    assert "copy in memory" not in said


def test_a_container_has_less_than_its_machine(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 64000 kB\nMemAvailable:   32000 kB\n")
    assert available(meminfo, tmp_path) == 32000 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert available(meminfo, tmp_path) == 32000 * 1024
    (tmp_path / "memory.max").write_text("5000\n")
    assert available(meminfo, tmp_path) == 4000
    assert available(tmp_path / "absent", tmp_path) == 4000


def test_a_budget_that_is_none_is_refused(store: Store) -> None:
    for memory in (0, -1, "much"):
        with pytest.raises(ConfigError):
            stream(store, memory=memory)


# -- filled in parallel ------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [2, 5])
def test_any_number_of_threads_makes_the_same_file(tmp_path: Path, threads: int) -> None:
    rows = {str(number): 50 for number in range(12)}
    told: list[tuple[int, int]] = []
    alone = PackedCache(tmp_path / "alone", LAYOUT)
    many = PackedCache(tmp_path / "many", LAYOUT, threads=threads)
    meeting = threading.Barrier(2, timeout=30)

    def pack(name: str) -> list[np.ndarray]:
        if name in ("0", "1"):
            meeting.wait()  # passes only if two are packed at once
        return pieces(name)

    alone.ensure(rows, pieces)
    many.ensure(rows, pack, lambda done, of: told.append((done, of)))
    assert many.blocks() == alone.blocks()
    assert many.path.read_bytes() == alone.path.read_bytes()
    assert told == [(done, 12) for done in range(1, 13)]


def test_a_block_that_fails_stops_the_fill_and_leaves_no_gap(tmp_path: Path) -> None:
    cache = PackedCache(tmp_path, LAYOUT, threads=3)
    cache.ensure({"0": 50}, pieces)

    def pack(name: str) -> list[np.ndarray]:
        return pieces(name)[:1] if name == "2" else pieces(name)

    rows = {str(number): 50 for number in range(9)}
    with pytest.raises(DamagedStoreError, match="Expected 50 rows of the block 2, came 20"):
        cache.ensure(rows, pack)
    assert list(cache.blocks()) == ["0"]
    with pytest.raises(DamagedStoreError, match="came 50"):
        cache.ensure({"0": 50, "1": 30}, pieces)
    cache.ensure(rows, pieces)
    cache.verify(cache.open(list(cache.blocks().values())), cache.blocks())
    assert list(cache.blocks()) == list(rows)


def test_a_stream_tells_of_each_block_once(store: Store) -> None:
    told: list[tuple[int, int]] = []
    stream(store, progress=lambda done, of: told.append((done, of)))
    assert told == [(1, 1)]
    stream(store, progress=lambda done, of: told.append((done, of)))
    assert told == [(1, 1)]


# -- evicted -----------------------------------------------------------------------------------


def test_what_is_mapped_stays_and_the_rest_goes(store: Store, cache_dir: Path) -> None:
    reading = stream(store)
    stream(store, fields=["rewards"])
    busy, free = sorted(caches(cache_dir), key=lambda cached: not cached.in_use)
    assert (busy.in_use, free.in_use, free.store) == (True, False, store.id)
    deleted, kept = evict(cache_dir)
    assert [one.folder for one in deleted] == [free.folder]
    assert [one.folder for one in kept] == [busy.folder]
    next(reading)
    del reading
    gc.collect()
    assert [one.folder for one in evict(cache_dir)[0]] == [busy.folder]
    assert caches(cache_dir) == []
    next(stream(store))
    assert [one.folder for one in caches(cache_dir)] == [busy.folder]


def test_another_process_that_maps_a_cache_keeps_it(store: Store, cache_dir: Path) -> None:
    code = (
        "import sys; from pipeline.stream.loader import Stream\n"
        "held = Stream(sys.argv[1], framework='numpy'); print('open', flush=True); input()"
    )
    command = [sys.executable, "-c", code, store.url]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        assert evict(cache_dir)[0] == []
        process.communicate("\n")
    assert len(evict(cache_dir)[0]) == 1


def test_age_and_size_say_what_goes(tmp_path: Path) -> None:
    now = time.time()
    for age, name in enumerate(("new", "older", "oldest")):
        cache = PackedCache(tmp_path / "store" / name, LAYOUT)
        cache.ensure({"1": 50}, pieces)
        for file in cache.folder.iterdir():
            os.utime(file, (now, now - age * 86_400))
    size = 50 * LAYOUT.size
    assert [one.folder.name for one in caches(tmp_path)] == ["new", "older", "oldest"]
    assert evict(tmp_path, older_than=3 * 86_400, max_size=3 * size) == ([], [])
    deleted, _ = evict(tmp_path, max_size=2 * size)
    assert [one.folder.name for one in deleted] == ["oldest"]
    deleted, _ = evict(tmp_path, older_than=3_600)
    assert [one.folder.name for one in deleted] == ["older"]


def test_an_eviction_between_index_and_mapping_is_noticed(tmp_path: Path) -> None:
    evicted: list[Cached] = []

    class Evicted(PackedCache):
        def ensure(self, *args: Any) -> dict[str, CachedBlock]:
            found = super().ensure(*args)
            if not evicted:
                evicted.extend(evict(tmp_path)[0])
            return found

    cache = Evicted(tmp_path / "store" / "one", LAYOUT)
    known, records = cache.hold({"1": 50, "2": 50}, pieces)
    assert len(evicted) == 1
    cache.verify(records, known)
    np.testing.assert_array_equal(records[50:], numbered("2"))


def test_links_are_not_followed(tmp_path: Path) -> None:
    cache = PackedCache(tmp_path / "elsewhere" / "store" / "one", LAYOUT)
    cache.ensure({"1": 50}, pieces)
    (tmp_path / "root" / "store").mkdir(parents=True)
    (tmp_path / "root" / "store" / "linked").symlink_to(cache.folder)
    assert evict(tmp_path / "root") == ([], [])
    assert cache.path.exists()


def test_the_command_lists_and_clears(store: Store, cache_dir: Path) -> None:
    stream(store)
    listed = CliRunner().invoke(app, ["cache", "list", "--json"])
    (one,) = json.loads(listed.stdout)["caches"]
    assert (one["store"], one["in_use"]) == (store.id, False)
    assert store.id[:8] in CliRunner().invoke(app, ["cache", "list"]).stdout
    kept = CliRunner().invoke(app, ["cache", "clear", "--older-than", "30d", "--max-size", "1GB"])
    assert "deleted 0 caches" in kept.stdout
    cleared = CliRunner().invoke(app, ["cache", "clear", "--json"])
    assert json.loads(cleared.stdout) == {"deleted": [one], "in_use": []}
    assert caches(cache_dir) == []


# -- windowed ----------------------------------------------------------------------------------

WINDOWED: dict[str, dict[str, Any]] = {
    "transitions": {},
    "one chunk at a time": {"shuffle_window": 1},
    "all at once": {"shuffle_window": 99},
    "windows": {"window": 4, "history": 2, "frame_stack": 2},
    "goals": {"goals": {"final": 0.5, "geometric": 0.5}},
    "some fields": {"fields": ["observations", "rewards"]},
}


@pytest.fixture
def many(store: Store) -> Store:
    """A store whose version has 9 blocks and keeps a part of some episodes."""
    for start in range(30, 110, 10):
        store.append(made_episodes(range(start, start + 10), seed=start))
    kept = {"episode_id": ["e3", "e50", "e77"], "keep_start": [1, 2, 0], "keep_stop": [5, 9, 1]}
    store.version().annotate(pa.table(kept))
    return store


def sha_of(streams: list[Stream], steps: int) -> str:
    """Digest of the rows of global batches, in their order."""
    found = hashlib.sha256()
    for _ in range(steps):
        batches = [next(one) for one in streams]
        for name in sorted(batches[0]):
            found.update(np.concatenate([batch[name] for batch in batches]).tobytes())
    return found.hexdigest()


@pytest.mark.parametrize("name", WINDOWED)
def test_a_window_yields_the_same_rows_in_the_same_order(
    many: Store, tmp_path: Path, name: str
) -> None:
    form = {"sampler": "shuffle", "shuffle_window": 2, "batch_size": 24, **WINDOWED[name]}
    steps = 3 * stream(many, **form).transitions // 24  # three epochs
    whole = sha_of([stream(many, **form)], steps)
    form |= {"residency": "windowed", "cache_dir": tmp_path / "unused"}
    assert sha_of([stream(many, **form)], steps) == whole
    split = [stream(many, **form, rank=rank, world_size=3) for rank in range(3)]
    assert sha_of(split, steps) == whole
    assert not (tmp_path / "unused").exists()


def test_a_window_resumes_where_it_was(many: Store) -> None:
    form = {"sampler": "shuffle", "shuffle_window": 2, "batch_size": 24}
    first = stream(many, **form, residency="windowed")
    for _ in range(37):
        next(first)
    resumed = stream(many, **form)
    resumed.load_state_dict(first.state_dict())
    expected = sha_of([resumed], 30)
    again = stream(many, **form, residency="windowed")
    again.load_state_dict(first.state_dict())
    assert sha_of([again], 30) == sha_of([first], 30) == expected


def test_a_window_serves_mixtures_and_what_some_episodes_lack(many: Store) -> None:
    bare = [e.replace(rewards=None) for e in made_episodes(range(200, 210))]
    many.append(bare)
    form = {"sampler": "shuffle", "shuffle_window": 2, "batch_size": 24}

    def mixed(**more: Any) -> Mixture:
        streams = [(stream(many, **form, **more), 1.0), (stream(many, **form, **more), 2.0)]
        return Mixture(streams, batch_size=24, seed=1)

    mapped, windowed = mixed(), mixed(residency="windowed")
    for _ in range(60):
        mine, theirs = next(windowed), next(mapped)
        assert mine.keys() == theirs.keys() >= {"rewards_mask"}
        for key in mine:
            np.testing.assert_array_equal(mine[key], theirs[key], strict=True)


def numbered_into(name: str, records: np.ndarray) -> Pictures:
    records[...] = numbered(name)
    return Pictures()


def buffered(fill: Fill, blocks: int, window: int, memory: int = 10**9) -> WindowedRecords:
    """A buffer over blocks of 50 rows whose numbers are even; reading one takes as much again."""
    size = 50 * LAYOUT.size
    told = {str(number): WindowedBlock(2 * number, 50, size) for number in range(blocks)}
    return WindowedRecords(LAYOUT, LAYOUT, told, fill, Room(memory, window, 4))


def test_a_window_holds_no_more_than_its_budget() -> None:
    slot = 50 * LAYOUT.size
    held = buffered(numbered_into, 40, 2, 5 * slot)
    assert (held.slots, held.fetches, held.nbytes) == (4, 1, 4 * slot)
    random = np.random.default_rng(0)
    whole = np.concatenate([numbered(str(name)) for name in range(40)])
    for _ in range(30):  # of more blocks at once than there is room for, and in no order
        asked = random.integers(0, len(whole), (4, 9))
        np.testing.assert_array_equal(held.take(asked), whole[asked])
        held.expect(random.permutation(40)[:5] * 2)
    ample = buffered(numbered_into, 40, 2, 20 * slot)
    assert (ample.slots, ample.fetches) == (4, 4)
    scarce = buffered(numbered_into, 40, 2, 3 * slot)
    assert (scarce.slots, scarce.fetches) == (2, 1)
    with pytest.raises(UsageError, match="shuffle_window= to 4 or less"):
        buffered(numbered_into, 40, 6, 5 * slot)
    with pytest.raises(UsageError, match="set memory= larger"):
        buffered(numbered_into, 40, 4, 10)


@given(
    sizes=st.lists(st.integers(0, 700), min_size=1, max_size=60).filter(any),
    entries=st.sampled_from([1, 16, 1 << 16]),
)
def test_the_block_of_each_row_is_found(sizes: list[int], entries: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owners, "ENTRIES", entries)
        told = {str(at): WindowedBlock(at, size, 0) for at, size in enumerate(sizes)}

        def fill(name: str, records: np.ndarray) -> Pictures:
            records[...] = int(name)
            return Pictures()

        held = WindowedRecords(LAYOUT, LAYOUT, told, fill, Room(10**9, 99, 1))
        rows = np.random.default_rng(0).permutation(sum(sizes))
        owner = np.repeat(np.arange(len(sizes)), sizes)
        assert (held.take(rows)[:, 0] == owner[rows]).all()


def test_what_comes_next_is_fetched_before_it_is_asked_for() -> None:
    fetched = {str(number): threading.Event() for number in range(6)}

    def fill(name: str, records: np.ndarray) -> Pictures:
        fetched[name].set()
        return numbered_into(name, records)

    held = buffered(fill, 6, 2)
    held.expect(np.array([2, 6]))
    assert fetched["1"].wait(30)
    assert fetched["3"].wait(30)
    held.take(np.array([50, 160]))
    assert not any(fetched[name].is_set() for name in "0245")


def test_a_fetch_that_fails_is_told_and_tried_again() -> None:
    failures = [OSError("the network is gone")]

    def fill(name: str, records: np.ndarray) -> Pictures:
        if name == "1" and failures:
            raise failures.pop()
        return numbered_into(name, records)

    held = buffered(fill, 2, 2)
    with pytest.raises(OSError, match="network"):
        held.take(np.array([3, 77]))
    np.testing.assert_array_equal(held.take(np.array([77])), numbered("1")[27:28])


def test_an_epoch_reads_each_block_once(many: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def counted(version: Version, block: Block, fields: Iterable[str]) -> dict[str, Rows]:
        read.append(block.id)
        return read_fields(version, block, fields)

    monkeypatch.setattr(fetching, "read_fields", counted)
    # Several batches are gathered at once, some of them beyond the end of a group of chunks.
    made = stream(many, sampler="shuffle", shuffle_window=2, batch_size=7, residency="windowed")
    slots = made.feed.at(0).windowed.slots  # type: ignore[union-attr]
    for _ in range(2 * made.transitions // 7):
        next(made)
    assert slots == 4
    assert len(read) <= 2 * 9 + slots


def test_a_window_is_refused_where_it_is_not_enough(store: Store) -> None:
    with pytest.raises(ConfigError, match="sampler='shuffle'"):
        stream(store, residency="windowed")
    for more in ({"n_step": 2}, {"returns": "to_go"}, {"goals": "random"}):
        with pytest.raises(ConfigError, match="rows of all chunks"):
            stream(store, residency="windowed", sampler="shuffle", **more)
    said = stream(store, residency="windowed", sampler="shuffle").describe()
    assert "a buffer of 1 chunks" in said


def test_a_forked_process_has_threads_of_its_own(many: Store) -> None:
    code = (
        "import os, sys; from pipeline.stream.loader import Stream\n"
        "made = Stream(sys.argv[1], framework='numpy', sampler='shuffle', shuffle_window=1,\n"
        "              residency='windowed'); next(made); child = os.fork()\n"
        "for _ in range(40): next(made)\n"
        "sys.exit(os.waitpid(child, 0)[1] if child else 0)"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, many.url]
    assert subprocess.run(command, cwd=ROOT, timeout=60, check=False).returncode == 0
