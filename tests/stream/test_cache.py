"""The packed cache: grows, survives kills and races, and is never trusted blindly."""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.store.store import Store, open_store
from pipeline.stream.cache import PackedCache
from pipeline.stream.loader import Stream
from pipeline.stream.record import FLAGS, pack, plan_record
from schemas.errors import DamagedCacheError, DiskFullError, UsageError
from schemas.spec import FieldSpec
from tests.stream.conftest import made_episodes
from tests.stream.filling import LAYOUT, numbered, pieces

ROOT = Path(__file__).resolve().parents[2]


def stream(store: Store, **settings: object) -> Stream:
    return Stream(store.version(), framework="numpy", **settings)  # type: ignore[arg-type]


def cache_files(cache_dir: Path) -> tuple[Path, Path]:
    (records,) = cache_dir.glob("*/*/rows.bin")
    return records, records.with_name("index.json")


# -- records -----------------------------------------------------------------------------------

DTYPES = st.sampled_from(["|b1", "|u1", "<i2", "<u2", "<f2", "<i4", "<f4", "<i8", "<u8", "<f8"])
SHAPES = st.lists(st.integers(0, 4), max_size=2).map(tuple)
FIELDS = st.dictionaries(
    st.sampled_from(["observations/a", "observations/b", "actions", "rewards", "extras/x"]),
    st.builds(FieldSpec, DTYPES, SHAPES),
    min_size=1,
)


@given(fields=FIELDS, rows=st.integers(1, 5), seed=st.integers(0, 99))
def test_every_field_comes_back_as_it_went_in(
    fields: dict[str, FieldSpec], rows: int, seed: int
) -> None:
    layout = plan_record(fields, "keep")
    random = np.random.default_rng(seed)
    arrays = {
        name: random.integers(0, 2, (rows, *field.shape)).astype(field.numpy_dtype)
        for name, field in fields.items()
    }
    flags = {name: random.random(rows) < 0.5 for name in ("terminated", "truncated")}
    records = pack(layout, {**arrays, **flags, "observation_valid": np.ones(rows, bool)})
    assert records.shape == (rows, layout.words)
    assert layout.size % 64 == 0
    spans = np.ascontiguousarray(np.stack([records, records[::-1]], axis=1))
    for name, array in {**arrays, **flags}.items():
        found = layout.view(spans, name)
        np.testing.assert_array_equal(found, array, strict=True)
        np.testing.assert_array_equal(layout.view(spans, name, ahead=1), array[::-1], strict=True)
        assert found.size == 0 or np.shares_memory(found, spans)
    for field in layout.fields:
        assert field.offset % np.dtype(field.dtype).itemsize == 0
        assert field.dtype == field.source_dtype
    assert layout.view(records[:, None], "has_rewards").all() == ("rewards" in fields)


def test_floats_are_cast_and_integers_are_not() -> None:
    fields = {
        "observations/state": FieldSpec("<f8", (2,)),
        "observations/stamp": FieldSpec("<i8", ()),
        "observations/image": FieldSpec("|u1", (4, 4, 3)),
        "actions": FieldSpec("<f2", (1,)),
    }
    dtypes = {f.name: f.dtype for f in plan_record(fields, "float32").fields}
    assert dtypes == {
        "observations/state": "<f4",
        "observations/stamp": "<i8",
        "observations/image": "|u1",
        "actions": "<f4",
        **dict.fromkeys(FLAGS, "|b1"),
    }


def test_a_hopper_row_is_one_cache_line() -> None:
    fields = {
        "observations": FieldSpec("<f8", (11,)),
        "actions": FieldSpec("<f4", (3,)),
        "rewards": FieldSpec("<f8", ()),
    }
    assert plan_record(fields, "float32").size == 64


def test_values_beyond_the_dtype_are_refused() -> None:
    layout = plan_record({"rewards": FieldSpec("<f8", ())}, "float32")
    flags = dict.fromkeys(("terminated", "truncated", "observation_valid"), np.ones(2, bool))
    with pytest.raises(UsageError, match=r"'rewards'.*float64"):
        pack(layout, {"rewards": np.array([1.0, 1e200]), **flags})
    pack(layout, {"rewards": np.array([np.inf, np.nan]), **flags})


