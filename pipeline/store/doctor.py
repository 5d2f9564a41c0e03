"""The doctor: reads everything that any kept version refers to, and names what is damaged.

Damage is a commit that cannot be read or that follows another than it was made on, a gap in a
branch, a file that is missing, short or changed, counts that contradict one another, or a linked
source that does not hold its episodes any more (each is read). What lies
before a repair is no damage any more. Orphans (files that nothing refers to yet) and leases of dead
jobs are listed but are no damage either.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from pipeline.store import derive, layout, linked
from pipeline.store.catalog import Catalog
from pipeline.store.files import files_of_overlay, unit_of
from pipeline.store.leases import leases
from pipeline.store.reach import kept_from, reachable
from pipeline.store.tables import kept_positions
from schemas.document import DataFile
from schemas.errors import DamagedStoreError, PenstockError, UntrustedError
from schemas.state import apply
from schemas.version import Block, Commit, Part, Reset, State


@dataclass(frozen=True)
class Problem:
    """One finding."""

    code: str
    """`bad_commit gap missing_file bad_file bad_counts bad_tag changed_source`, or, which is no
    damage, `orphan dead_lease`."""
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


def examine(catalog: Catalog) -> Examination:
    """Reads every file of every kept version of every branch, and every tag."""
    catalog = Catalog(catalog.objects, create=False)  # what was read before may be lost by now
    linked.forget()
    found = Examination()
    checker = Checker(catalog, found)
    repaired: dict[str, int] = {}
    for branch in sorted(catalog.objects.names(layout.BRANCHES)):
        commits = readable(catalog, branch, found)
        repaired[branch] = last_repair(commits)
        first = kept_from(commit for commit in commits if commit)
        numbered = list(enumerate(states(commits), 1))
        for number, state in reversed(numbered):  # the newest first: it decides what is damage
            if number >= first or number == len(commits):
                checker.check(state, f"{branch}:{number}", number >= repaired[branch])
    _check_tags(catalog, checker, found, repaired)
    if not found.damage:
        # What only a lost version names is no orphan; as long as one is kept, nobody can tell.
        with contextlib.suppress(UntrustedError):
            _list_orphans(catalog, found)
    for lease in leases(catalog.objects, dead=True):
        said = f"The lease of {lease.holder} expired at {lease.expires_at.isoformat()}."
        found.problems.append(Problem("dead_lease", layout.lease(lease.id), said, False))
    return found


class Checker:
    """Checks states; each file, part and overlay once, whatever the number of versions."""

    def __init__(self, catalog: Catalog, found: Examination) -> None:
        self._catalog = catalog
        self._found = found
        self._files: dict[str, str | None] = {}
        self._parts: dict[str, list[Problem]] = {}
        self._sources: dict[str, Problem | None] = {}

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
                faults.append(self._source_fault(block))
        broken = [fault for fault in faults if fault is not None]
        yield from broken
        if not broken:
            yield from self._count_faults(part)

    def file_fault(self, file: DataFile) -> Problem | None:
        """Returns what is wrong with a file; read once."""
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
        if any(self.file_fault(file) for file in self._catalog.block_files(block)):
            return False
        return self._source_fault(block) is None

    def _source_fault(self, block: Block) -> Problem | None:
        """Returns what is wrong with what a linked block is linked to; read once."""
        if block.sources is None or self.file_fault(block.sources) is not None:
            return None
        if block.file.key not in self._sources:
            self._sources[block.file.key] = None
            try:
                self._catalog.read_block(block, ["valid"])
            except PenstockError as error:
                where = error.where or block.file.key
                self._sources[block.file.key] = Problem("changed_source", where, error.message)
        return self._sources[block.file.key]

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
            yield from files_of_overlay(overlay)
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


def readable(catalog: Catalog, branch: str, found: Examination) -> list[Commit | None]:
    """Returns a branch's commits by number, None where one cannot be read; notes why."""
    numbers = {
        int(name[:12])
        for name in catalog.objects.names(layout.branch(branch))
        if name.endswith(".json") and name[:12].isdigit()
    }
    commits: list[Commit | None] = []
    faults: list[Problem] = []
    for number in range(1, max(numbers, default=0) + 1):
        key = layout.commit(branch, number)
        commit = None
        if number not in numbers:
            faults.append(Problem("gap", key, f"{key}: the commit is missing."))
        else:
            try:
                commit = catalog.refs.read(branch, number)
            except DamagedStoreError as error:
                faults.append(Problem("bad_commit", key, f"{key}: {error.message}"))
        if commit is not None:
            faults += _misplaced(commit, key, branch, number, commits[-1] if commits else None)
        commits.append(commit)
    since = last_repair(commits)
    for fault in faults:
        is_damage = int(fault.where[-17:-5]) > since
        found.problems.append(replace(fault, is_damage=is_damage))
        if is_damage:
            found.branches.add(branch)
    return commits


def _misplaced(
    commit: Commit, key: str, branch: str, number: int, before: Commit | None
) -> Iterator[Problem]:
    """Yields the fault of a commit that does not belong where it is."""
    parent = commit.parent
    if (commit.branch, commit.number) != (branch, number):
        said = f"{key}: came the commit {commit.branch}:{commit.number}."
        yield Problem("bad_commit", key, said)
    elif before is not None and parent not in (None, before.ref) and parent.number == number - 1:
        said = f"{key}: it was made on another commit than {branch}:{number - 1} is now."
        yield Problem("bad_commit", key, said)


def last_repair(commits: list[Commit | None]) -> int:
    """Returns the number of the newest repair of a branch, 0 without one."""
    repairs = [
        number
        for number, commit in enumerate(commits, 1)
        if commit and any(isinstance(o, Reset) and o.reason == "repair" for o in commit.operations)
    ]
    return max(repairs, default=0)


def states(commits: list[Commit | None]) -> Iterator[State]:
    """Yields the state after each number that the readable commits make so far."""
    state = State()
    for commit in commits:
        if commit is not None:
            state = commit.state or apply(state, commit.operations)
        yield state


def _check_tags(
    catalog: Catalog, checker: Checker, found: Examination, repaired: dict[str, int]
) -> None:
    for name in sorted(n.removesuffix(".json") for n in catalog.objects.names(layout.TAGS)):
        is_damage = True
        try:
            ref = derive.read_tag(catalog, name)
            if ref is None:
                continue
            is_damage = ref.number >= repaired.get(ref.branch, 0)
            commit = catalog.refs.read(ref.branch, ref.number)
            if commit.id != ref.id:
                raise DamagedStoreError(f"Expected the version {ref.id}, came {commit.id}.")
            checker.check(catalog.refs.state(commit), f"tag {name}", is_damage)
        except PenstockError as error:
            found.problems.append(Problem("bad_tag", layout.tag(name), error.message, is_damage))


def _list_orphans(catalog: Catalog, found: Examination) -> None:
    needed = reachable(catalog)
    for folder in layout.DATA:
        for entry in catalog.objects.entries(folder):
            if unit_of(entry.key) not in needed:
                said = f"{entry.bytes} bytes that no version refers to; gc removes them in time."
                found.problems.append(Problem("orphan", entry.key, said, False))
