"""What goes in comes out, bit for bit, through tails and through shards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.store import blocks
from pipeline.store.store import open_store
from schemas.arrow import table_to_rows
from schemas.episode import Episode
from schemas.identity import digest
from schemas.rows import layout_of, to_rows
from tests.store.makers import episode, ids_of, names
from tests.strategies import assert_same_episode, episodes, same_array

LAYOUT = layout_of(episode("e"))
TAIL_ROWS = blocks.tail_rows(LAYOUT)
SHARD_ROWS = blocks.block_rows(LAYOUT)


def test_limits_of_low_dimensional_and_image_blocks() -> None:
    assert (TAIL_ROWS, SHARD_ROWS) == (4096, 65536)
    frames = layout_of(Episode("e", np.zeros((2, 8, 8, 3), np.uint8)))
    assert (blocks.tail_rows(frames), blocks.block_rows(frames)) == (128, 2048)
    wide = layout_of(Episode("e", np.zeros((2, 480, 640, 3), np.uint8)))
    assert blocks.block_rows(wide) * wide.row_bytes <= blocks.MAX_SHARD_BYTES


@settings(max_examples=25)
@given(one=episodes())
def test_any_episode_through_a_tail_and_a_shard(one: Episode) -> None:
    layout, rows = layout_of(one), to_rows(one)
    found, table = blocks.open_tail(blocks.encode_tail(rows, layout))
    assert found == layout
    tail = table_to_rows(table, layout.fields)
    paths = blocks.node_paths(layout.fields)
    shard = blocks.decode_shard(blocks.encode_shard(rows, layout), layout.fields, paths)
    for name, array in rows.items():
        assert same_array(tail[name], array), name
        assert same_array(shard[name], array), name


@pytest.mark.parametrize(
    ("rows", "container"),
    [(TAIL_ROWS - 1, "tail"), (TAIL_ROWS, "shard"), (TAIL_ROWS + 1, "shard")],
)
def test_sizes_around_the_smallest_shard(tmp_path: Path, rows: int, container: str) -> None:
    store = open_store(tmp_path / "s", create=True)
    first, second = episode("a", rows - 101), episode("b", 99)
    version = store.append([first, second])
    part = version.state.parts[0]
    assert [(block.container, block.rows) for block in part.blocks] == [(container, rows)]
    again = open_store(tmp_path / "s").version()
    assert_same_episode(again.episode("a"), first)
    assert_same_episode(again.episode("b"), second)


@pytest.mark.parametrize(
    ("lengths", "rows"),
    [
        ([SHARD_ROWS - 10 - 1, 9], [SHARD_ROWS]),
        ([SHARD_ROWS - 10 - 1, 10], [SHARD_ROWS - 10, 11]),
        ([5, 2 * SHARD_ROWS, 7], [6, 2 * SHARD_ROWS + 1, 8]),
    ],
)
def test_sizes_around_a_full_shard(tmp_path: Path, lengths: list[int], rows: list[int]) -> None:
    store = open_store(tmp_path / "s", create=True)
    offered = [
        Episode(f"e{k}", np.arange(steps + 1) * (k + 1), rewards=np.full(steps, float(k)))
        for k, steps in enumerate(lengths)
    ]
    version = store.append(offered)
    assert [block.rows for block in version.state.parts[0].blocks] == rows
    assert ids_of(version) == names(len(lengths))
    for one, other in zip(
        offered, open_store(tmp_path / "s").version().iter_episodes(), strict=True
    ):
        assert_same_episode(other, one)


def test_images_fill_shards(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    store = open_store(tmp_path / "s", create=True)
    offered = [
        Episode(f"e{k}", {"camera": rng.integers(0, 255, (steps + 1, 6, 5, 3), np.uint8)})
        for k, steps in enumerate((1500, 600, 90))
    ]
    version = store.append(offered)
    assert [block.container for block in version.state.parts[0].blocks] == ["shard", "shard"]
    for one in offered:
        assert_same_episode(version.episode(one.episode_id), one)
    store.append([late := Episode("tail", {"camera": np.ones((20, 6, 5, 3), np.uint8)})])
    assert store.version().state.parts[1].blocks[0].container == "tail"
    assert_same_episode(store.version().episode("tail"), late)


def test_many_layouts_keep_the_order_of_the_input(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s", create=True)
    offered = []
    for number in range(30):
        changes = [{}, {"rewards": None}, {"actions": None}, {"extras": {"q": np.zeros(5)}}]
        offered.append(episode(f"e{number}", **changes[number % 4]))
    version = store.append(offered)
    assert len(version.state.parts[0].blocks) == 4
    assert ids_of(version) == names(30)
    for one, other in zip(offered, version.iter_episodes(), strict=True):
        assert_same_episode(other, one)


@settings(max_examples=15)
@given(found=st.lists(episodes(), min_size=1, max_size=3))
def test_any_episodes_through_a_store(
    tmp_path_factory: pytest.TempPathFactory, found: list[Episode]
) -> None:
    folder = tmp_path_factory.mktemp("s")
    for number, one in enumerate(found):  # columns of one type per store are kept as they are
        store = open_store(folder / f"s{number}", create=True)
        row = store.append([one]).episodes()
        back = open_store(folder / f"s{number}").version().episode(one.episode_id)
        assert_same_episode(back, one)
        assert digest(back) == digest(one) == row["digest"][0].as_py()


ODD_NAMES = (
    "..",
    ".",
    "a\\b",
    "zarr.json",
    "__x",
    "c",
    "a\0b",
    "n" * 300,
    "",
    "~",
    "é²",
    "a:b",
    "%2F",
)


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_field_names_in_a_shard(tmp_path: Path, name: str) -> None:
    store = open_store(tmp_path / "s", create=True)
    one = Episode("e", {name: np.arange(5000.0), "state": np.ones(5000)})
    store.append([one])
    assert store.version().state.parts[0].blocks[0].container == "shard"
    assert_same_episode(open_store(tmp_path / "s").version().episode("e"), one)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s"]


def test_odd_names_never_meet() -> None:
    fields = [f"observations/{name}" for name in (*ODD_NAMES, "a/b", "%", "%%", "%2E.", "a%5Cb")]
    fields += ["extras/a", "extras/a/b", "extras/a%2Fb", "extras/a/b/c"]
    paths = blocks.node_paths(fields)
    assert len({path.lower() for path in paths.values()}) == len(fields)
    assert paths["extras/a/b"] == "extras/a%2Fb"
    for path in paths.values():
        parts = path.split("/")
        assert not {"", ".", "..", "zarr.json"} & set(parts)
        assert all(len(part.encode()) < 200 for part in parts)
        assert not any(other != path and other.startswith(f"{path}/") for other in paths.values())


def test_an_extra_below_another_extra(tmp_path: Path) -> None:
    one = Episode(
        "e",
        np.zeros(5000),
        extras={"r": np.ones(4999), "r/ctrl": np.zeros(4999), "r/x/y": np.ones(5000)},
    )
    store = open_store(tmp_path / "s", create=True)
    assert_same_episode(store.append([one]).episode("e"), one)


def test_episodes_read_are_the_callers_own(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s", create=True)
    version = store.append([episode(name) for name in names(6)])
    for read in (version.episode("e0"), next(version.iter_episodes())):
        for array in read.arrays.values():
            array[...] = 0
    assert_same_episode(version.episode("e0"), episode("e0"))