def test_encoded_fields_are_refused_by_name() -> None:
    for field in (FieldSpec("str", (), "text"), FieldSpec("<f4", (-1, 2), "ragged")):
        with pytest.raises(UsageError, match=r"'observations/x' as .*(text|ragged)"):
            plan_record({"observations/x": field}, "float32")


# -- growing -----------------------------------------------------------------------------------


def test_a_new_version_adds_blocks_and_leaves_the_rest(store: Store, cache_dir: Path) -> None:
    stream(store)
    records, index = cache_files(cache_dir)
    before, known = records.read_bytes(), json.loads(index.read_text())["blocks"]
    store.append(made_episodes(range(30, 40)))
    stream(store)
    after = records.read_bytes()
    assert after.startswith(before)
    assert len(after) > len(before)
    assert cache_files(cache_dir) == (records, index)
    grown = json.loads(index.read_text())["blocks"]
    assert grown.items() > known.items()


def test_a_warm_cache_reads_nothing_from_the_store(
    store: Store, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = next(stream(store))
    monkeypatch.setattr(
        "pipeline.stream.source.pack_pieces", lambda *_: pytest.fail("packed again")
    )
    again = next(stream(open_store(store.url)))
    np.testing.assert_array_equal(first["observations"], again["observations"])


def test_fields_and_dtypes_have_files_of_their_own(store: Store, cache_dir: Path) -> None:
    one = next(stream(store))
    two = next(stream(store, dtype="float64"))
    three = next(stream(store, fields=["observations"]))
    assert len(list(cache_dir.glob("*/*/rows.bin"))) == 3
    assert one["observations"].dtype == np.float32
    assert two["observations"].dtype == two["discounts"].dtype == np.float64
    assert "rewards" not in three


def test_bytes_past_the_index_are_overwritten(store: Store, cache_dir: Path) -> None:
    before = next(stream(store))
    records, _ = cache_files(cache_dir)
    with records.open("ab") as file:
        file.write(b"\xff" * 1_000_000)
    store.append(made_episodes(range(30, 33)))
    grown = stream(store)
    assert grown.transitions > 0
    batch = [next(grown) for _ in range(30)]
    assert all(np.isfinite(one["observations"]).all() for one in batch)
    np.testing.assert_array_equal(
        next(Stream(store.version("main:1"), framework="numpy"))["observations"],
        before["observations"],
    )


# -- kills, races, full disks ------------------------------------------------------------------


def fill(folder: Path, pause: float, names: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.stream.filling", str(folder), str(pause), *names]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def check_contents(cache: PackedCache, names: list[str]) -> None:
    blocks = cache.blocks()
    records = cache.open(list(blocks.values()))
    PackedCache(cache.folder, LAYOUT).verify(records, blocks)
    assert sorted(blocks) == sorted(names)
    for name, block in blocks.items():
        rows = records[block.start : block.start + block.rows]
        np.testing.assert_array_equal(rows, numbered(name))


@pytest.mark.parametrize("saved", [1, 7])
def test_a_fill_that_is_killed_goes_on_where_its_index_ends(tmp_path: Path, saved: int) -> None:
    names = [str(number) for number in range(40)]
    process = fill(tmp_path, 0.01, names)
    assert process.stdout is not None
    while int(process.stdout.readline()) < saved:
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    cache = PackedCache(tmp_path, LAYOUT)
    survived = cache.blocks()
    assert saved <= len(survived) < 40
    check_contents(cache, list(survived))
    packed: list[str] = []

    def pack_one(name: str) -> list[np.ndarray]:
        packed.append(name)
        return pieces(name)

    cache.ensure(dict.fromkeys(names, 50), pack_one)
    assert packed == [name for name in names if name not in survived]
    check_contents(cache, names)


@pytest.mark.parametrize("seed", range(20 if os.environ.get("PENSTOCK_LONG") else 1))
def test_fillers_that_are_killed_at_any_moment_leave_a_cache_to_complete(
    tmp_path: Path, seed: int
) -> None:
    random = np.random.default_rng(seed)
    names = [str(number) for number in range(100)]
    several = [fill(tmp_path, 0.02, list(random.permutation(names))) for _ in range(3)]
    told = {process.stdout: process for process in several if process.stdout is not None}
    while told:
        (packs, *_), _, _ = select.select(list(told), [], [])  # the others wait for it
        time.sleep(random.uniform(0, 0.1))
        process = told.pop(packs)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    survived = PackedCache(tmp_path, LAYOUT).blocks()
    assert 3 <= len(survived) < 100
    check_contents(PackedCache(tmp_path, LAYOUT), list(survived))
    whole = fill(tmp_path, 0, names)
    whole.communicate()
    assert whole.returncode == 0
    check_contents(PackedCache(tmp_path, LAYOUT), names)
    assert (tmp_path / "rows.bin").stat().st_size == 100 * 50 * LAYOUT.size
    assert {file.name for file in tmp_path.iterdir()} == {"index.json", "lock", "rows.bin"}


def test_two_processes_that_fill_at_once_pack_each_block_once(tmp_path: Path) -> None:
    names = [str(number) for number in range(12)]
    both = [fill(tmp_path, 0.02, names), fill(tmp_path, 0.02, names[::-1])]
    done = [process.communicate()[0].split() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(map(len, done)) == [0, 12]
    check_contents(PackedCache(tmp_path, LAYOUT), names)
    assert (tmp_path / "rows.bin").stat().st_size == 12 * 50 * LAYOUT.size


def test_a_full_disk_is_an_error_that_keeps_what_was_there(tmp_path: Path) -> None:
    cache = PackedCache(tmp_path, LAYOUT)
    cache.ensure({"1": 50}, pieces)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, hard))
    try:
        with pytest.raises(DiskFullError, match="PENSTOCK_CACHE") as caught:
            cache.ensure({"1": 50, "2": 50}, pieces)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert caught.value.exit_code == 5
    check_contents(cache, ["1"])
    cache.ensure({"1": 50, "2": 50}, pieces)
    check_contents(cache, ["1", "2"])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_real_disk_that_is_full_breaks_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "none", str(disk)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        cache = PackedCache(disk / "cache", LAYOUT)
        cache.ensure({"1": 50}, pieces)
        rows = dict.fromkeys(map(str, range(1, 100)), 50)
        for _ in range(2):
            with pytest.raises(DiskFullError, match="penstock cache clear"):
                cache.ensure(rows, pieces)
        check_contents(cache, list(cache.blocks()))
        assert "1" in cache.blocks()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="PENSTOCK_CACHE"):
        PackedCache(tmp_path / "file" / "cache", LAYOUT).ensure({"1": 50}, pieces)


