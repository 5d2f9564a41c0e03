"""Which files a store needs: everything that any kept version refers to.

Roots are the versions of every branch that retention keeps, and all versions that tags, runs and
live leases name. A file that no root reaches may go, in time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pipeline.store import derive, layout
from pipeline.store.catalog import Catalog
from pipeline.store.files import files_of_commit, files_of_state, unit_of
from pipeline.store.leases import leases
from pipeline.store.runs import run_versions
from schemas.document import DataFile
from schemas.errors import DamagedStoreError
from schemas.version import Commit, Expire, VersionRef


def kept_from(commits: Iterable[Commit]) -> int:
    """Returns the first number of a branch that retention keeps."""
    expired = [
        operation.before
        for commit in commits
        for operation in commit.operations
        if isinstance(operation, Expire)
    ]
    return max(expired, default=1)


def reachable(catalog: Catalog) -> set[str]:
    """Returns the units of all files that some root reaches.

    Raises:
        DamagedStoreError: if a commit or run reference cannot be read: then nothing may go.
    """
    found: set[str] = set()
    for name in catalog.objects.names(layout.BRANCHES):
        found |= _branch_units(catalog, name)
    for ref in [*derive.tags(catalog).values(), *run_versions(catalog), *leased(catalog)]:
        commit = catalog.refs.read(ref.branch, ref.number)
        found |= {unit_of(file.key) for file in files_of_state(catalog.refs.state(commit))}
    found |= {unit_of(file.key) for file in catalog.erasures.refresh().rewrites.values()}
    return found


def branch_commits(catalog: Catalog, branch: str) -> list[Commit]:
    """Returns all commits of a branch that retention keeps, and older ones, oldest first.

    Raises:
        DamagedStoreError: if one that is kept cannot be read. Once a repair stands in for it, its
            version can be let go of (`expire`).
    """
    names = [n[:12] for n in catalog.objects.names(layout.branch(branch)) if n[:12].isdigit()]
    head = catalog.refs.head(branch)
    last = head.number if head else 0
    if last < max(map(int, names), default=0):  # a head is found by its neighbours
        raise DamagedStoreError(
            f"Expected {branch}:{last} to be the newest version, came {max(names)} behind a gap; "
            f"see `penstock doctor`.",
            where=layout.branch(branch),
        )
    commits = []
    unread: dict[int, DamagedStoreError] = {}
    for number in range(1, last + 1):
        try:
            commits.append(catalog.refs.read(branch, number))
        except DamagedStoreError as error:
            unread[number] = error
    lost = [number for number in unread if number >= kept_from(commits)]
    if lost:
        raise unread[lost[0]]
    return commits


def leased(catalog: Catalog) -> Iterator[VersionRef]:
    """Yields the versions that live leases hold."""
    for lease in leases(catalog.objects):
        yield from lease.versions


def _branch_units(catalog: Catalog, branch: str) -> set[str]:
    """The units of a branch's kept versions.

    A version's files are those of the oldest kept state and of every commit since, so one state
    and a walk are enough for any number of versions.
    """
    commits = branch_commits(catalog, branch)
    first = kept_from(commits)
    files: list[DataFile] = []
    kept = [commit for commit in commits if commit.number >= first]
    if kept:
        files += files_of_state(catalog.refs.state(kept[0]))
    for commit in kept:
        files += files_of_commit(commit)
    if commits:  # the newest version is always kept
        files += files_of_state(catalog.refs.state(commits[-1]))
    return {unit_of(file.key) for file in files}
