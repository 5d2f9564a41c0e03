"""Small episodes for store tests, and a store's files by their bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.store import blocks, layout
from pipeline.store.catalog import parquet_bytes
from pipeline.store.commit import Draft
from pipeline.store.store import Store, Version
from schemas.episode import Episode
from schemas.metrics import MeasureConfig, MetricValue, ScoreSet
from schemas.version import DataFile, Measure, MetricRecord, Overlay


def episode(name: str, steps: int = 4, *, seed: int = 0, **changes: Any) -> Episode:
    """One episode of a (steps + 1, 3) state that `name` and `seed` decide."""
    rng = np.random.default_rng([seed, *name.encode()])
    arguments: dict[str, Any] = {
        "episode_id": name,
        "observations": {"state": rng.normal(size=(steps + 1, 3)).astype(np.float32)},
        "actions": rng.normal(size=(steps, 2)),
        "rewards": rng.normal(size=steps).astype(np.float32),
        "terminated": len(name) % 2 == 0,
        **changes,
    }
    return Episode(**arguments)


def names(count: int, prefix: str = "e") -> list[str]:
    return [f"{prefix}{number}" for number in range(count)]


def ids_of(version: Version) -> list[str]:
    found: list[str] = version.episodes()["episode_id"].to_pylist()
    return found


def quarantined(store: Store, ref: str = "main") -> list[tuple[str, str]]:
    table = store.quarantine(ref)
    return list(zip(table["episode_id"].to_pylist(), table["code"].to_pylist(), strict=True))


def hashes(root: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by relative path."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def score(
    store: Store,
    scores: dict[str, float | None],
    *,
    score_set: str = "s1",
    metric: str = "action_divergence",
    branch: str = "main",
    extra: dict[str, list[Any]] | None = None,
) -> Version:
    """Commits one overlay by hand, as a measuring job would."""
    table = pa.table({"episode_id": list(scores), metric: list(scores.values()), **(extra or {})})
    data = parquet_bytes(table)
    key = layout.overlay(layout.new_id())
    model = layout.reference_model(layout.new_id())
    store.catalog.objects.put({key: data, model: b"model"})
    columns = tuple(name for name in table.column_names if name != "episode_id")
    value = MetricValue(value=0.5, episodes=len(scores), coverage=1.0)
    operation = Measure(
        score_set=ScoreSet(
            id=score_set,
            metrics={metric: "1"},
            reference="0" * 32,
            config=MeasureConfig(),
            model=blocks.data_file(model, b"model"),
        ),
        overlays=(
            Overlay(
                file=blocks.data_file(key, data),
                score_set=score_set,
                columns=columns,
                episodes=len(scores),
            ),
        ),
        metrics={name: MetricRecord(score_set=score_set, value=value) for name in columns},
    )
    commit = store.catalog.refs.publish(
        branch, lambda _head, _state: Draft((operation,)), message="score", run_id=layout.new_id()
    )
    assert commit is not None
    return Version(store.catalog, commit)


def files_named_by(version: Version) -> list[DataFile]:
    """Every file that a version's state refers to, a shard's own files included."""
    state = version.state
    found: list[DataFile] = [*state.known, *state.quarantine]
    for part in state.parts:
        found += [part.rows, *([part.selection] if part.selection else [])]
        for block in part.blocks:
            found.append(block.file)
            if block.container == "shard":
                listing = version.store.read(block.file)
                found += blocks.parse_listing(listing, layout.shard(block.id))[1].values()
    return [*found, *(overlay.file for overlay in state.overlays)]


def read_everything(store: Store, refs: Iterable[str] = ("main",)) -> None:
    """Opens every file that reading some versions in full needs."""
    for ref in refs:
        version = store.version(ref)
        for episode in version.iter_episodes():
            assert episode.length >= 0
        for file in version.state.known:
            store.catalog.id_index(file)
        store.quarantine(ref)
