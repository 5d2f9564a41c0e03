"""Curation: what to keep of a version, step by step, as one request that can be applied again.

The steps, in this order: a filter, copies, frames, the best N, exclusions, balance. Each sees only
what the ones before it left, and the record of a curated version says how many it left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.curation import narrow
from pipeline.store.choose import Unscored
from pipeline.store.reader import Version
from pipeline.store.selection import Selection
from pipeline.store.store import Store
from schemas.errors import NotFoundError, UsageError
from schemas.version import Derivation

MAX_EXCLUSION_BYTES = 256 << 20


@dataclass(frozen=True)
class Curation:
    """What to keep of a version."""

    where: str | None = None
    """A filter; None keeps all."""
    dedupe: bool = False
    """Then, of several copies of an episode (`duplicate_of`), only the first."""
    frames: str | None = None
    """Then only the steps START:STOP of each episode, as a slice; those without any go."""
    top: int | None = None
    """Then only so many, by a column."""
    by: str | None = None
    """Largest values of this column first; `-column` takes the smallest."""
    per: str | None = None
    """So many for every value of this column."""
    exclude: tuple[str, ...] = ()
    """Then without these episode ids."""
    balance: str | None = None
    """Then equally many for every value of this column, drawn by a hash of seed and id."""
    each: int | None = None
    """How many those are; None for as many as the rarest value has."""
    seed: int = 0
    """Of that draw."""
    unscored: str | None = None
    """`keep` or `drop` episodes whose fate hangs on a score they have not."""


def apply(version: Version, wanted: Curation) -> Selection:
    """Returns the episodes of a version that a curation keeps.

    Raises:
        FilterError: if the filter does not fit the version.
        UnscoredError: if a metric decides and some candidates have none.
        UsageError: if nothing was asked, if what was asked does not fit, or if nothing is left.
    """
    _check(wanted)
    unscored = check_unscored(wanted.unscored)
    mask = np.ones(len(version), bool)
    derivation = Derivation(base=version.commit.ref)
    dropped: dict[str, int] = {}
    labels: narrow.Ranges | None = None

    def step(name: str, kept: np.ndarray) -> None:
        nonlocal mask
        dropped[name] = int((mask & ~kept).sum())
        mask = mask & kept

    if wanted.where is not None:
        found = version.where(wanted.where, unscored=unscored)
        derivation = found.derivation
        step("where", found.mask)
    if wanted.dedupe:
        step("dedupe", narrow.firsts(version, mask, unscored))
    if wanted.frames is not None:
        labels = narrow.frames(version, wanted.frames)
        step("frames", labels.kept)
    if wanted.top is not None and wanted.by is not None:
        step("top", narrow.best(version, mask, wanted.top, wanted.by, wanted.per, unscored))
    if wanted.exclude:
        ids = version.episodes(columns=["episode_id"])["episode_id"]
        excluded = pc.is_in(ids, value_set=pa.array(wanted.exclude, pa.string())).to_numpy()
        step("exclude", ~excluded)
    if wanted.balance is not None and mask.any():
        drawn = narrow.balanced(version, mask, wanted.balance, wanted.each, wanted.seed)
        step("balance", drawn)
    if not mask.any():
        raise UsageError("Expected at least one episode to be left, came none; loosen the filter.")
    update = {
        "dedupe": wanted.dedupe,
        "frames": wanted.frames,
        "top": wanted.top,
        "by": wanted.by,
        "per": wanted.per,
        "exclude": wanted.exclude,
        "balance": wanted.balance,
        "each": wanted.each,
        "seed": wanted.seed,
        "unscored": unscored,
        "dropped": dropped,
        "score_sets": {**derivation.score_sets, **_score_sets(version, wanted)},
    }
    return Selection(
        version, mask, derivation.model_copy(update=update), labels and labels.table(mask)
    )


def refresh(store: Store, branch: str) -> Selection:
    """Returns what a curated branch's choice keeps of the newest version of its base."""
    derivation = store.version(branch).state.derivation
    if derivation is None:
        raise UsageError(f"Expected a curated branch, came {branch!r}, which was not curated.")
    wanted = Curation(
        where=derivation.where,
        dedupe=derivation.dedupe,
        frames=derivation.frames,
        top=derivation.top,
        by=derivation.by,
        per=derivation.per,
        exclude=derivation.exclude,
        balance=derivation.balance,
        each=derivation.each,
        seed=derivation.seed,
        unscored=derivation.unscored,
    )
    return apply(store.version(derivation.base.branch), wanted)


def describe(wanted: Derivation | Curation) -> str:
    """Returns how a version was curated, in one line."""
    said = [wanted.where] if wanted.where is not None else []
    if wanted.dedupe:
        said.append("no copies")
    if wanted.frames is not None:
        said.append(f"frames {wanted.frames}")
    if wanted.top is not None:
        per = f" per {wanted.per}" if wanted.per else ""
        said.append(f"top {wanted.top} by {wanted.by}{per}")
    if wanted.exclude:
        said.append(f"without {len(wanted.exclude)} by id")
    if wanted.balance is not None:
        each = f", {wanted.each} each" if wanted.each else ""
        said.append(f"balanced by {wanted.balance}{each} (seed {wanted.seed})")
    return "; ".join(said) or "all"


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


def _check(wanted: Curation) -> None:
    if wanted == Curation(unscored=wanted.unscored, seed=wanted.seed):
        raise UsageError(
            "Expected --where, --dedupe, --frames, --top with --by, --exclude, or --balance."
        )
    if (wanted.top is None) != (wanted.by is None):
        raise UsageError("Expected --top N together with --by COLUMN.")
    if wanted.per is not None and wanted.top is None:
        raise UsageError("Expected --per COLUMN together with --top N --by COLUMN.")
    if wanted.each is not None and wanted.balance is None:
        raise UsageError("Expected --each N together with --balance COLUMN.")


def _score_sets(version: Version, wanted: Curation) -> dict[str, str]:
    """The score sets of metrics that decided besides the filter's."""
    names = ["duplicate_of"] if wanted.dedupe else []
    if wanted.by is not None:
        names.append(wanted.by.removeprefix("-"))
    shown = version.state.metrics
    return {name: shown[name].score_set for name in names if name in shown}
