"""Curation: a filter, the best N, exclusions, in that order; then a version, or a look first."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.store.choose import Unscored
from pipeline.store.reader import Selection, Version
from pipeline.store.store import Store
from schemas.errors import NotFoundError, UsageError
from schemas.version import Derivation

MAX_EXCLUSION_BYTES = 256 << 20


@dataclass(frozen=True)
class Curation:
    """What to keep of a version."""

    where: str | None = None
    """A filter; None keeps all."""
    top: int | None = None
    """Then only so many, by a column."""
    by: str | None = None
    """Largest values of this column first; `-column` takes the smallest."""
    exclude: tuple[str, ...] = ()
    """Then without these episode ids."""
    unscored: str | None = None
    """`keep` or `drop` episodes whose fate hangs on a score they have not."""


def apply(version: Version, wanted: Curation) -> Selection:
    """Returns the episodes of a version that a curation keeps.

    Raises:
        FilterError: if the filter does not fit the version.
        UnscoredError: if a metric decides and some candidates have none.
        UsageError: if nothing was asked, or nothing is left.
    """
    if wanted == Curation(unscored=wanted.unscored):
        raise UsageError("Expected --where, --top with --by, or --exclude.")
    unscored = check_unscored(wanted.unscored)
    if wanted.where is not None:
        found = version.where(wanted.where, unscored=unscored)
        mask, derivation = found.mask.copy(), found.derivation
    else:
        mask = np.ones(len(version), bool)
        derivation = Derivation(base=version.commit.ref)
    if wanted.top is not None or wanted.by is not None:
        mask &= _top(version, mask, wanted.top, wanted.by)
    if wanted.exclude:
        ids = version.episodes(columns=["episode_id"])["episode_id"]
        mask &= ~pc.is_in(ids, value_set=pa.array(wanted.exclude, pa.string())).to_numpy()
    if not mask.any():
        raise UsageError("Expected at least one episode to be left, came none; loosen the filter.")
    return Selection(
        version,
        mask,
        derivation.model_copy(
            update={"top": wanted.top, "by": wanted.by, "exclude": wanted.exclude}
        ),
    )


def refresh(store: Store, branch: str) -> Selection:
    """Returns what a curated branch's choice keeps of the newest version of its base."""
    derivation = store.version(branch).state.derivation
    if derivation is None:
        raise UsageError(f"Expected a curated branch, came {branch!r}, which was not curated.")
    wanted = Curation(
        where=derivation.where,
        top=derivation.top,
        by=derivation.by,
        exclude=derivation.exclude,
        unscored=derivation.unscored,
    )
    return apply(store.version(derivation.base.branch), wanted)


def check_unscored(text: str | None) -> Unscored | None:
    """Returns `keep`, `drop` or None.

    Raises:
        UsageError: for any other text.
    """
    choices: dict[str | None, Unscored | None] = {None: None, "keep": "keep", "drop": "drop"}
    if text not in choices:
        raise UsageError(f"Expected --unscored keep or drop, came {text!r}.")
    return choices[text]


def read_exclusions(path: str) -> tuple[str, ...]:
    """Returns the episode ids in a file, one a line.

    Raises:
        NotFoundError: if there is no such file.
    """
    file = Path(path)
    if not file.is_file():
        raise NotFoundError("Expected a file of episode ids, came none.", where=path)
    if file.stat().st_size > MAX_EXCLUSION_BYTES:
        raise UsageError("Expected a file of episode ids, came one of over 256 MB.", where=path)
    lines = file.read_text(encoding="utf-8").splitlines()
    return tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))


def preview_rows(selection: Selection) -> list[dict[str, Any]]:
    """Returns, for each numeric column, how the kept episodes differ from those left out."""
    table = selection.version.episodes()
    rows = []
    for field in table.schema:
        if not (pa.types.is_floating(field.type) or pa.types.is_integer(field.type)):
            continue
        values = table[field.name].cast(pa.float64()).to_numpy()
        kept = values[selection.mask & np.isfinite(values)]
        left = values[~selection.mask & np.isfinite(values)]
        if len(kept):
            rows.append(
                {
                    "column": field.name,
                    "kept_mean": float(kept.mean()),
                    "left_out_mean": float(left.mean()) if len(left) else None,
                    "kept_min": float(kept.min()),
                    "kept_max": float(kept.max()),
                }
            )
    return rows


def _top(version: Version, mask: np.ndarray, top: int | None, by: str | None) -> np.ndarray:
    """Returns the mask of the `top` best of the masked episodes by a column."""
    if top is None or by is None:
        raise UsageError("Expected --top N together with --by COLUMN.")
    name = by.removeprefix("-")
    column = version.episodes(columns=[name])[name]
    if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
        raise UsageError(f"Expected a column of numbers for --by, came {name} of {column.type}.")
    values = column.cast(pa.float64()).to_numpy().copy()
    if np.isnan(values[mask]).any():
        raise UsageError(
            f"Expected a value of {name} for every candidate, came "
            f"{int(np.isnan(values[mask]).sum())} without; add `{name} is not null` to --where."
        )
    signed = values if by.startswith("-") else -values
    candidates = np.flatnonzero(mask)
    best = candidates[np.argsort(signed[candidates], kind="stable")[:top]]
    kept = np.zeros(len(mask), bool)
    kept[best] = True
    return kept