# -- damage ------------------------------------------------------------------------------------


def test_a_flipped_bit_is_found_when_the_block_is_opened(store: Store, cache_dir: Path) -> None:
    stream(store)
    records, _ = cache_files(cache_dir)
    with records.open("r+b") as file:
        file.seek(1234)
        byte = file.read(1)[0]
        file.seek(1234)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(DamagedCacheError, match="delete the folder") as caught:
        stream(store)
    assert caught.value.exit_code == 6
    stream(store, verify=False)


@pytest.mark.parametrize("damage", ["short", "absent", "garbled"])
def test_files_that_do_not_fit_are_found(store: Store, cache_dir: Path, damage: str) -> None:
    stream(store)
    records, index = cache_files(cache_dir)
    if damage == "short":
        os.truncate(records, records.stat().st_size - 64)
    elif damage == "absent":
        records.unlink()
    else:
        index.write_text(index.read_text()[:-10])
    with pytest.raises(DamagedCacheError, match="delete the folder"):
        stream(store)


def test_deleting_the_cache_heals_and_leaves_readers_alone(store: Store, cache_dir: Path) -> None:
    reading = stream(store)
    expected = [next(stream(store))["observations"]]
    for file in cache_files(cache_dir):
        file.unlink()
    np.testing.assert_array_equal(next(reading)["observations"], expected[0])
    np.testing.assert_array_equal(next(stream(store))["observations"], expected[0])


def test_the_cache_lies_where_it_is_told_to(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream(store, cache_dir=tmp_path / "chosen")
    assert list((tmp_path / "chosen" / store.id).iterdir())
    monkeypatch.delenv("PENSTOCK_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    stream(store)
    assert list((tmp_path / "home" / ".cache" / "penstock" / store.id).iterdir())
