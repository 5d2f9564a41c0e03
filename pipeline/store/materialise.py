"""Materialising: linked parts become stored ones, and nobody can tell but by where the bytes are.

Everything is copied first, each episode held against the digest of its row, and then shown by one
commit; until it is there, the version is what it was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipeline.store import derive, layout, leases
from pipeline.store.catalog import Catalog
from pipeline.store.commit import Draft
from pipeline.store.compact import merge
from pipeline.store.tables import drop_erased, kept_positions
from schemas.errors import DamagedStoreError, TransientError, UsageError
from schemas.state import apply
from schemas.version import Commit, Compact, Operation, Part, Reset, State

Advance = Callable[[int, int], None]


@dataclass(frozen=True)
class Materialised:
    """What was copied."""

    commit: Commit
    """The version that holds it; the one that was asked for, if nothing in it was linked."""
    episodes: int
    steps: int
    bytes: int
    """On disk, media files left out: they may be shared."""


def materialise(
    catalog: Catalog,
    version: Commit,
    ref: str,
    branch: str | None = None,
    advance: Advance | None = None,
) -> Materialised:
    """Copies the linked parts of a version into stored ones.

    Args:
        catalog: the store.
        version: which.
        ref: how it was named.
        branch: a new branch for the outcome; by default the version's own.
        advance: called with the episodes and steps of each episode that is copied.

    Raises:
        UsageError: if no branch is named and the version is not its branch's newest.
        NameTakenError: if the new branch's name is in use.
        LinkedSourceChangedError: if a source is not what it was; nothing is committed.
        TransientError: if others changed the same parts meanwhile.
        LockHeldError: if another maintainer is at work.
    """
    _check_place(catalog, version, ref, branch)
    parts = [part for part in catalog.refs.state(version).parts if part.kind == "linked"]
    if not parts and branch is None:
        return Materialised(version, 0, 0, 0)
    turn = leases.turn(catalog.objects, leases.MAINTAINER, leases.LEASE)
    with turn, leases.lease(catalog.objects, version.ref):
        copies = {part.id: _copy(catalog, part, advance) for part in parts}
        commit = _commit(catalog, version, parts, copies, branch)
    stored = copies.values()
    return Materialised(
        commit,
        episodes=sum(part.episodes for part in stored),
        steps=sum(part.steps for part in stored),
        bytes=sum(block.bytes for part in stored for block in part.blocks),
    )


def _check_place(catalog: Catalog, version: Commit, ref: str, branch: str | None) -> None:
    if branch is not None:
        layout.check_name(branch, "branch")
        derive.check_free(catalog, branch, taken_by="tag")
        derive.check_free(catalog, branch, taken_by="branch")
        return
    head = catalog.refs.head(version.branch)
    if head is None or head.id != version.id:
        raise UsageError(
            f"Expected the newest version of a branch, came {ref!r} "
            f"({version.branch}:{version.number}); name a new branch for it with --branch."
        )


def _copy(catalog: Catalog, part: Part, advance: Advance | None) -> Part:
    _check_digests(catalog, part)
    return merge(catalog, [part], advance)


def _check_digests(catalog: Catalog, part: Part) -> None:
    """Makes sure that the digests which reading compares with are those of the episodes' rows."""
    linked: dict[tuple[str, int], str] = {}
    for block in part.blocks:
        if block.container == "link":
            link = catalog.link(block)
            starts = np.cumsum([0, *(length + 1 for length in link.lengths)]).tolist()
            linked |= {(block.id, at): d for at, d in zip(starts, link.digests, strict=False)}
    table = catalog.parquet(part.rows)
    table = table.take(kept_positions(catalog, part, table.num_rows))
    table = drop_erased(table, catalog.erased())
    for row in table.select(["_block", "_row", "digest", "episode_id"]).to_pylist():
        place = (row["_block"], row["_row"])
        if place in linked and linked[place] != row["digest"]:
            raise DamagedStoreError(
                f"Expected {row['episode_id']!r} under one digest, came {row['digest'][:12]} in "
                f"its row and {linked[place][:12]} in its link; see `penstock doctor`.",
                where=part.rows.key,
            )


def _commit(
    catalog: Catalog,
    version: Commit,
    parts: list[Part],
    copies: dict[str, Part],
    branch: str | None,
) -> Commit:
    base = catalog.refs.state(version)
    operations: tuple[Operation, ...] = tuple(
        Compact(removed=(part.id,), added=copies[part.id]) for part in parts
    )

    def plan(head: Commit | None, state: State) -> Draft | None:
        if branch is not None:
            if head is not None:
                raise UsageError(f"Expected a new branch, {branch!r} was made meanwhile.")
            reset = Reset(reason="branch", to=version.ref)
            jump = apply(base, operations)
            return Draft((reset, *operations), jump=jump, parent=version.ref)
        there = {part.id: part for part in state.parts}
        if head is None or any(there.get(part.id) != part for part in parts):
            return None
        return Draft(operations)

    count = sum(part.episodes for part in copies.values())
    commit = catalog.refs.publish(
        branch or version.branch,
        plan,
        message=f"materialise {count} episodes",
        run_id=layout.new_id(),
    )
    if commit is None:
        raise TransientError(
            f"Expected the linked parts of {version.branch!r} to stay, someone changed them "
            f"meanwhile; run it again.",
            where=catalog.url,
        )
    return commit
