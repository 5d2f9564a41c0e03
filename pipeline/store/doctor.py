"""The doctor: reads everything that any kept version refers to, and can leave out what is lost.

Damage is a commit that cannot be read, a gap in a branch, a file that is missing, short or changed,
or counts that contradict one another. Orphans (files that nothing refers to yet) and leases of dead
jobs are listed but are no damage. Repair never deletes: it appends a commit that shows everything
still whole, and says what it left out.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from pipeline.store import blocks, derive, ids, layout
from pipeline.store.catalog import Catalog
from pipeline.store.files import unit_of
from pipeline.store.leases import leases
from pipeline.store.reach import kept_from, reachable
from pipeline.store.tables import kept_positions
from schemas.document import DataFile
from schemas.errors import DamagedStoreError, PenstockError
from schemas.version import Block, Commit, Overlay, Part, Reset, State, apply, totals


@dataclass(frozen=True)
class Problem:
    """One finding."""

    code: str
    """`bad_commit gap missing_file bad_file bad_counts bad_tag orphan dead_lease`."""
    where: str
    message: str
    is_damage: bool = True


@dataclass
class Examination:
    """What was found."""

    problems: list[Problem] = field(default_factory=list)
    branches: set[str] = field(default_factory=set)
    """Branches that show damage."""
    files: int = 0
    """Files read."""
    bytes: int = 0

    @property
    def damage(self) -> list[Problem]:
        """The findings that are damage."""
        return [problem for problem in self.problems if problem.is_damage]


@dataclass(frozen=True)
class Repaired:
    """What a repair did to one branch."""

    branch: str
    commit: Commit
    left_out: tuple[str, ...]
    """What could not be kept, in words."""


def examine(catalog: Catalog) -> Examination:
    """Reads every file of every kept version of every branch, and every tag."""
    found = Examination()
    checker = _Checker(catalog, found)
    repaired: dict[str, int] = {}
    for branch in sorted(catalog.objects.names(layout.BRANCHES)):
        commits = _readable(catalog, branch, found)
        repaired[branch] = _last_repair(commits)
        first = kept_from(commit for commit in commits if commit)
        states = list(enumerate(_states(commits), 1))
        for number, state in reversed(states):  # the newest first: it decides what is damage
            if number >= first or number == len(commits):
                checker.check(state, f"{branch}:{number}", number >= repaired[branch])
    _check_tags(catalog, checker, found, repaired)
    if not found.damage:
        _list_orphans(catalog, found)
    for lease in leases(catalog.objects, dead=True):
        said = f"The lease of {lease.holder} expired at {lease.expires_at.isoformat()}."
        found.problems.append(Problem("dead_lease", layout.lease(lease.id), said, False))
    return found


def repair(catalog: Catalog) -> list[Repaired]:
    """Appends, to every damaged branch, a commit that shows all that is whole."""
    done = []
    damaged = examine(catalog).branches
    for branch in sorted(catalog.objects.names(layout.BRANCHES)):
        found = Examination()
        commits = _readable(catalog, branch, found)
        if not commits or (commits[-1] and commits[-1].closed):
            continue
        unreadable = [problem.message for problem in found.damage]
        *_, latest = _states(commits)
        state, lost = _whole(catalog, latest)
        left_out = (*unreadable, *lost)
        if branch in damaged and not left_out:
            left_out = ("older versions only, which are damaged",)
        if left_out:
            done.append(_append(catalog, branch, commits, state, left_out))
    return done


class _Checker:
    """Checks states; each file, part and overlay once, whatever the number of versions."""

    def __init__(self, catalog: Catalog, found: Examination) -> None:
        self._catalog = catalog
        self._found = found
        self._files: dict[str, str | None] = {}
        self._parts: dict[str, list[Problem]] = {}

    def check(self, state: State, where: str, is_damage: bool = True) -> None:
        """Notes what is wrong with a state; before a repair that is no longer damage."""
        for part in state.parts:
            for fault in self.part_faults(part):
                self._say(fault, where, is_damage)
        for file in self._loose_files(state):
            loose = self.file_fault(file)
            if loose is not None:
                self._say(loose, where, is_damage)

    def part_faults(self, part: Part) -> list[Problem]:
        """Returns what is wrong with a part; looked into once."""
        key = f"{part.id} {part.selection.key if part.selection else ''} {part.episodes}"
        if key not in self._parts:
            self._parts[key] = list(self._find_part_faults(part))
        return self._parts[key]

    def _find_part_faults(self, part: Part) -> Iterator[Problem]:
        faults = [self.file_fault(part.rows)]
        if part.selection is not None:
            faults.append(self.file_fault(part.selection))
        for block in part.blocks:
            fault = self.file_fault(block.file)
            faults.append(fault)
            if fault is None:
                faults += [self.file_fault(file) for file in self._catalog.block_files(block)]
        broken = [fault for fault in faults if fault is not None]
        yield from broken
        if not broken:
            yield from self._count_faults(part)

    def file_fault(self, file: DataFile) -> Problem | None:
        if file.key not in self._files:
            self._files[file.key] = None
            self._found.files += 1
            self._found.bytes += file.bytes
            try:
                self._catalog.read(file)
            except PenstockError as error:
                self._files[file.key] = error.message
        message = self._files[file.key]
        if message is None:
            return None
        stands_in = self._catalog.erasures.resolve(file).key
        code = "bad_file" if self._catalog.objects.exists(stands_in) else "missing_file"
        return Problem(code, file.key, message)

    def is_sound(self, block: Block) -> bool:
        """True if every file of a block is whole."""
        if self.file_fault(block.file) is not None:
            return False
        return all(self.file_fault(file) is None for file in self._catalog.block_files(block))

    def _count_faults(self, part: Part) -> Iterator[Problem]:
        table = self._catalog.parquet(part.rows)
        kept = kept_positions(self._catalog, part, table.num_rows)
        lengths = np.nan_to_num(table["length"].to_numpy(zero_copy_only=False).astype(float))
        if len(kept) != part.episodes or int(lengths[kept].sum()) > part.steps:
            yield Problem(
                "bad_counts",
                part.rows.key,
                f"Expected {part.episodes} episodes of {part.steps} steps, came {len(kept)} of "
                f"{int(lengths[kept].sum())}.",
            )
        spans = {block.id: block.rows for block in part.blocks}
        ends = table["_row"].to_numpy(zero_copy_only=False) + lengths + 1
        names = table["_block"].to_pylist()
        outside = [row for row in kept if names[row] and ends[row] > spans.get(names[row], 0)]
        if outside:
            yield Problem(
                "bad_counts", part.rows.key, f"{len(outside)} episodes lie outside their blocks."
            )

    def _loose_files(self, state: State) -> Iterator[DataFile]:
        yield from state.known
        yield from state.quarantine
        for overlay in state.overlays:
            yield overlay.file
        for score_set in state.score_sets.values():
            yield score_set.model

    def _say(self, problem: Problem, where: str, is_damage: bool) -> None:
        """Notes a problem once; damage, if any version that shows it has not been repaired."""
        if is_damage and ":" in where:
            self._found.branches.add(where.partition(":")[0])
        said = f"{problem.message} Seen in {where}."
        noted = Problem(problem.code, problem.where, said, is_damage)
        for index, known in enumerate(self._found.problems):
            if (known.code, known.where) == (noted.code, noted.where):
                if is_damage and not known.is_damage:
                    self._found.problems[index] = noted
                return
        self._found.problems.append(noted)


def _readable(catalog: Catalog, branch: str, found: Examination) -> list[Commit | None]:
    """Returns a branch's commits by number, None where one cannot be read; notes why."""
    numbers = {
        int(name[:12])
        for name in catalog.objects.names(layout.branch(branch))
        if name.endswith(".json") and name[:12].isdigit()
    }
    commits: list[Commit | None] = []
    for number in range(1, max(numbers, default=0) + 1):
        key = layout.commit(branch, number)
        commit = None
        if number not in numbers:
            found.problems.append(Problem("gap", key, f"{key}: the commit is missing."))
        else:
            try:
                commit = catalog.refs.read(branch, number)
            except DamagedStoreError as error:
                found.problems.append(Problem("bad_commit", key, f"{key}: {error.message}"))
        commits.append(commit)
    since = _last_repair(commits)
    found.problems[:] = [
        replace(p, is_damage=p.is_damage and not _is_before(p.where, branch, since))
        for p in found.problems
    ]
    return commits


