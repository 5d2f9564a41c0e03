"""Episode rows as tables: the sources' own columns stand beside the facts, none is lost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from schemas.episode import Episode
from schemas.identity import digest
from schemas.table import (
    FACT_COLUMNS,
    PLACE_COLUMNS,
    concat,
    episode_row,
    own_columns,
    rows_to_table,
    stored_name,
)


def table_of(*columns: dict[str, Any], **labels: Any) -> pa.Table:
    episodes = [Episode("e", np.zeros((2, 1)), columns=one, labels=labels) for one in columns]
    return rows_to_table([episode_row(episode) for episode in episodes])


def test_facts_of_a_row() -> None:
    episode = Episode(
        "e", np.zeros((3, 1)), rewards=np.array([1.5, 2]), terminated=True, success=True, task="t"
    )
    row = rows_to_table([episode_row(episode, block="b", row=7)]).to_pylist()[0]
    assert list(row) == [*FACT_COLUMNS.names, *PLACE_COLUMNS.names]
    assert row["length"] == 2
    assert row["episode_return"] == 3.5
    assert (row["terminated"], row["truncated"], row["success"]) == (True, False, True)
    assert row["digest"] == digest(episode)
    assert (row["_block"], row["_row"]) == ("b", 7)
    assert row["fps"] is None


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("sigma", "sigma"),
        ("kind", "source_kind"),
        ("_row", "source__row"),
        ("coverage", "source_coverage"),
    ],
)
def test_taken_names(name: str, stored: str) -> None:
    assert stored_name(name) == stored
    table = table_of({name: "x"})
    assert table[stored].to_pylist() == ["x"]
    assert own_columns(table.schema, "columns") == {stored: name}


def test_columns_and_labels_of_one_name_stay_apart() -> None:
    table = table_of({"x": 1, "kind": 2, "source_kind": 3}, x=4)
    assert len(set(table.column_names)) == len(table.column_names)
    columns, labels = (own_columns(table.schema, role) for role in ("columns", "labels"))
    assert {name: table[stored][0].as_py() for stored, name in columns.items()} == {
        "x": 1,
        "kind": 2,
        "source_kind": 3,
    }
    assert {name: table[stored][0].as_py() for stored, name in labels.items()} == {"x": 4}
    both = concat([table_of({"x": 1}), table_of({}, x=4)])
    assert both["x"].to_pylist() == [1, None]
    assert both["label_x"].to_pylist() == [None, 4]
    assert own_columns(both.schema, "labels") == {"label_x": "x"}


@pytest.mark.parametrize(
    ("values", "stored"),
    [
        ([1, 2], [1, 2]),
        ([1, 1.5], [1.0, 1.5]),
        ([1, "a"], ["1", "a"]),
        ([True, 1], ["true", "1"]),
        ([True, False], [True, False]),
        ([1, 2**63], ["1", str(2**63)]),
        ([2**60 + 1, 0.5], [str(2**60 + 1), "0.5"]),
    ],
)
def test_values_of_one_column_within_and_across_tables(
    values: list[Any], stored: list[Any]
) -> None:
    within = table_of(*({"x": value} for value in values))
    across = concat([table_of({"x": value}) for value in values])
    for table in (within, across):
        assert table["x"].to_pylist() == stored
        assert own_columns(table.schema, "columns") == {"x": "x"}


def test_concat_of_nothing_and_of_unlike_tables() -> None:
    assert concat([]).schema.names == [*FACT_COLUMNS.names, *PLACE_COLUMNS.names]
    table = concat([table_of({"a": 1}), table_of({}), table_of({"b": "z"})])
    assert table["a"].to_pylist() == [1, None, None]
    assert table["b"].to_pylist() == [None, None, "z"]
