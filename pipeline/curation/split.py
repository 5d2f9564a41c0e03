"""Splits by hash: which side an episode is on follows from its key and a seed alone.

So it does not hang on the other episodes, on their order or on when it came: as data grow, nobody
changes sides. Copies of an episode (`duplicate_of`) have its key, so that no copy of a training
episode is validated on.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from fractions import Fraction

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.curation.narrow import COPIES
from pipeline.store.reader import Version
from schemas.errors import UsageError

ID = "episode_id"


@dataclass(frozen=True)
class Split:
    """Sides of a split and how episodes come to them."""

    shares: tuple[tuple[str, Fraction], ...]
    """Sides in order, each with its share; they add up to 1."""
    by: str = ID
    """The column whose values stay together."""
    seed: int = 0

    def side(self, key: str) -> str:
        """Returns the side of a key.

        A SHA-256 of seed and key, read as a number from 0 to 1, falls into the share of a side.
        """
        digest = hashlib.sha256(f"{self.seed}\0{key}".encode()).digest()
        place = Fraction(int.from_bytes(digest[:8], "big"), 2**64)
        end = Fraction(0)
        for name, share in self.shares:
            end += share
            if place < end:
                return name
        return self.shares[-1][0]

    def __str__(self) -> str:
        shares = ",".join(f"{name}={float(share):g}" for name, share in self.shares)
        return f"split {shares} by {self.by}, seed {self.seed}"


def parse_split(text: str, by: str = ID, seed: int = 0) -> Split:
    """Returns what `train=0.9,val=0.1` means.

    Raises:
        UsageError: if it is something else, or the shares do not add up to 1.
    """
    said = f"Expected --split NAME=SHARE,... with shares that add up to 1, came {text!r}"
    shares = []
    for piece in text.split(","):
        name, equals, number = (part.strip() for part in piece.partition("="))
        try:
            share = Fraction(number)
        except (ValueError, ZeroDivisionError):
            raise UsageError(f"{said}; write it like train=0.9,val=0.1.") from None
        if not equals or not name or share <= 0 or len(number) > 32:
            raise UsageError(f"{said}; write it like train=0.9,val=0.1.")
        shares.append((name, share))
    total = sum(share for _, share in shares)
    if total != 1 or len({name for name, _ in shares}) < len(shares):
        raise UsageError(f"{said} (the sum is {float(total):g}).")
    return Split(tuple(shares), by, seed)


def split_labels(version: Version, split: Split, name: str = "split") -> pa.Table:
    """Returns the side of every episode as a label.

    Raises:
        UsageError: if some episodes have no value of the column to split by.
        UnknownNameError: if there is no such column.
    """
    table = version.episodes()
    keys = _keys(table, version, split.by).cast(pa.string())
    if keys.null_count:
        raise UsageError(
            f"Expected a value of {split.by} for every episode, came {keys.null_count} without; "
            f"split by another column."
        )
    sides: dict[str, str] = {}
    found = [sides.setdefault(key, split.side(key)) for key in keys.to_pylist()]
    return pa.table({ID: table[ID], name: pa.array(found, pa.string())})


def knows_copies(version: Version) -> bool:
    """True if the version's episodes were compared with one another."""
    return COPIES in version.state.metrics


def _keys(table: pa.Table, version: Version, by: str) -> pa.ChunkedArray:
    """What each episode's side follows from: its own value, or that of what it is a copy of."""
    own = version.episodes(columns=[by])[by]
    if COPIES not in table.column_names:
        return own
    copies = table[COPIES].cast(pa.string())
    if by == ID:
        return pc.coalesce(copies, own)
    at = pc.index_in(copies, value_set=table[ID].combine_chunks())
    return pc.if_else(pc.is_valid(at), own.combine_chunks().take(at.combine_chunks()), own)