def _last_repair(commits: list[Commit | None]) -> int:
    """Returns the number of the newest repair of a branch, 0 without one."""
    repairs = [
        number
        for number, commit in enumerate(commits, 1)
        if commit and any(isinstance(o, Reset) and o.reason == "repair" for o in commit.operations)
    ]
    return max(repairs, default=0)


def _is_before(key: str, branch: str, number: int) -> bool:
    """True if a key is of a commit of the branch below a number."""
    folder, _, name = key.rpartition("/")
    return folder == layout.branch(branch) and name[:12].isdigit() and int(name[:12]) < number


def _states(commits: list[Commit | None]) -> Iterator[State]:
    """Yields the state after each number that the readable commits make so far."""
    state = State()
    for commit in commits:
        if commit is not None:
            state = commit.state or apply(state, commit.operations)
        yield state


def _whole(catalog: Catalog, state: State) -> tuple[State, list[str]]:
    """Returns a state without what is damaged, and what that is."""
    checker = _Checker(catalog, Examination())
    left_out: list[str] = []
    parts = []
    for part in state.parts:
        faults = checker.part_faults(part)
        kept = _without_bad_blocks(catalog, checker, part) if faults else part
        lost = part.episodes - (kept.episodes if kept else 0)
        if faults:
            left_out.append(f"{lost} of {part.episodes} episodes of a part ({faults[0].where})")
        if kept is not None:
            parts.append(kept)

    def sound(file: DataFile, what: str) -> bool:
        fault = checker.file_fault(file)
        if fault is not None:
            left_out.append(f"{what} ({fault.where})")
        return fault is None

    overlays: list[Overlay] = [o for o in state.overlays if sound(o.file, "scores or labels")]
    known = tuple(file for file in state.known if sound(file, "an id index"))
    listed = tuple(file for file in state.quarantine if sound(file, "a quarantine list"))
    update = {"parts": tuple(parts), "overlays": tuple(overlays), "quarantine": listed}
    if len(known) < len(state.known):
        known = (*known, *_rebuilt_index(catalog, parts))
    return state.model_copy(update={**update, "known": known}), left_out


