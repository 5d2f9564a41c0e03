"""Score sets in a store: the frozen reference model, and overlays of scores by episode id."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.store import blocks, layout
from pipeline.store.catalog import Catalog, parquet_bytes
from pipeline.store.commit import Draft
from pipeline.store.replace import changed_between, silenced
from pipeline.store.tables import overlay_rows
from schemas.document import DataFile
from schemas.errors import DamagedStoreError, NotFoundError
from schemas.metrics import MetricValue, ScoreSet
from schemas.version import Commit, Measure, MetricRecord, Overlay, State

DOCUMENT = "document.json"


@dataclass(frozen=True)
class Scores:
    """What one metric run adds to a version."""

    score_set: ScoreSet
    table: pa.Table
    """`episode_id` and the columns to add; only episodes that had no score in this set."""
    values: Mapping[str, MetricValue]


def save_model(catalog: Catalog, arrays: Mapping[str, np.ndarray], document: Any) -> DataFile:
    """Stores a reference model as plain arrays and a JSON document."""
    sink = io.BytesIO()
    text = np.frombuffer(json.dumps(document).encode(), np.uint8)
    np.savez(sink, allow_pickle=False, **{DOCUMENT: text}, **dict(arrays))
    data = sink.getvalue()
    key = layout.reference_model(layout.new_id())
    catalog.objects.put({key: data})
    return blocks.data_file(key, data)


def load_model(catalog: Catalog, file: DataFile) -> tuple[dict[str, np.ndarray], Any]:
    """Inverse of `save_model`."""
    try:
        with np.load(io.BytesIO(catalog.read(file)), allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        return arrays, json.loads(arrays.pop(DOCUMENT).tobytes())
    except (ValueError, KeyError, OSError) as error:
        raise DamagedStoreError(
            f"Expected a reference model, came something else ({error}).", where=file.key
        ) from None


def scored_ids(catalog: Catalog, state: State, score_set: str) -> pa.Array:
    """Returns the ids of the episodes that a score set holds."""
    ids = [
        overlay_rows(catalog, overlay)["episode_id"]
        for overlay in state.overlays
        if overlay.score_set == score_set
    ]
    chunks = [chunk for column in ids for chunk in column.chunks]
    return pa.concat_arrays(chunks) if chunks else pa.array([], pa.string())


def set_columns(catalog: Catalog, state: State, score_set: str) -> pa.Table | None:
    """Returns all scores that a set holds, or None if it holds none."""
    tables = [
        overlay_rows(catalog, overlay)
        for overlay in state.overlays
        if overlay.score_set == score_set
    ]
    return pa.concat_tables(tables, promote_options="default") if tables else None


def commit_scores(
    catalog: Catalog, branch: str, scores: Scores, message: str, *, base: Commit
) -> Commit:
    """Commits scores to a branch's head: no data file is touched.

    Scores are keyed by episode id, so they hold on whatever others appended meanwhile; of an
    episode whose content others replaced meanwhile, they say nothing.

    Args:
        catalog: the store.
        branch: where.
        scores: what to add.
        message: one line for the log.
        base: the version that was scored.
    """
    columns = tuple(name for name in scores.table.column_names if name != "episode_id")
    overlays: tuple[Overlay, ...] = ()
    if scores.table.num_rows and columns:
        data = parquet_bytes(scores.table)
        key = layout.overlay(layout.new_id())
        catalog.objects.put({key: data})
        overlay = Overlay(
            file=blocks.data_file(key, data),
            score_set=scores.score_set.id,
            columns=columns,
            episodes=scores.table.num_rows,
        )
        overlays = (overlay,)
    records = {
        name: MetricRecord(score_set=scores.score_set.id, value=value)
        for name, value in scores.values.items()
    }

    def plan(head: Commit | None, _state: State) -> Draft:
        said = overlays
        if head is not None and head.id != base.id:
            said = silenced(catalog, said, changed_between(catalog, base, head)) or said
        operation = Measure(score_set=scores.score_set, overlays=said, metrics=records)
        return Draft((operation,))

    commit = catalog.refs.publish(branch, plan, message=message, run_id=layout.new_id())
    if commit is None:
        raise NotFoundError(f"Expected a branch {branch!r}, came none.")
    return commit
