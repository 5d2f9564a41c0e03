"""The episode table: one row per episode, its facts and where its rows lie.

The fixed columns below are the vocabulary; a source's own columns and labels stand beside them and
are told apart by field metadata. A source column whose name is taken is kept as `source_<name>`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from schemas.episode import Episode, Scalar
from schemas.identity import digest

FACT_COLUMNS = pa.schema(
    [
        ("episode_id", pa.string()),
        ("source", pa.string()),
        ("task", pa.string()),
        ("kind", pa.string()),
        ("policy", pa.string()),
        ("policy_version", pa.string()),
        ("length", pa.int64()),
        ("episode_return", pa.float64()),
        ("success", pa.bool_()),
        ("terminated", pa.bool_()),
        ("truncated", pa.bool_()),
        ("final_observation", pa.string()),
        ("collected_at", pa.timestamp("us", "UTC")),
        ("seed", pa.int64()),
        ("fps", pa.float64()),
        ("digest", pa.string()),
        ("source_key", pa.string()),
        ("spec", pa.string()),
    ]
)
PLACE_COLUMNS = pa.schema([("_block", pa.string()), ("_row", pa.int64())])
METRIC_COLUMNS = (
    "action_variance",
    "action_divergence",
    "action_divergence_h",
    "transition_diversity",
    "state_similarity",
    "coverage",
    "idle_fraction",
    "smoothness",
    "duplicate_of",
    "integrity",
)
"""Columns that measuring adds; `length` and `episode_return` are facts already."""
ROLE_KEY = b"penstock.role"
_TAKEN = frozenset(FACT_COLUMNS.names) | set(PLACE_COLUMNS.names) | set(METRIC_COLUMNS)


@dataclass(frozen=True)
class EpisodeRow:
    """One row of the episode table."""

    facts: Mapping[str, Any]
    """By the names of `FACT_COLUMNS`."""
    columns: Mapping[str, Scalar]
    labels: Mapping[str, Scalar]
    block: str = ""
    """Id of the block that holds its arrays; empty while not written."""
    row: int = 0
    """First of its T+1 rows there."""

    @property
    def episode_id(self) -> str:
        """The episode's id."""
        return str(self.facts["episode_id"])

    @property
    def digest(self) -> str:
        """The episode's content digest."""
        return str(self.facts["digest"])

    @property
    def length(self) -> int:
        """Its steps."""
        return int(self.facts["length"])

    def named(self, episode_id: str) -> EpisodeRow:
        """Returns the row under another id."""
        return replace(self, facts={**self.facts, "episode_id": episode_id})

    def sourced(self, source: str, source_key: str) -> EpisodeRow:
        """Returns the row with where its episode came from."""
        return replace(self, facts={**self.facts, "source": source, "source_key": source_key})

    def placed(self, block: str, row: int) -> EpisodeRow:
        """Returns the row with the place of its arrays."""
        return EpisodeRow(self.facts, self.columns, self.labels, block, row)


def episode_row(
    episode: Episode,
    *,
    spec: str = "default",
    block: str = "",
    row: int = 0,
    content: str | None = None,
    source_key: str | None = None,
) -> EpisodeRow:
    """Returns the row of one episode.

    Args:
        episode: which.
        spec: the spec that it joins.
        block: id of the block that holds its arrays.
        row: first of its rows there.
        content: digest of its content, if it is known; otherwise it is worked out.
        source_key: where it came from, if it does not say so itself.
    """
    facts = {
        "episode_id": episode.episode_id,
        "source": episode.source,
        "task": episode.task,
        "kind": episode.kind,
        "policy": episode.policy,
        "policy_version": episode.policy_version,
        "length": episode.length,
        "episode_return": episode.episode_return,
        "success": episode.success,
        "terminated": episode.is_terminated,
        "truncated": episode.is_truncated,
        "final_observation": episode.final_observation,
        "collected_at": episode.collected_at,
        "seed": episode.seed,
        "fps": episode.fps,
        "digest": content or digest(episode),
        "source_key": source_key if episode.source_key is None else episode.source_key,
        "spec": spec,
    }
    return EpisodeRow(facts, episode.columns, episode.labels, block, row)