def _without_bad_blocks(catalog: Catalog, checker: _Checker, part: Part) -> Part | None:
    """Returns a part without the episodes whose arrays are damaged; None if none is left."""
    files = [part.rows, *([part.selection] if part.selection else [])]
    if any(checker.file_fault(file) for file in files):
        return None
    sound = {block.id for block in part.blocks if checker.is_sound(block)}
    table = catalog.parquet(part.rows)
    kept = kept_positions(catalog, part, table.num_rows)
    blocks_of = table["_block"].to_pylist()
    rows = np.array([row for row in kept if blocks_of[row] in sound], np.int64)
    if not len(rows):
        return None
    lengths = table["length"].to_numpy(zero_copy_only=False)
    return part.model_copy(
        update={
            "episodes": len(rows),
            "steps": int(lengths[rows].sum()),
            "selection": derive.write_selection(catalog, [(part, rows)]),
            "blocks": tuple(block for block in part.blocks if block.id in sound),
        }
    )


def _rebuilt_index(catalog: Catalog, parts: list[Part]) -> tuple[DataFile, ...]:
    """Makes an id index from the episode rows: a lost one must not let episodes in twice."""
    from_rows = [catalog.parquet(part.rows).select(["episode_id", "digest"]) for part in parts]
    pairs = [
        (row["episode_id"], row["digest"])
        for table in from_rows
        for row in table.to_pylist()
        if row["episode_id"] is not None
    ]
    if not pairs:
        return ()
    data = ids.encode(ids.keys(pairs))
    key = layout.id_index(layout.new_id())
    catalog.objects.put({key: data})
    return (blocks.data_file(key, data),)


def _append(
    catalog: Catalog,
    branch: str,
    commits: list[Commit | None],
    state: State,
    left_out: tuple[str, ...],
) -> Repaired:
    """Commits past what cannot be read: `publish` would have to read it."""
    readable = [commit for commit in commits if commit is not None]
    last = readable[-1] if readable else None
    now = dt.datetime.now(dt.UTC)
    if last is None:
        raise DamagedStoreError(
            f"Expected at least one readable commit of {branch!r}, came none; restore the branch "
            f"from a copy.",
            where=layout.branch(branch),
        )
    commit = Commit(
        id=layout.new_id(),
        run_id=layout.new_id(),
        branch=branch,
        number=len(commits) + 1,
        parent=last.ref,
        message=f"repair: left out {'; '.join(left_out)}"[:2000],
        created_at=max(now, last.created_at + dt.timedelta(microseconds=1)),
        operations=(Reset(reason="repair", to=last.ref),),
        totals=totals(state),
        state=state,
    )
    data = commit.model_dump_json().encode()
    if not catalog.objects.put_if_absent(layout.commit(branch, commit.number), data):
        raise DamagedStoreError(f"Someone else wrote to {branch!r} meanwhile; run it again.")
    return Repaired(branch, commit, left_out)


def _check_tags(
    catalog: Catalog, checker: _Checker, found: Examination, repaired: dict[str, int]
) -> None:
    for name in sorted(n.removesuffix(".json") for n in catalog.objects.names(layout.TAGS)):
        try:
            ref = derive.read_tag(catalog, name)
            if ref is not None:
                commit = catalog.refs.read(ref.branch, ref.number)
                is_damage = ref.number >= repaired.get(ref.branch, 0)
                checker.check(catalog.refs.state(commit), f"tag {name}", is_damage)
        except PenstockError as error:
            found.problems.append(Problem("bad_tag", layout.tag(name), error.message))


def _list_orphans(catalog: Catalog, found: Examination) -> None:
    needed = reachable(catalog)
    for folder in layout.DATA:
        for entry in catalog.objects.entries(folder):
            if unit_of(entry.key) not in needed:
                said = f"{entry.bytes} bytes that no version refers to; gc removes them in time."
                found.problems.append(Problem("orphan", entry.key, said, False))
