"""Cutting what a job wrote into commits of a bounded number of episodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pipeline.store.writer import WrittenBlock
from schemas.table import EpisodeRow

Slice = tuple[list[EpisodeRow], list[WrittenBlock]]


def in_slices(
    rows: Sequence[EpisodeRow], written: Sequence[WrittenBlock], most: int | None
) -> list[Slice]:
    """Returns rows and their blocks, cut where no block is divided; at least one slice.

    Args:
        rows: in order; those that are known have no block.
        written: the blocks, each of at most so many episodes.
        most: written episodes per slice; None takes all at once.
    """
    if most is None:
        return [(list(rows), list(written))]
    size = {block.block.id: len(block.rows) for block in written}
    left: Counter[str] = Counter()
    slices: list[list[EpisodeRow]] = [[]]
    count = 0
    for row in rows:
        begins = bool(row.block) and row.block not in left
        is_between = not any(left.values())
        if begins and is_between and count and count + size[row.block] > most:
            slices.append([])
            count = 0
        if begins:
            left[row.block] = size[row.block]
        if row.block:
            left[row.block] -= 1
            count += 1
        slices[-1].append(row)
    return [(part, _blocks_of(part, written)) for part in slices]


def _blocks_of(rows: Sequence[EpisodeRow], written: Sequence[WrittenBlock]) -> list[WrittenBlock]:
    used = {row.block for row in rows}
    return [block for block in written if block.block.id in used]
