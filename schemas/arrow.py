"""Rows and episodes as Arrow tables, without loss.

A table has one column per field (scalars as primitive columns, arrays as fixed-size lists) and
T+1 rows per episode; the schema's metadata carry the row layout and, for a single episode, its
facts. Encoded rows stay encoded: a text is a string, a picture or a ragged row a binary value, a
frame of a video the number of a media file and a timestamp. The metadata name the media files of
each field by their SHA-256. Any Arrow reader can open it.
"""

from __future__ import annotations

import datetime as dt
import functools
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from schemas.episode import Episode
from schemas.errors import EpisodeError
from schemas.packed import FindMedia, Media, Packed, Rows, Video, plain
from schemas.rows import FLAGS, RowLayout, cut_padding, layout_of, to_rows
from schemas.spec import DatasetSpec, FieldSpec

LAYOUT_KEY = b"penstock.layout"
FACTS_KEY = b"penstock.episode"
MEDIA_KEY = b"penstock.media"
"""Field name to the SHA-256 of its media files, as JSON; with `/<sha256>` behind it, a whole file:
only the table of a single episode carries those."""
_FRAME = pa.struct(
    [pa.field("media", pa.int32(), False), pa.field("timestamp", pa.float64(), False)]
)


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
    fields, extras = tuple(layout.spec.fields.items()), tuple(layout.extras.items())
    return _schema_of(fields, extras, layout.full_extras)


_Fields = tuple[tuple[str, FieldSpec], ...]


@functools.lru_cache(maxsize=64)
def _schema_of(fields: _Fields, extras: _Fields, full_extras: frozenset[str]) -> pa.Schema:
    """Told by fields in their order: layouts that differ in it alone have other columns."""
    layout = RowLayout(DatasetSpec(dict(fields)), dict(extras), full_extras)
    columns = []
    for name, field in layout.fields.items():
        kind = _column_type(field)
        shape = json.dumps(list(field.shape)).encode()
        columns.append(pa.field(name, kind, nullable=False, metadata={b"shape": shape}))
    return pa.schema(columns, {LAYOUT_KEY: json.dumps(layout_to_json(layout)).encode()})


def _column_type(field: FieldSpec) -> pa.DataType:
    if field.encoding == "video":
        return _FRAME
    if field.encoding != "raw":
        return pa.large_string() if field.encoding == "text" else pa.large_binary()
    kind = pa.from_numpy_dtype(field.numpy_dtype)
    return pa.list_(kind, int(np.prod(field.shape, dtype=np.int64))) if field.shape else kind


def rows_to_table(rows: Mapping[str, Rows], layout: RowLayout) -> pa.Table:
    """Returns rows of one layout as a table; media files are named in it, not held."""
    schema = arrow_schema(layout)
    count = len(rows["valid"])
    columns = []
    media: dict[str, list[str]] = {}
    for column in schema:
        mine = rows[column.name]
        if isinstance(mine, Video):
            media[column.name] = [one.sha256 for one in mine.media]
            parts = [pa.array(mine.index, pa.int32()), pa.array(mine.timestamps, pa.float64())]
            columns.append(pa.StructArray.from_arrays(parts, fields=list(_FRAME)))
            continue
        if isinstance(mine, Packed):
            held = [np.ascontiguousarray(mine.offsets), np.ascontiguousarray(mine.data)]
            buffers = [None, *map(pa.py_buffer, held)]
            columns.append(pa.Array.from_buffers(column.type, count, buffers))
            continue
        values = pa.array(np.ascontiguousarray(mine).reshape(-1))
        if pa.types.is_fixed_size_list(column.type):
            size = column.type.list_size
            values = (
                pa.FixedSizeListArray.from_arrays(values, type=column.type)
                if size
                else pa.array([[]] * count, column.type)
            )
        columns.append(values)
    if media:
        named = {MEDIA_KEY: json.dumps(media).encode()}
        schema = schema.with_metadata({**schema.metadata, **named})
    return pa.Table.from_arrays(columns, schema=schema)


def table_layout(table: pa.Table | pa.RecordBatch) -> RowLayout:
    """Returns the row layout that a table's metadata carry."""
    return schema_layout(table.schema)


def schema_layout(schema: pa.Schema) -> RowLayout:
    """Returns the row layout that a schema's metadata carry."""
    return _layout_in(schema.metadata[LAYOUT_KEY])


@functools.lru_cache(maxsize=64)
def _layout_in(text: bytes) -> RowLayout:
    return layout_from_json(json.loads(text))


