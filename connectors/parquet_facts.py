"""The table of episodes beside a table of steps: one row per episode, its facts as columns.

Columns named like a fact (`task`, `seed`, ...) are that fact, `label/<name>` a label, `length` the
number of steps, which is checked, and `final_observation` what the last observation is. All others
are the source's own columns; `column/<name>` is one whose name would mean something else.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from connectors.facts import FACTS, episode_facts
from schemas.episode import Episode, Scalar
from schemas.errors import SourceError, UsageError
from schemas.table import stored_name

ID, LENGTH, FINAL = "episode_id", "length", "final_observation"
LABEL, COLUMN = "label/", "column/"
JSON_KEY = b"penstock.json"
"""Marks a text column whose values are JSON, because they are of several types."""
_STRUCTURAL = (ID, LENGTH, FINAL)


def rows_by_id(table: pa.Table, where: str) -> dict[int | str, dict[str, Any]]:
    """Returns what a table of episodes states, null values left out, in its order.

    Raises:
        SourceError: if an id is missing, doubled, or neither a whole number nor a text.
    """
    if ID not in table.column_names:
        raise SourceError(f"Expected the column {ID!r} in {where}, it is not there.", where=where)
    coded = [f.name for f in table.schema if JSON_KEY in (f.metadata or {})]
    found: dict[int | str, dict[str, Any]] = {}
    for row in table.to_pylist():
        name = row[ID]
        is_id = isinstance(name, int | str) and not isinstance(name, bool)
        if not is_id or name in found:
            raise SourceError(
                f"Expected one row per episode in {where}, with a number or text as {ID}, came "
                f"{str(name)[:80]!r}{' twice' if is_id else ''}.",
                where=where,
            )
        kept = {key: value for key, value in row.items() if value is not None}
        for key in coded:
            if key in kept:
                kept[key] = _decoded(kept[key], key, where)
        found[name] = kept
    return found


def stated(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `Episode` that a row speaks of."""
    plain: dict[str, Any] = {}
    columns: dict[str, Scalar] = {}
    labels: dict[str, Scalar] = {}
    for name, value in row.items():
        said = _plain(value)
        if name.startswith(LABEL):
            labels[name.removeprefix(LABEL)] = said
        elif name.startswith(COLUMN):
            columns[name.removeprefix(COLUMN)] = said
        elif name not in _STRUCTURAL:
            plain[name] = said
    facts = episode_facts(plain)
    return {**facts, "columns": {**facts["columns"], **columns}, "labels": labels}


def row_of(episode: Episode, number: int) -> dict[str, Any]:
    """Returns the row that states an episode; inverse of `stated`."""
    row: dict[str, Any] = {ID: number, LENGTH: episode.length, FINAL: episode.final_observation}
    row |= {name: getattr(episode, name) for name in FACTS}
    for name, value in episode.columns.items():
        is_taken = name in (*_STRUCTURAL, *FACTS) or name.startswith((LABEL, COLUMN))
        row[f"{COLUMN}{name}" if is_taken or stored_name(name) != name else name] = value
    row |= {f"{LABEL}{name}": value for name, value in episode.labels.items()}
    for name in row:
        if not name.isprintable():
            raise UsageError(
                f"Expected facts with printable names in {episode.episode_id!r}, came {name!r}.",
                where=episode.episode_id,
            )
    return row


def to_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Returns the rows of all episodes as a table; a column of several types as JSON texts."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns, fields = [], []
    for name in names:
        values = [row.get(name) for row in rows]
        kind = _common_type(values)
        if kind is None:
            values = [None if value is None else json.dumps(value) for value in values]
        columns.append(pa.array(values, kind or pa.string()))
        marked = {JSON_KEY: b"1"} if kind is None else None
        fields.append(pa.field(name, columns[-1].type, metadata=marked))
    return pa.Table.from_arrays(columns, schema=pa.schema(fields))


def _common_type(values: Sequence[Any]) -> pa.DataType | None:
    """The Arrow type of values that are all of one Python type, else None."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int} and all(-(2**63) <= v < 2**63 for v in values if v is not None):
        return pa.int64()
    arrow = {
        bool: pa.bool_(),
        float: pa.float64(),
        str: pa.string(),
        dt.datetime: pa.timestamp("us", tz="UTC"),
    }
    return arrow.get(kinds.pop()) if len(kinds) == 1 else None


def _decoded(value: Any, key: str, where: str) -> Any:
    try:
        return json.loads(value)
    except (ValueError, TypeError, RecursionError) as error:
        raise SourceError(
            f"Expected JSON in the column {key!r} of {where}, came {str(value)[:40]!r}.",
            where=where,
        ) from error


def _plain(value: Any) -> Any:
    """A value of a table as JSON has it; what JSON has no word for as text."""
    if isinstance(value, dt.datetime | dt.date):
        return value.isoformat()
    if isinstance(value, bool | int | float | str):
        return value
    return json.loads(json.dumps(value, default=str))
