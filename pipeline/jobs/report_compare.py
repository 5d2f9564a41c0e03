"""How the episodes of one version differ from those of another, column by column."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from scipy.stats import ks_2samp

from pipeline.jobs.compare import Compared, compare_versions
from pipeline.store.store import Store, Version
from schemas.errors import UsageError
from schemas.metrics import MeasureConfig


@dataclass(frozen=True)
class Difference:
    """One column of numbers in both versions."""

    name: str
    mean: float
    mean_before: float
    shift: float | None
    """Difference of the means in standard deviations of the other version; None if that is 0."""
    distance: float
    """Largest distance of the two distribution functions (Kolmogorov-Smirnov), 0 to 1."""
    is_comparable: bool
    """False if the two were scored against different references."""


@dataclass(frozen=True)
class Comparison:
    """A version against another."""

    ref: str
    episodes: int
    added: int
    removed: int
    replaced: int
    columns: dict[str, np.ndarray]
    """(episodes,) float64 of the other version, by column."""
    differences: list[Difference]
    layouts: list[Compared]
    """How states and actions differ, by layout; empty where there is nothing to compare."""
    unread: str
    """Why there is nothing to compare."""


def compare(
    store: Store,
    version: Version,
    columns: Mapping[str, np.ndarray],
    against: str,
    where: str | None,
) -> Comparison:
    """Compares columns of a version's episodes with those of another version.

    Args:
        store: of both.
        version: the version.
        columns: (episodes,) float64 of each of its columns; NaN where there is none.
        against: the other one, whole.
        where: the filter that the columns' episodes passed.
    """
    other = store.version(against)
    named = f"{other.branch}:{other.number}"
    table = other.episodes()
    before = {
        name: np.asarray(table[name].cast(pa.float64()).to_numpy(zero_copy_only=False), float)
        for name in columns
        if name in table.column_names
    }
    sets, old_sets = version.state.metrics, other.state.metrics
    differences = []
    for name, held in before.items():
        now, then = (values[np.isfinite(values)] for values in (columns[name], held))
        if not len(now) or not len(then):
            continue
        spread = float(then.std())
        shift = (float(now.mean()) - float(then.mean())) / spread if spread > 0 else None
        is_same = name not in sets or (
            name in old_sets and sets[name].score_set == old_sets[name].score_set
        )
        differences.append(
            Difference(
                name=name,
                mean=float(now.mean()),
                mean_before=float(then.mean()),
                shift=shift,
                distance=float(ks_2samp(now, then, method="asymp").statistic),
                is_comparable=is_same,
            )
        )
    try:
        drift = compare_versions(other, version, MeasureConfig(), second_where=where)
        layouts, unread = list(drift.layouts), "" if drift.layouts else "No fields are shared."
    except UsageError as error:  # no states or no actions in one of them
        layouts, unread = [], error.message
    changes = store.diff(named, f"{version.branch}:{version.number}")
    return Comparison(
        ref=named,
        episodes=table.num_rows,
        added=len(changes.added),
        removed=len(changes.removed),
        replaced=len(changes.replaced),
        columns=before,
        differences=differences,
        layouts=layouts,
        unread=unread,
    )
