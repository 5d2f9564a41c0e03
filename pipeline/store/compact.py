"""Compaction: many small parts become few, and nobody can tell but by the speed.

Small commits make small parts: a tail and a Parquet file each. Runs of neighbouring parts of
similar size are put together, in tiers, so that each row is rewritten a few times at most, full
shards are never touched, and the logical order of episodes stays. One maintainer works at a time; a
commit that touched the same parts meanwhile wins, and the work is dropped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.store import arrays, blocks, layout, leases
from pipeline.store.catalog import Catalog, parquet_bytes
from pipeline.store.commit import Draft, Plan
from pipeline.store.tables import drop_erased, kept_positions
from pipeline.store.writer import write_blocks
from schemas.episode import Episode
from schemas.table import EpisodeRow, concat
from schemas.version import Commit, Compact, Part, State

FAN_IN = 16
"""So many neighbouring parts of a tier make one of a higher tier."""
FULL = 3 / 4
"""A part is full, and left alone, from this share of a shard's rows or encoded bytes on."""


@dataclass(frozen=True)
class Compacted:
    """What one round did."""

    commits: tuple[Commit, ...]
    parts_before: int
    parts_after: int
    rows: int
    """Rewritten."""


def compact(catalog: Catalog, branch: str = "main", *, everything: bool = False) -> Compacted:
    """Puts small neighbouring parts of a branch together until none is left to.

    Args:
        catalog: the store.
        branch: which.
        everything: merge also runs too short for a tier (before a branch is archived, say).

    Raises:
        LockHeldError: if another maintainer is at work.
    """
    with leases.turn(catalog.objects, leases.MAINTAINER), leases.lease(catalog.objects):
        before = _parts(catalog, branch)
        commits: list[Commit] = []
        rows = 0
        for _ in range(10_000):
            run = next_run(_parts(catalog, branch), FAN_IN if not everything else 2)
            if not run:
                break
            merged = merge(catalog, run)
            commit = catalog.refs.publish(
                branch,
                _plan(run, merged),
                message=f"compact {len(run)} parts",
                run_id=layout.new_id(),
            )
            if commit is None:
                continue  # someone touched these parts: look again
            commits.append(commit)
            rows += sum(block.rows for block in merged.blocks)
        return Compacted(tuple(commits), len(before), len(_parts(catalog, branch)), rows)


def next_run(parts: Sequence[Part], fan_in: int) -> tuple[Part, ...]:
    """Returns the first run of neighbouring parts to put together, or none.

    A run is of stored parts of one tier or below (tiers are powers of `FAN_IN` in rows), at least
    `fan_in` of them, and of no more rows than a shard holds.
    """
    for tier in range(8):
        run: list[Part] = []
        rows = 0
        for part in parts:
            size = _rows(part)
            fits = part.kind == "stored" and not _is_full(part) and _tier(size) <= tier
            is_alike = len(_specs((*run, part))) <= 1
            if fits and is_alike and rows + size <= blocks.SHARD_ROWS:
                run.append(part)
                rows += size
                continue
            if len(run) >= fan_in:
                return tuple(run)
            run, rows = ([part], size) if fits else ([], 0)
        if len(run) >= fan_in:
            return tuple(run)
    return ()


def _specs(parts: Iterable[Part]) -> set[str]:
    """Names of the specs of some parts; a part that erasures emptied has none."""
    return {block.spec for part in parts for block in part.blocks}


def _tier(rows: int) -> int:
    return int(math.log(max(rows, 1), FAN_IN))


def _rows(part: Part) -> int:
    return sum(block.rows for block in part.blocks)


def _is_full(part: Part) -> bool:
    size = sum(block.bytes for block in part.blocks)
    return _rows(part) >= FULL * blocks.SHARD_ROWS or size >= FULL * blocks.ENCODED_SHARD_BYTES


def _parts(catalog: Catalog, branch: str) -> tuple[Part, ...]:
    head = catalog.refs.head(branch)
    return catalog.refs.state(head).parts if head else ()


def merge(
    catalog: Catalog, run: Sequence[Part], advance: Callable[[int, int], None] | None = None
) -> Part:
    """Writes the kept episodes of some parts of one spec as one stored part.

    Args:
        catalog: the store.
        run: the parts, in order.
        advance: called with the episodes and steps of each that is read.
    """
    tables = []
    for part in run:
        table = catalog.parquet(part.rows)
        tables.append(table.take(kept_positions(catalog, part, table.num_rows)))
    table = drop_erased(concat(tables), catalog.erased()).combine_chunks()
    known = {block.id: block for part in run for block in part.blocks}
    blank = EpisodeRow({}, {}, {})  # the table has the rows; only places are wanted

    def episodes() -> Iterator[tuple[Episode, EpisodeRow]]:
        for episode in arrays.read_episodes(catalog, known, table):
            yield episode, blank
            if advance is not None:
                advance(1, episode.length)

    written = tuple(
        write_blocks(
            catalog.objects,
            episodes(),
            spec=next(iter(_specs(run)), "default"),
        )
    )
    places: dict[int, tuple[str, int]] = {}
    for block in written:
        for position, row in zip(block.positions, block.rows, strict=True):
            places[position] = (row.block, row.row)
    placed = [places[position] for position in range(table.num_rows)]
    for name, values in (
        ("_block", pa.array([block for block, _ in placed], pa.string())),
        ("_row", pa.array([row for _, row in placed], pa.int64())),
    ):
        table = table.set_column(table.column_names.index(name), name, values)
    name = layout.new_id()
    data = parquet_bytes(table)
    catalog.objects.put({layout.episode_rows(name): data})
    return Part(
        id=name,
        episodes=table.num_rows,
        steps=int(np.sum(table["length"].to_numpy())) if table.num_rows else 0,
        rows=blocks.data_file(layout.episode_rows(name), data),
        blocks=tuple(block.block for block in written),
    )


def _plan(run: Sequence[Part], merged: Part) -> Plan:
    removed = tuple(part.id for part in run)

    def plan(_head: Commit | None, state: State) -> Draft | None:
        at = [index for index, part in enumerate(state.parts) if part.id in removed]
        untouched = tuple(state.parts[index] for index in at) == tuple(run)
        contiguous = bool(at) and at[-1] - at[0] == len(at) - 1
        if not untouched or not contiguous:
            return None
        return Draft((Compact(removed=removed, added=merged),))

    return plan
