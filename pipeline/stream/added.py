"""Arrays that were added to steps, laid over what records hold as batches are made.

The packed cache holds what blocks hold and nothing else, so it never mixes old rewards with
relabelled ones: these lie beside it in the version's own row layout, and belong to one version.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.store.reader import EpisodeIndex
from pipeline.store.step_arrays import StepArrays
from schemas.errors import UsageError


@dataclass(frozen=True)
class Added:
    """One field that lies beside the records."""

    values: np.ndarray
    """(rows of the version, *shape); NaN, or 0, where `has` is false."""
    has: np.ndarray | None
    """(rows of the version,) bool, which rows it speaks of; None if of all that are drawn."""

    def over(self, positions: np.ndarray, below: np.ndarray | None) -> np.ndarray:
        """Returns the field at some positions.

        Args:
            positions: in the version's row layout, any shape.
            below: what records hold there, if they hold the field.
        """
        values = np.take(self.values, positions, axis=0)
        if self.has is None or below is None:
            return values
        where = self.has[positions].reshape(*positions.shape, *[1] * (below.ndim - positions.ndim))
        return np.where(where, values, below)


def added_fields(
    arrays: Mapping[str, StepArrays],
    index: EpisodeIndex,
    kept: np.ndarray | None,
    dtypes: Mapping[str, np.dtype],
) -> dict[str, Added]:
    """Returns what was added to the steps of a version, by full field name.

    Args:
        arrays: by full field name.
        index: the version's episodes.
        kept: (E,) bool, the episodes that are drawn from; None for all.
        dtypes: what each field is streamed as.

    Raises:
        UsageError: if an extra was not added to all of these episodes, or a value does not fit.
    """
    starts = np.cumsum(index.length + 1) - (index.length + 1)
    rows = int((index.length + 1).sum())
    drawn = np.flatnonzero(np.ones(len(starts), bool) if kept is None else kept)
    found = {}
    for name, mine in arrays.items():
        dtype = dtypes[name]
        values = np.full((rows, *mine.field.shape), np.nan if dtype.kind == "f" else 0, dtype)
        has = np.zeros(rows, bool)
        missing = 0
        for at in drawn:
            episode_id, length = index.episode_ids[at], int(index.length[at])
            if episode_id not in mine:
                missing += 1
                continue
            place = slice(starts[at], starts[at] + length)
            _put(values, place, mine.of(episode_id, length), name)
            has[place] = True
        if missing and name != "rewards":
            raise UsageError(
                f"Expected a field that all episodes have, came {name!r}, which {missing} of "
                f"{len(drawn)} have not; annotate them too."
            )
        found[name] = Added(values, has if missing else None)
    return found


def _put(values: np.ndarray, place: slice, mine: np.ndarray, name: str) -> None:
    try:
        with np.errstate(over="raise", under="ignore", invalid="ignore"):
            values[place] = mine
    except FloatingPointError:
        raise UsageError(
            f"Expected values of {name!r} within {values.dtype}, came larger ones; "
            f"stream with dtype='float64' or dtype='keep'."
        ) from None
