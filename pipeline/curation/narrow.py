"""The steps of a curation besides its filter: masks over a version's episodes, (E,) bool each."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.store.choose import Unscored
from pipeline.store.reader import Version
from pipeline.store.tables import KEEP_COLUMNS, episode_table, frame_ranges, overlay_rows
from schemas.errors import UnscoredError, UsageError
from schemas.table import METRIC_COLUMNS

COPIES = "duplicate_of"
_RANGE = re.compile(r"(-?\d{1,15})?:(-?\d{1,15})?")


@dataclass(frozen=True)
class Ranges:
    """Which steps of each episode stay."""

    episode_ids: pa.ChunkedArray
    steps: np.ndarray  # (E, 2) int64, the first and one past the last

    @property
    def kept(self) -> np.ndarray:
        """Which episodes have steps left, (E,) bool."""
        return np.asarray(self.steps[:, 1] > self.steps[:, 0])

    def table(self, mask: np.ndarray) -> pa.Table:
        """Returns the labels that say so of some episodes."""
        start, stop = KEEP_COLUMNS
        columns = {
            "episode_id": self.episode_ids,
            start: self.steps[:, 0],
            stop: self.steps[:, 1],
        }
        return pa.table(columns).filter(pa.array(mask))


def firsts(version: Version, mask: np.ndarray, unscored: Unscored | None) -> np.ndarray:
    """Returns the first candidate of each group of copies, in version order.

    A group is what `duplicate_of` leads to, so of two copies the first stays even where their
    original is no candidate.

    Raises:
        UnscoredError: if copies were not looked for among some candidates.
    """
    table = version.episodes()
    if COPIES not in table.column_names:
        raise UnscoredError(
            f"Expected the metric {COPIES!r} to be measured, came a version without it; run "
            f"`penstock measure` first."
        )
    is_open = mask & ~_looked_at(version)
    kept = _without(is_open, COPIES, unscored)
    named = pc.coalesce(table[COPIES].cast(pa.string()), table["episode_id"])
    groups = named.combine_chunks().dictionary_encode()
    candidates = np.flatnonzero(mask & kept)
    codes = groups.indices.to_numpy(zero_copy_only=False)[candidates]
    first = np.zeros(len(mask), bool)
    first[candidates[np.unique(codes, return_index=True)[1]]] = True
    return first


def frames(version: Version, text: str) -> Ranges:
    """Returns the steps START:STOP of each episode, within those that its labels keep already.

    Negative numbers count from an episode's end, as in a slice.

    Raises:
        UsageError: if the text is not such a range.
    """
    match = _RANGE.fullmatch(text.strip())
    if match is None or match.groups() == (None, None):
        raise UsageError(
            f"Expected --frames START:STOP, such as 10:200, 10: or :-5, came {text!r}."
        )
    table = episode_table(version.store, version.commit)
    lengths = table["length"].to_numpy()
    start, stop = (
        default if said is None else int(said) + lengths * (int(said) < 0)
        for said, default in zip(match.groups(), (0 * lengths, lengths), strict=True)
    )
    known = frame_ranges(table)
    known = np.stack([0 * lengths, lengths], axis=1) if known is None else known
    first = np.maximum(start, known[:, 0])
    last = np.maximum(np.minimum(stop, known[:, 1]), first)
    return Ranges(table["episode_id"], np.stack([first, last], axis=1))


def best(
    version: Version,
    mask: np.ndarray,
    top: int,
    by: str,
    per: str | None,
    unscored: Unscored | None,
) -> np.ndarray:
    """Returns the `top` best candidates by a column, of all or of each group.

    Of equal values the earlier episode wins. Candidates without a value are kept besides the best,
    or dropped, as `unscored` says.

    Raises:
        UnscoredError: if some candidates have no score and nobody said what of them.
        UsageError: if the column is not one of numbers, or a fact that some have not.
    """
    name = by.removeprefix("-")
    column = version.episodes(columns=[name])[name]
    if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
        raise UsageError(f"Expected a column of numbers for --by, came {name} of {column.type}.")
    values = column.cast(pa.float64()).to_numpy().copy()
    is_open = mask & np.isnan(values)
    kept = _without(is_open, name, unscored)
    candidates = np.flatnonzero(mask & ~is_open)
    signed = values if by.startswith("-") else -values
    groups = _codes(version, per) if per is not None else np.zeros(len(mask), np.int64)
    order = candidates[np.lexsort((candidates, signed[candidates], groups[candidates]))]
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    within = np.arange(len(order)) - np.repeat(starts, np.diff([*starts, len(order)]))
    found = is_open & kept
    found[order[within < top]] = True
    return np.asarray(found)


def balanced(
    version: Version, mask: np.ndarray, by: str, each: int | None, seed: int
) -> np.ndarray:
    """Returns equally many candidates of each group, in the order of a hash of seed and id.

    The order of an episode does not hang on the others: as data grow, groups grow alike.

    Raises:
        UsageError: if a group has fewer than were asked for.
    """
    codes = _codes(version, by)
    names = version.episodes(columns=[by])[by].to_pylist()
    ids = version.episodes(columns=["episode_id"])["episode_id"].to_pylist()
    candidates = np.flatnonzero(mask)
    found, counts = np.unique(codes[candidates], return_counts=True)
    least = int(counts.min())
    if each is not None and each > least:
        rare = names[candidates[codes[candidates] == found[counts.argmin()]][0]]
        raise UsageError(
            f"Expected at least {each} episodes of every {by}, came {least} of {rare!r}; ask for "
            f"fewer with --each, or leave that {by} out with --where."
        )
    kept = np.zeros(len(mask), bool)
    for group in found:
        mine = [int(at) for at in candidates[codes[candidates] == group]]
        mine.sort(key=lambda at: _order(seed, ids[at]))
        kept[mine[: each or least]] = True
    return kept


def _order(seed: int, episode_id: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{episode_id}".encode()).digest()


def _codes(version: Version, by: str) -> np.ndarray:
    """A number for each value of a column, null among them, (E,) int64."""
    column = version.episodes(columns=[by])[by].combine_chunks()
    if pa.types.is_nested(column.type) or pa.types.is_floating(column.type):
        raise UsageError(f"Expected a column to group by, came {by} of {column.type}.")
    encoded = column.dictionary_encode(null_encoding="encode")
    return np.asarray(encoded.indices.to_numpy(zero_copy_only=False), np.int64)


def _looked_at(version: Version) -> np.ndarray:
    """Which episodes were looked at for copies, (E,) bool: null means no copy for those alone."""
    state = version.state
    ids = version.episodes(columns=["episode_id"])["episode_id"]
    looked = np.zeros(len(ids), bool)
    shown = state.metrics.get(COPIES)
    for overlay in state.overlays:
        if COPIES in overlay.columns and shown and overlay.score_set == shown.score_set:
            mine = overlay_rows(version.store, overlay)["episode_id"]
            looked |= pc.is_in(ids, value_set=mine.combine_chunks()).to_numpy()
    return looked


def _without(is_open: np.ndarray, name: str, unscored: Unscored | None) -> np.ndarray:
    """Which episodes stay, given those that have no value of a column that decides."""
    if not is_open.any() or unscored == "keep":
        return np.ones(len(is_open), bool)
    if unscored == "drop":
        return ~is_open
    said = f"Expected a value of {name} for every candidate, came {int(is_open.sum())} without; "
    if name in METRIC_COLUMNS:
        raise UnscoredError(said + "run `penstock measure`, or say --unscored keep|drop.")
    raise UsageError(said + f"add `{name} is not null` to --where, or say --unscored keep|drop.")
