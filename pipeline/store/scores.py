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
from pipeline.store.catalog import Catalog
from pipeline.store.commit import Draft
from pipeline.store.derive import write_overlay
from pipeline.store.replace import changed_between, silenced
from pipeline.store.tables import overlay_rows
from schemas.document import DataFile
from schemas.errors import DamagedStoreError, NotFoundError
from schemas.metrics import MetricValue, ScoreSet
from schemas.version import Commit, Measure, MetricRecord, State

DOCUMENT = "document.json"


@dataclass(frozen=True)
class Scores:
    """What one metric run adds to a version."""

    score_set: ScoreSet
    table: pa.Table
    """`episode_id` and the columns to add; only episodes that had no such score in this set."""
    values: Mapping[str, MetricValue]
    more: tuple[pa.Table, ...] = ()
    """Other columns of other episodes, likewise."""


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


def scored_ids(catalog: Catalog, state: State, score_set: str, column: str) -> pa.Array:
    """Returns the ids of the episodes of which a score set holds a column."""
    ids = [
        overlay_rows(catalog, overlay)["episode_id"]
        for overlay in state.overlays
        if overlay.score_set == score_set and column in overlay.columns
    ]
    chunks = [chunk for found in ids for chunk in found.chunks]
    return pa.concat_arrays(chunks) if chunks else pa.array([], pa.string())


def set_column(catalog: Catalog, state: State, score_set: str, column: str) -> pa.Table | None:
    """Returns `episode_id` and one column of all that a set holds, or None if it has none."""
    tables = [
        overlay_rows(catalog, overlay).select(["episode_id", column])
        for overlay in state.overlays
        if overlay.score_set == score_set and column in overlay.columns
    ]
    return pa.concat_tables(tables, promote_options="default") if tables else None


def commit_scores(
    catalog: Catalog,
    branch: str,
    scores: Scores,
    message: str,
    *,
    base: Commit,
    run_id: str | None = None,
    since: int | None = None,
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
        run_id: of the job, whose commit is made once however often it is tried.
        since: number of the branch's newest version when the job began; see `Refs.publish`.
    """
    overlays = tuple(
        write_overlay(catalog, table, score_set=scores.score_set.id)
        for table in (scores.table, *scores.more)
        if table.num_rows and table.num_columns > 1
    )
    records = {
        name: MetricRecord(score_set=scores.score_set.id, value=value)
        for name, value in scores.values.items()
    }

    def plan(head: Commit | None, state: State) -> Draft:
        said = overlays
        # Metrics that others let join the set meanwhile stay in it.
        known = state.score_sets.get(scores.score_set.id, scores.score_set).metrics
        metrics = {**known, **scores.score_set.metrics}
        score_set = scores.score_set.model_copy(update={"metrics": metrics})
        if head is not None and head.id != base.id:
            said = silenced(catalog, said, changed_between(catalog, base, head)) or said
        operation = Measure(score_set=score_set, overlays=said, metrics=records)
        return Draft((operation,))

    run_id = run_id or layout.new_id()
    commit = catalog.refs.publish(branch, plan, message=message, run_id=run_id, base=since)
    if commit is None:
        raise NotFoundError(f"Expected a branch {branch!r}, came none.")
    return commit
