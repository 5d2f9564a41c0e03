"""Repair: a commit that shows everything still whole, and says what it left out.

Nothing is deleted or changed. Where commits are missing their numbers are filled, for a branch is
dense; then one more commit carries the state without what is damaged. Ids of episodes that are left
out are forgotten, so that they can be brought in again from where they came.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

import numpy as np

from pipeline.store import blocks, derive, ids, layout
from pipeline.store.catalog import Catalog
from pipeline.store.doctor import Checker, Examination, examine, readable, states
from pipeline.store.files import files_of_overlay
from pipeline.store.tables import kept_positions
from schemas.document import DataFile
from schemas.errors import DamagedStoreError
from schemas.state import totals
from schemas.version import Close, Commit, Operation, Part, Reset, State


@dataclass(frozen=True)
class Repaired:
    """What a repair did to one branch."""

    branch: str
    commit: Commit
    left_out: tuple[str, ...]
    """What could not be kept, in words."""


def repair(catalog: Catalog) -> list[Repaired]:
    """Appends, to every damaged branch, a commit that shows all that is whole.

    Raises:
        DamagedStoreError: if a branch has no readable commit; the others are repaired then.
    """
    catalog = Catalog(catalog.objects, create=False)  # what was read before may be lost by now
    done = []
    hopeless = []
    for branch in sorted(examine(catalog).branches):
        found = Examination()
        commits = readable(catalog, branch, found)
        if not any(commits):
            hopeless.append(branch)
            continue
        unreadable = [problem.message for problem in found.damage]
        *_, latest = states(commits)
        state, lost = _Remains(catalog, latest).state()
        left_out = (*unreadable, *lost) or ("older versions only, which are damaged",)
        _fill(catalog, branch, commits)
        commit = _append(catalog, branch, commits, state, f"left out {'; '.join(left_out)}")
        done.append(Repaired(branch, commit, left_out))
    if hopeless:
        raise DamagedStoreError(
            f"Expected at least one readable commit of {hopeless[0]!r}, came none; restore the "
            f"branch from a copy.",
            where=layout.branch(hopeless[0]),
        )
    return done


class _Remains:
    """Works out what is left of a state."""

    def __init__(self, catalog: Catalog, state: State) -> None:
        self._catalog = catalog
        self._state = state
        self._checker = Checker(catalog, Examination())
        self._left_out: list[str] = []
        self._lost: list[np.ndarray] = []
        """Index keys of episodes that are left out."""

    def state(self) -> tuple[State, list[str]]:
        """Returns the state without what is damaged, and what that is."""
        old = self._state
        parts = tuple(part for part in map(self._part, old.parts) if part is not None)
        overlays = tuple(
            overlay
            for overlay in old.overlays
            if all(self._is_sound(f, "scores or labels") for f in files_of_overlay(overlay))
        )
        quarantine = tuple(f for f in old.quarantine if self._is_sound(f, "a list of refusals"))
        sets = {
            name: score_set
            for name, score_set in old.score_sets.items()
            if self._is_sound(score_set.model, "a reference model, whose scores go with it")
        }
        metrics = {name: record for name, record in old.metrics.items() if record.score_set in sets}
        update = {
            "parts": parts,
            "known": self._known(parts),
            "overlays": overlays,
            "quarantine": quarantine,
            "score_sets": sets,
            "metrics": metrics,
            # What is gone must be read again: a source that counts as taken in would not be.
            "sources": {} if self._left_out else old.sources,
        }
        return old.model_copy(update=update), self._left_out

    def _is_sound(self, file: DataFile, what: str) -> bool:
        fault = self._checker.file_fault(file)
        if fault is not None:
            self._left_out.append(f"{what} ({fault.where})")
        return fault is None

    def _part(self, part: Part) -> Part | None:
        """Returns a part without the episodes whose rows are damaged; None if none is left."""
        faults = self._checker.part_faults(part)
        if not faults:
            return part
        files = [part.rows, *([part.selection] if part.selection else [])]
        unread = [file for file in files if self._checker.file_fault(file)]
        kept = None if unread else self._without_bad_blocks(part)
        if part.rows in unread:
            self._forget_index(part)
        lost = part.episodes - (kept.episodes if kept else 0)
        self._left_out.append(f"{lost} of {part.episodes} episodes of a part ({faults[0].where})")
        return kept

    def _without_bad_blocks(self, part: Part) -> Part | None:
        sound = {block.id: block.rows for block in part.blocks if self._checker.is_sound(block)}
        table = self._catalog.parquet(part.rows)
        places = zip(
            table["_block"].to_pylist(),
            table["_row"].to_pylist(),
            table["length"].to_pylist(),
            strict=True,
        )
        is_whole = [
            block in sound and row + length + 1 <= sound[block] for block, row, length in places
        ]
        kept = kept_positions(self._catalog, part, table.num_rows)
        rows = np.array([row for row in kept if is_whole[row]], np.int64)
        gone = table.take(np.setdiff1d(kept, rows)).select(["episode_id", "digest"]).to_pylist()
        named = [(row["episode_id"], row["digest"]) for row in gone if row["episode_id"]]
        self._lost.append(ids.keys(named))
        if not len(rows):
            return None
        lengths = table["length"].to_numpy(zero_copy_only=False)
        return part.model_copy(
            update={
                "episodes": len(rows),
                "steps": int(lengths[rows].sum()),
                "selection": derive.write_selection(self._catalog, [(part, rows)]),
                "blocks": tuple(block for block in part.blocks if block.id in sound),
            }
        )

    def _forget_index(self, part: Part) -> None:
        """Forgets the ids of a part whose rows cannot be read, if it has an index of its own."""
        mine = layout.id_index(part.id)
        for file in self._state.known:
            if file.key == mine and self._checker.file_fault(file) is None:
                self._lost.append(self._catalog.id_index(file))

    def _known(self, parts: tuple[Part, ...]) -> tuple[DataFile, ...]:
        """Returns the id indexes; where one is damaged, what the rows say stands in for it."""
        sound = tuple(f for f in self._state.known if self._is_sound(f, "an id index"))
        lost = np.unique(np.concatenate([ids.keys([]), *self._lost]), axis=0)
        if len(sound) == len(self._state.known) and not len(lost):
            return sound
        pairs = [self._catalog.id_index(file) for file in sound]
        if len(sound) < len(self._state.known):
            pairs += [self._keys_of(part) for part in parts]
        known = np.concatenate([ids.keys([]), *pairs])
        forgotten = set(map(tuple, lost.tolist()))
        keep = [tuple(pair) not in forgotten for pair in known.tolist()]
        data = ids.encode(known[np.array(keep, bool)])
        key = layout.id_index(layout.new_id())
        self._catalog.objects.put({key: data})
        return (blocks.data_file(key, data),)

    def _keys_of(self, part: Part) -> np.ndarray:
        rows = self._catalog.parquet(part.rows).select(["episode_id", "digest"]).to_pylist()
        return ids.keys((row["episode_id"], row["digest"]) for row in rows if row["episode_id"])


def _fill(catalog: Catalog, branch: str, commits: list[Commit | None]) -> None:
    """Creates the numbers that are missing, each as what the one before it was."""
    numbers = {
        int(name[:12])
        for name in catalog.objects.names(layout.branch(branch))
        if name.endswith(".json") and name[:12].isdigit()
    }
    for number, state in enumerate(states(commits), 1):
        if number not in numbers:
            _append(catalog, branch, commits[: number - 1], state, "a commit that is missing")


def _append(
    catalog: Catalog,
    branch: str,
    commits: list[Commit | None],
    state: State,
    message: str,
) -> Commit:
    """Commits after some commits past what cannot be read: `publish` would have to read it."""
    before = [commit for commit in commits if commit is not None]
    last = before[-1] if before else None
    now = dt.datetime.now(dt.UTC)
    number = len(commits) + 1
    reset = Reset(reason="repair", to=last.ref) if last else None
    operations: tuple[Operation, ...] = (reset,) if reset else ()
    if last is not None and last.closed:
        operations = (*operations, Close())  # what was closed stays closed
    commit = Commit(
        id=layout.new_id(),
        run_id=layout.new_id(),
        branch=branch,
        number=number,
        parent=last.ref if last else None,
        message=f"repair: {message}"[:2000],
        created_at=max(now, last.created_at + dt.timedelta(microseconds=1)) if last else now,
        operations=operations,
        totals=totals(state),
        state=state,
    )
    data = commit.model_dump_json().encode()
    if not catalog.objects.put_if_absent(layout.commit(branch, number), data):
        raise DamagedStoreError(f"Someone else wrote to {branch!r} meanwhile; run it again.")
    return commit
