"""Demonstrations at pairs of noise levels: do scores of data foretell what cloning makes of them?

Each pair is a dataset of its own. All together are one more, and its half of the episodes with the
lowest `action_divergence` another: what curation would choose without knowing any level.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.data import episodes
from benchmarks.tasks import Entry, Task
from pipeline.curation.select import Curation, apply
from pipeline.jobs.measure import measure_version
from pipeline.store.store import open_store, parse_ref
from schemas.metrics import MeasureConfig

FILTER = "action_divergence <= quantile(action_divergence, 0.5)"


def grid_entries(task: Task) -> dict[str, Entry]:
    """Returns a row for each pair of levels, one for all data, one for the chosen half."""
    base = task.entries["bc"]
    names = [f"bc {p}/{s}" for p in task.grid for s in task.grid] + ["all", "chosen half"]
    return {name: Entry(base.algo, base.settings, base.small, data=name) for name in names}


def add_mixed(folder: Path, store: Path) -> Iterator[tuple[str, str]]:
    """Puts all datasets together, scores them, and chooses; yields their names and references."""
    opened = open_store(store, create=True)
    for file in sorted((folder / "data").glob("p*.npz")):
        opened.append(episodes(file), f"from {file.name}", branch="all")
    measured = measure_version(opened, "all", MeasureConfig()).version
    yield "all", f"{opened.url}@{measured.id}"
    chosen = apply(measured, Curation(where=FILTER, unscored="drop")).commit(branch="chosen")
    yield "chosen half", f"{opened.url}@{chosen.id}"


def correlate(document: Mapping[str, Any]) -> dict[str, Any]:
    """Returns how datasets' mean divergence goes with their cloners' mean success.

    Rows that were made from other data than those of now do not count.
    """
    divergences = _divergences(document["data"]["all"])
    pairs = {}
    for row, done in document["rows"].items():
        of_now = done.get("made_with", {}).get("data") == document["data"].get(row)
        if row.startswith("bc ") and of_now and done["seeds"]:
            scores = [one["score"] for one in done["seeds"].values()]
            pairs[row] = (divergences[_stem(row)], float(np.mean(scores)))
    if len(pairs) < 3:
        return {}
    divergence, success = zip(*pairs.values(), strict=True)
    found = stats.spearmanr(divergence, success)
    return {"spearman": float(found.statistic), "p": float(found.pvalue), "datasets": pairs}


def _divergences(reference: str) -> dict[str, float]:
    """Mean action divergence by the file that episodes came from."""
    store, version = parse_ref(reference)
    columns = ["episode_id", "action_divergence"]
    table = open_store(store).version(version).episodes(columns=columns)
    found: dict[str, list[float]] = {}
    for row in table.to_pylist():
        found.setdefault(row["episode_id"].partition("/")[0], []).append(row["action_divergence"])
    return {name: float(np.nanmean(np.array(values, float))) for name, values in found.items()}


def _stem(row: str) -> str:
    policy, system = row.removeprefix("bc ").split("/")
    return f"p{policy}-s{system}"
