"""The small parts that connectors share: units, facts, files, next rows, spaces, Arrow files."""

from __future__ import annotations

import datetime as dt
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.arrow_files import read_ipc, read_parquet
from connectors.base import UNIT_STEPS
from connectors.facts import episode_facts, scalar, stated_facts
from connectors.files import fingerprint, new_dataset
from connectors.minari_spaces import box_json, leaves, parse_space
from connectors.next_rows import breaks, differing_rows, with_finals
from connectors.units import NARROW_BYTES, UNIT_BYTES, plan_units
from schemas.errors import SourceError, UsageError
from tests.connectors.makers import toy_episode


@given(st.lists(st.integers(0, 70_000), max_size=40))
def test_units_cover_all_episodes_in_order(lengths: list[int]) -> None:
    units = plan_units(lengths)
    position = 0
    for start, stop, steps in units:
        assert start == position < stop
        assert steps == sum(lengths[start:stop])
        assert steps <= UNIT_STEPS or stop == start + 1
        position = stop
    assert position == len(lengths)


def test_units_of_narrow_rows_hold_more_steps_but_no_more_bytes() -> None:
    lengths = [1000] * 1000
    assert max(steps for _, _, steps in plan_units(lengths, 100)) == 262_000
    assert max(steps for _, _, steps in plan_units(lengths, 200)) == NARROW_BYTES // 200_000 * 1000
    assert max(steps for _, _, steps in plan_units(lengths, 2000)) == 65_000


def test_units_of_images_hold_fewer_steps() -> None:
    frame = 84 * 84 * 3
    assert plan_units([100] * 50) == [(0, 50, 5000)]
    units = plan_units([1000] * 50, frame)
    assert all(steps * frame <= UNIT_BYTES for _, _, steps in units)
    assert len(units) == 5


def test_facts_that_fit_and_columns_that_do_not() -> None:
    found = episode_facts(
        {
            "task": "push",
            "policy": 3,
            "kind": "rollout",
            "seed": 2**63,
            "success": 2,
            "fps": -1,
            "collected_at": "2024-05-01T10:00:00+02:00",
            "digest": "mine",
            "_row": 1,
            "source_digest": "taken",
            "operator": ["a", 1],
            "note": None,
        }
    )
    time = dt.datetime(2024, 5, 1, 8, tzinfo=dt.UTC)
    assert (found["task"], found["kind"], found["collected_at"]) == ("push", "rollout", time)
    assert found["columns"] == {
        "source_policy": 3,
        "source_seed": 2**63,
        "source_success": 2,
        "source_fps": -1,
        "source_digest": "mine",
        "source__row": 1,
        "source_source_digest": "taken",
        "operator": '["a", 1]',
        "note": None,
    }
    assert scalar({"a": 1}) == '{"a": 1}'


def test_facts_come_back_from_what_they_state() -> None:
    episode = toy_episode(
        task="t",
        kind="synthetic",
        policy="p",
        policy_version="1",
        seed=0,
        success=False,
        fps=12.5,
        collected_at=dt.datetime(2024, 5, 1, 10, 30, 0, 123456, tzinfo=dt.UTC),
        columns={"x": 1, "y": None},
    )
    again = toy_episode(**episode_facts(stated_facts(episode)))
    for name in ("task", "kind", "policy", "policy_version", "seed", "success", "fps"):
        assert getattr(again, name) == getattr(episode, name)
    assert again.collected_at == episode.collected_at
    assert again.columns == episode.columns


