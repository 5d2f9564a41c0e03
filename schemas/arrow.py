"""Rows and episodes as Arrow tables, without loss.

A table has one column per field (scalars as primitive columns, arrays as fixed-size lists) and
T+1 rows per episode; the schema's metadata carry the row layout and, for a single episode, its
facts. Any Arrow reader can open it.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from schemas.episode import Episode
from schemas.errors import EpisodeError
from schemas.rows import FLAGS, RowLayout, cut_padding, layout_of, to_rows
from schemas.spec import DatasetSpec, FieldSpec

LAYOUT_KEY = b"penstock.layout"
FACTS_KEY = b"penstock.episode"


def layout_to_json(layout: RowLayout) -> dict[str, Any]:
    """Returns a row layout as plain JSON values."""

    def fields(specs: Mapping[str, FieldSpec]) -> dict[str, Any]:
        return {n: [f.dtype, list(f.shape), f.encoding] for n, f in specs.items()}

    return {
        "fields": fields(layout.spec.fields),
        "extras": fields(layout.extras),
        "full_extras": sorted(layout.full_extras),
    }


def layout_from_json(value: Mapping[str, Any]) -> RowLayout:
    """Inverse of `layout_to_json`."""

    def fields(specs: Mapping[str, Any]) -> dict[str, FieldSpec]:
        return {
            n: FieldSpec(dtype, tuple(shape), encoding)
            for n, (dtype, shape, encoding) in specs.items()
        }

    return RowLayout(
        DatasetSpec(fields(value["fields"])),
        fields(value["extras"]),
        frozenset(value["full_extras"]),
    )


def arrow_schema(layout: RowLayout) -> pa.Schema:
    """Returns the Arrow schema of rows of one layout."""
    columns = []
    for name, field in layout.fields.items():
        kind = pa.from_numpy_dtype(field.numpy_dtype)
        if field.shape:
            kind = pa.list_(kind, int(np.prod(field.shape, dtype=np.int64)))
        shape = json.dumps(list(field.shape)).encode()
        columns.append(pa.field(name, kind, nullable=False, metadata={b"shape": shape}))
    return pa.schema(columns, {LAYOUT_KEY: json.dumps(layout_to_json(layout)).encode()})


def rows_to_table(rows: Mapping[str, np.ndarray], layout: RowLayout) -> pa.Table:
    """Returns rows of one layout as a table."""
    schema = arrow_schema(layout)
    count = len(rows["valid"])
    columns = []
    for column in schema:
        values = pa.array(np.ascontiguousarray(rows[column.name]).reshape(-1))
        if pa.types.is_fixed_size_list(column.type):
            size = column.type.list_size
            values = (
                pa.FixedSizeListArray.from_arrays(values, type=column.type)
                if size
                else pa.array([[]] * count, column.type)
            )
        columns.append(values)
    return pa.Table.from_arrays(columns, schema=schema)


def table_layout(table: pa.Table) -> RowLayout:
    """Returns the row layout that a table's metadata carry."""
    return layout_from_json(json.loads(table.schema.metadata[LAYOUT_KEY]))


def table_to_rows(table: pa.Table, fields: Mapping[str, FieldSpec]) -> dict[str, np.ndarray]:
    """Returns some fields of a table as arrays of (rows, *shape); zero-copy where Arrow can."""
    rows = {}
    for name, field in fields.items():
        column = table.column(name).combine_chunks()
        if isinstance(column, pa.ChunkedArray):
            column = pa.concat_arrays(column.chunks) if column.num_chunks else column.chunk(0)
        if pa.types.is_fixed_size_list(column.type):
            column = column.flatten()
        values = column.to_numpy(zero_copy_only=False).astype(field.numpy_dtype, copy=False)
        rows[name] = values.reshape(table.num_rows, *field.shape)
    return rows


def episode_to_table(episode: Episode) -> pa.Table:
    """Returns one episode as a table of T+1 rows that holds all of it."""
    layout = layout_of(episode)
    table = rows_to_table(to_rows(episode), layout)
    facts = json.dumps(facts_to_json(episode)).encode()
    return table.replace_schema_metadata({**table.schema.metadata, FACTS_KEY: facts})


def episode_from_table(table: pa.Table) -> Episode:
    """Inverse of `episode_to_table`.

    Raises:
        EpisodeError: if the table is not one that `episode_to_table` made.
    """
    metadata = table.schema.metadata or {}
    if LAYOUT_KEY not in metadata or FACTS_KEY not in metadata:
        raise EpisodeError(
            "Expected a table made by episode_to_table, came one without its metadata.",
            code="unreadable",
        )
    layout = table_layout(table)
    rows = table_to_rows(table, layout.fields)
    return episode_from_rows(rows, layout, json.loads(metadata[FACTS_KEY]))


def episode_from_rows(
    rows: Mapping[str, np.ndarray], layout: RowLayout, facts: Mapping[str, Any]
) -> Episode:
    """Returns the episode that T+1 rows and its facts make.

    Args:
        rows: every field of the layout, flags included, (T+1, ...).
        layout: what the rows hold.
        facts: as `facts_to_json` returns them.
    """
    final = facts["final_observation"]
    cut = {
        name: cut_padding(name, rows[name], final, name in layout.full_extras)
        for name in layout.fields
        if name not in FLAGS
    }
    actions = {name: array for name, array in cut.items() if name.startswith("actions")}
    collected_at = facts["collected_at"]
    return Episode(
        episode_id=facts["episode_id"],
        observations={n: a for n, a in cut.items() if n.startswith("observations")},
        actions=actions.get("actions", actions or None),
        rewards=cut.get("rewards"),
        terminated=rows["terminated"][:-1],
        truncated=rows["truncated"][:-1],
        final_observation=final,
        task=facts["task"],
        kind=facts["kind"],
        policy=facts["policy"],
        policy_version=facts["policy_version"],
        seed=facts["seed"],
        success=facts["success"],
        collected_at=dt.datetime.fromisoformat(collected_at) if collected_at else None,
        fps=facts["fps"],
        columns=facts["columns"],
        labels=facts["labels"],
        extras={n.removeprefix("extras/"): a for n, a in cut.items() if n.startswith("extras/")},
        source=facts["source"],
        source_key=facts["source_key"],
    )


def facts_to_json(episode: Episode) -> dict[str, Any]:
    """Returns everything about an episode but its arrays, as plain JSON values."""
    return {
        "episode_id": episode.episode_id,
        "final_observation": episode.final_observation,
        "task": episode.task,
        "kind": episode.kind,
        "policy": episode.policy,
        "policy_version": episode.policy_version,
        "seed": episode.seed,
        "success": episode.success,
        "collected_at": episode.collected_at.isoformat() if episode.collected_at else None,
        "fps": episode.fps,
        "columns": dict(episode.columns),
        "labels": dict(episode.labels),
        "source": episode.source,
        "source_key": episode.source_key,
    }
