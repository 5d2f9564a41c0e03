"""An episode as a table is the same episode, bit for bit."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings

from schemas.arrow import (
    arrow_schema,
    episode_from_table,
    episode_to_table,
    layout_from_json,
    layout_to_json,
    table_layout,
)
from schemas.episode import Episode
from schemas.errors import EpisodeError
from schemas.identity import digest
from schemas.rows import layout_of, to_rows
from tests.strategies import assert_same_episode, episodes


@settings(max_examples=100)
@given(episode=episodes())
def test_round_trip(episode: Episode) -> None:
    table = episode_to_table(episode)
    assert table.num_rows == episode.length + 1
    back = episode_from_table(through_a_file(table))
    assert_same_episode(back, episode)
    assert digest(back) == digest(episode)


def through_a_file(table: pa.Table) -> pa.Table:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return pa.ipc.open_file(sink.getvalue()).read_all()


@settings(max_examples=40)
@given(episode=episodes())
def test_layouts_as_json(episode: Episode) -> None:
    layout = layout_of(episode)
    assert layout_from_json(layout_to_json(layout)) == layout
    assert table_layout(episode_to_table(episode)) == layout


@settings(max_examples=40)
@given(episode=episodes())
def test_padding_is_what_it_says(episode: Episode) -> None:
    rows = to_rows(episode)
    steps = episode.length
    assert {len(array) for array in rows.values()} == {steps + 1}
    np.testing.assert_array_equal(rows["valid"], np.arange(steps + 1) < steps)
    np.testing.assert_array_equal(rows["observation_valid"][:-1], True)
    assert rows["observation_valid"][-1] == (episode.final_observation == "present")
    for name, array in episode.arrays.items():
        assert rows[name][: len(array)].tobytes() == np.ascontiguousarray(array).tobytes()
        pad = rows[name][len(array) :]
        assert np.isnan(pad).all() if array.dtype.kind == "f" else not pad.any()


def test_columns_are_open_to_any_arrow_reader() -> None:
    episode = Episode("e", np.arange(8, dtype=np.float32).reshape(4, 2), rewards=np.ones(3))
    table = episode_to_table(episode)
    assert table.schema.field("observations").type == pa.list_(pa.float32(), 2)
    assert table["observations"].to_pylist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert table.schema == arrow_schema(layout_of(episode))
    assert table["rewards"].to_pylist()[:3] == [1, 1, 1]


def test_a_slice_of_rows_is_not_shifted() -> None:
    image = np.arange(5 * 2 * 3, dtype=np.uint8).reshape(5, 2, 3)
    table = episode_to_table(Episode("e", image)).slice(2, 2)
    from schemas.arrow import table_to_rows

    layout = table_layout(table)
    rows = table_to_rows(table, layout.fields)
    np.testing.assert_array_equal(rows["observations"], image[2:4])


def test_a_table_of_another_maker_is_refused() -> None:
    with pytest.raises(EpisodeError) as caught:
        episode_from_table(pa.table({"observations": [1.0]}))
    assert caught.value.code == "unreadable"