def test_fingerprints_change_with_size_time_and_names(tmp_path: Path) -> None:
    one, two = tmp_path / "a", tmp_path / "b"
    one.write_text("x")
    two.write_text("y")
    seen = {fingerprint(tmp_path, [one, two])}
    assert fingerprint(tmp_path, [two, one]) in seen
    os.utime(one, ns=(0, 1))
    seen.add(fingerprint(tmp_path, [one, two]))
    one.write_text("xx")
    os.utime(one, ns=(0, 1))
    seen.add(fingerprint(tmp_path, [one, two]))
    seen.add(fingerprint(tmp_path, [one]))
    seen.add(fingerprint(tmp_path, [one, two.rename(tmp_path / "c")]))
    assert len(seen) == 5


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_new_dataset_appears_whole_or_not_at_all(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "deep" / "x"

    def fill(draft: Path) -> None:
        if kind == "folder":
            draft.mkdir()
            draft = draft / "inside"
        draft.write_text("all of it")
        assert not target.exists()

    def fail() -> None:
        with new_dataset(str(target)) as draft:
            fill(draft)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(target.parent.iterdir()) == []
    with new_dataset(str(target)) as draft:
        fill(draft)
    assert [p.name for p in target.parent.iterdir()] == ["x"]
    with pytest.raises(UsageError, match="exists already"), new_dataset(str(target)):
        pytest.fail("an existing target was opened")


def test_a_target_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "x"

    def lose() -> None:
        with new_dataset(str(target)) as draft:
            draft.write_text("late")
            target.write_text("first")

    with pytest.raises(UsageError, match="exists already"):
        lose()
    assert target.read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_next_rows_by_hand() -> None:
    observations = np.array([[0.0], [1.0], [2.0], [np.nan], [4.0]])
    following = np.array([[1.0], [9.0], [np.nan], [5.0], [6.0]])
    assert breaks(observations, following).tolist() == [False, True, False, True, False]
    assert differing_rows(observations, observations).tolist() == [False] * 5
    joined = with_finals(observations, following, np.array([2, 5]))
    np.testing.assert_array_equal(joined[:, 0], [0, 1, 9, 2, np.nan, 4, 6])
    assert breaks(np.zeros((0, 2)), np.zeros((0, 2))).shape == (0,)
    assert differing_rows(np.array([1, 2]), np.array([1, 3])).tolist() == [False, True]


def test_spaces_of_arrays_are_read_back() -> None:
    value = {
        "a": np.zeros((3, 2), np.float32),
        "b": (np.zeros(3, bool), np.zeros((3, 1), np.uint8)),
    }
    import json

    space = parse_space(json.dumps(box_json(value)), "here")
    found = {name: (leaf.dtype, leaf.shape) for name, leaf in leaves(space, "observations")}
    assert found == {
        "observations/a": ("float32", (2,)),
        "observations/b/0": ("bool", ()),
        "observations/b/1": ("uint8", (1,)),
    }


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[]",
        '{"type": "Box", "dtype": "float32"}',
        '{"type": "Box", "dtype": "float32", "shape": [-1]}',
        '{"type": "Box", "dtype": "nothing", "shape": [1]}',
        '{"type": "Tuple", "subspaces": 3}',
        '{"type": "Dict", "subspaces": [1]}',
        '{"type": "MultiBinary", "n": "x"}',
        '{"type": "Tuple", "subspaces": [' * 40 + '{"type": "Discrete", "n": 1}' + "]}" * 40,
        "[" * 100_000,
    ],
    ids=lambda text: text[:40],
)
def test_spaces_that_are_none(text: str) -> None:
    with pytest.raises(SourceError, match="Expected a space as JSON text in here"):
        parse_space(text, "here")


def ipc_file(path: Path, table: pa.Table, **options: Any) -> Path:
    with pa.ipc.new_file(
        str(path), table.schema, options=pa.ipc.IpcWriteOptions(**options)
    ) as file:
        file.write_table(table)
    return path


def test_arrow_files_take_no_memory_of_their_own(tmp_path: Path) -> None:
    table = pa.table({"x": np.arange(100_000), "y": [[1.0, 2.0]] * 100_000})
    path = ipc_file(tmp_path / "x.arrow", table)
    del table
    before = pa.total_allocated_bytes()
    read = read_ipc(path)
    assert read.num_rows == 100_000
    assert pa.total_allocated_bytes() - before < 10_000


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_compressed_arrow_files_are_refused_before_they_inflate(tmp_path: Path, codec: str) -> None:
    table = pa.table({"x": np.zeros(30_000_000, np.uint8)})
    path = ipc_file(tmp_path / "x.arrow", table, compression=codec)
    del table
    before = pa.total_allocated_bytes()
    with pytest.raises(SourceError, match="they are compressed"):
        read_ipc(path)
    assert pa.total_allocated_bytes() - before < 1_000_000


def test_dictionaries_are_refused(tmp_path: Path) -> None:
    table = pa.table({"x": pa.array(["a", "b", "a"]).dictionary_encode()})
    with pytest.raises(SourceError, match="dictionaries"):
        read_ipc(ipc_file(tmp_path / "x.arrow", table))


def test_parquet_that_claims_too_much_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"x": np.zeros(20_000_000)}), path, compression="zstd")
    assert path.stat().st_size * 200 < 160_000_000
    with pytest.raises(SourceError, match="decompression bomb"):
        read_parquet(path)


@pytest.mark.parametrize("keep", [0, 8, 20, 300, -1, -10])
def test_truncated_arrow_and_parquet_files(tmp_path: Path, keep: int) -> None:
    table = pa.table({"x": np.arange(500)})
    arrow, parquet = ipc_file(tmp_path / "x.arrow", table), tmp_path / "x.parquet"
    pq.write_table(table, parquet)
    for path, read in ((arrow, read_ipc), (parquet, read_parquet)):
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(SourceError, match="Expected a whole Arrow"):
            read(path)


def test_flipped_bytes_never_end_the_process(tmp_path: Path) -> None:
    lists = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(60.0)), 3)
    table = pa.table({"x": pa.StructArray.from_arrays([lists], ["a"]), "t": ["text"] * 20})
    data = ipc_file(tmp_path / "x.arrow", table).read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        harmed = bytearray(data)
        for position in rng.integers(8, len(data), 3):
            harmed[position] = rng.integers(256)
        (tmp_path / "y.arrow").write_bytes(harmed)
        try:
            read_ipc(tmp_path / "y.arrow").to_pylist()
        except SourceError:
            refused += 1
    assert refused > 50