def stored_name(name: str) -> str:
    """Returns the name under which a source's own column is stored."""
    return f"source_{name}" if name in _TAKEN or name.startswith("_") else name


def rows_to_table(rows: Sequence[EpisodeRow]) -> pa.Table:
    """Returns episode rows as a table: facts, places, then the sources' own columns."""
    arrays = [
        pa.array([row.facts[field.name] for row in rows], field.type) for field in FACT_COLUMNS
    ]
    arrays.append(pa.array([row.block for row in rows], pa.string()))
    arrays.append(pa.array([row.row for row in rows], pa.int64()))
    fields = [*FACT_COLUMNS, *PLACE_COLUMNS]
    taken: set[str] = set()
    for role, prefix in (("columns", "source_"), ("labels", "label_")):
        mappings = [getattr(row, role) for row in rows]
        for name in _names(mappings):
            values = _values([mapping.get(name) for mapping in mappings])
            stored = stored_name(name)
            while stored in taken:
                stored = f"{prefix}{stored}"
            taken.add(stored)
            metadata = {ROLE_KEY: role.encode(), b"name": name.encode()}
            fields.append(pa.field(stored, values.type, metadata=metadata))
            arrays.append(values)
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def own_columns(schema: pa.Schema, role: str) -> dict[str, str]:
    """Returns `{stored name: source's name}` of a table's own `columns` or `labels`."""
    return {
        field.name: field.metadata[b"name"].decode()
        for field in schema
        if field.metadata and field.metadata.get(ROLE_KEY) == role.encode()
    }


def concat(tables: Sequence[pa.Table]) -> pa.Table:
    """Stacks episode tables whose own columns may differ in presence and type.

    A column that one table holds as numbers and another as text, or as whole numbers that no
    float holds beside floats, becomes text everywhere: nothing is dropped.
    """
    if not tables:
        return pa.schema([*FACT_COLUMNS, *PLACE_COLUMNS]).empty_table()
    tables = _told_apart(tables)
    held: dict[str, list[pa.ChunkedArray]] = {}
    for table in tables:
        for field in table.schema:
            held.setdefault(field.name, []).append(table[field.name])
    mixed = {name for name, columns in held.items() if not _stackable(columns)}
    return pa.concat_tables(
        [_as_text(table, mixed) for table in tables], promote_options="permissive"
    )


def _told_apart(tables: Sequence[pa.Table]) -> list[pa.Table]:
    """Renames labels that go by the name of another table's column."""
    columns = {name for table in tables for name in own_columns(table.schema, "columns")}
    renamed = []
    for table in tables:
        for name in own_columns(table.schema, "labels").keys() & columns:
            table = table.rename_columns({name: f"label_{name}"})
        renamed.append(table)
    return renamed


def _names(mappings: Iterable[Mapping[str, Scalar]]) -> list[str]:
    return list(dict.fromkeys(name for mapping in mappings for name in mapping))


def _values(values: list[Scalar]) -> pa.Array:
    """One column of plain values; numbers mixed with text become text."""
    kinds = {type(value) for value in values if value is not None}
    limit = 2**53 if float in kinds else 2**63 - 1
    large = any(type(value) is int and not -limit <= value <= limit for value in values)
    if large or (len(kinds) > 1 and not kinds <= {int, float}):
        return pa.array([_text(value) for value in values], pa.string())
    if kinds == {int, float}:
        return pa.array([None if value is None else float(value) for value in values])
    return pa.array(values)


def _text(value: Scalar) -> str | None:
    if isinstance(value, bool):
        return str(value).lower()  # as Arrow spells it
    return None if value is None else str(value)


def _stackable(columns: Sequence[pa.ChunkedArray]) -> bool:
    """True if the columns are of one type, or all numbers that a float holds."""
    types = {column.type for column in columns if not pa.types.is_null(column.type)}
    if len(types) < 2:
        return True
    if not all(pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in types):
        return False
    try:
        for column in columns:
            column.cast(pa.float64())
    except pa.ArrowInvalid:
        return False
    return True


def _as_text(table: pa.Table, names: set[str]) -> pa.Table:
    for index, field in enumerate(table.schema):
        if field.name in names:
            column = table.column(index).cast(pa.string())
            table = table.set_column(
                index, pa.field(field.name, pa.string(), metadata=field.metadata), column
            )
    return table