def table_to_rows(
    table: pa.Table | pa.RecordBatch,
    fields: Mapping[str, FieldSpec],
    find: FindMedia | None = None,
) -> dict[str, Rows]:
    """Returns some fields of a table, (rows, *shape) each; zero-copy where Arrow can.

    Args:
        table: as `rows_to_table` makes it, or rows of it.
        fields: which, and what they are.
        find: where media files are; needed for fields of video.
    """
    rows: dict[str, Rows] = {}
    for name, field in fields.items():
        column = _whole(table.column(name))
        if field.encoding == "video":
            rows[name] = _video(column, field, _media_of(table, name), find)
            continue
        if field.encoding != "raw":
            rows[name] = _packed(column, field)
            continue
        if pa.types.is_fixed_size_list(column.type):
            column = _flat(column)
        values = column.to_numpy(zero_copy_only=False).astype(field.numpy_dtype, copy=False)
        rows[name] = values.reshape(table.num_rows, *field.shape)
    return rows


def _flat(column: pa.Array) -> pa.Array:
    """Returns the values of lists of one size, end to end; without nulls as they lie there."""
    if column.null_count:
        return column.flatten()
    size = column.type.list_size
    return column.values.slice(column.offset * size, len(column) * size)


def _whole(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Returns a column in one piece; one that is in one piece already is not copied."""
    if isinstance(column, pa.Array):
        return column
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _packed(column: pa.Array, field: FieldSpec) -> Packed:
    """A view of a column of strings or binary values."""
    _, starts, data = column.buffers()
    if not len(column):
        return Packed(field, np.zeros(1, np.int64), np.zeros(0, np.uint8))
    # Whoever made the buffer may have left bytes behind the last offset.
    offsets = np.frombuffer(starts, np.int64, column.offset + len(column) + 1)[column.offset :]
    held = np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)
    return Packed(field, offsets - offsets[0], held[offsets[0] : offsets[-1]])


def _video(column: pa.Array, field: FieldSpec, names: list[str], find: FindMedia | None) -> Video:
    if find is None:
        raise EpisodeError(
            f"Expected the media files of {field} with its rows, came none.", code="unreadable"
        )
    index, times = column.flatten()  # minds the slice, unlike `field`
    return Video(
        field,
        tuple(map(find, names)),
        index.to_numpy(zero_copy_only=False),
        times.to_numpy(zero_copy_only=False),
    )


def _media_of(table: pa.Table, name: str) -> list[str]:
    named = json.loads(table.schema.metadata.get(MEDIA_KEY, b"{}"))
    return [str(sha256) for sha256 in named.get(name, [])]


def episode_to_table(episode: Episode) -> pa.Table:
    """Returns one episode as a table of T+1 rows that holds all of it.

    Media files of videos come along whole, in the schema's metadata, which Arrow bounds at 2 GB.
    """
    layout = layout_of(episode)
    table = rows_to_table(to_rows(episode), layout)
    metadata = {**table.schema.metadata, FACTS_KEY: json.dumps(facts_to_json(episode)).encode()}
    for rows in episode.arrays.values():
        for media in rows.media if isinstance(rows, Video) else ():
            metadata[MEDIA_KEY + f"/{media.sha256}".encode()] = media.load()
    return table.replace_schema_metadata(metadata)


def episode_from_table(table: pa.Table) -> Episode:
    """Inverse of `episode_to_table`.

    Raises:
        EpisodeError: if the table is not one that `episode_to_table` made.
    """

    def find(sha256: str) -> Media:
        media = Media.of(metadata.get(MEDIA_KEY + f"/{sha256}".encode(), b""))
        if media.sha256 != sha256:
            raise EpisodeError(
                f"Expected the media file {sha256} with the table, came {media.sha256}.",
                code="unreadable",
            )
        return media

    metadata = table.schema.metadata or {}
    if LAYOUT_KEY not in metadata or FACTS_KEY not in metadata:
        raise EpisodeError(
            "Expected a table made by episode_to_table, came one without its metadata.",
            code="unreadable",
        )
    layout = table_layout(table)
    try:
        table.validate(full=True)  # offsets that lead out of their buffer would be followed
    except pa.ArrowInvalid as error:
        raise EpisodeError(f"Expected a sound table, came {error}.", code="unreadable") from error
    rows = table_to_rows(table, layout.fields, find)
    return episode_from_rows(rows, layout, json.loads(metadata[FACTS_KEY]))


def episode_from_rows(
    rows: Mapping[str, Rows], layout: RowLayout, facts: Mapping[str, Any]
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
    named: dict[str, Any] = {n: plain(a) for n, a in cut.items() if n.startswith("actions")}
    collected_at = facts["collected_at"]
    return Episode(
        episode_id=facts["episode_id"],
        observations={n: a for n, a in cut.items() if n.startswith("observations")},
        actions=named.get("actions", named or None),
        rewards=plain(cut["rewards"]) if "rewards" in cut else None,
        terminated=plain(rows["terminated"])[:-1],
        truncated=plain(rows["truncated"])[:-1],
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
