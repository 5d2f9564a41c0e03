"""The store as people use it: open, append, name, look back."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.store import derive, layout
from pipeline.store.append import QUARANTINE_COLUMNS, Outcome, commit_batch, write_new
from pipeline.store.catalog import Catalog
from pipeline.store.changes import Changes, diff
from pipeline.store.compact import Compacted, compact
from pipeline.store.doctor import Examination, examine
from pipeline.store.duplicate import Copied, copy_version
from pipeline.store.erase import Scrubbed, erase, linked_places, scrub
from pipeline.store.gc import GRACE, Collected, collect
from pipeline.store.joining import Casting
from pipeline.store.known import OnChange
from pipeline.store.materialise import Materialised, materialise
from pipeline.store.places import open_objects
from pipeline.store.reader import EpisodeIndex, Version
from pipeline.store.references import at_time, parse_ref, resolve
from pipeline.store.remote import RemoteObjects
from pipeline.store.repair import Repaired, repair
from pipeline.store.selection import Selection
from pipeline.store.writer import rows_of
from schemas.episode import Episode
from schemas.errors import UsageError
from schemas.version import Derivation, VersionRef


class Store:
    """A versioned store of episodes."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    @property
    def id(self) -> str:
        """The store's uuid."""
        return self.catalog.id

    @property
    def url(self) -> str:
        """Where it is."""
        return self.catalog.url

    @property
    def single_writer(self) -> bool:
        """True if its owner declared that one process at a time writes to it."""
        return self.catalog.objects.exists(layout.SINGLE_WRITER)

    # -- versions ------------------------------------------------------------------------------

    def version(self, ref: str | dt.datetime = "main") -> Version:
        """Returns one version.

        Args:
            ref: a branch (its newest version), `branch:number`, a tag, an id or a prefix of one
                of at least 8 digits, or a datetime: what `main` showed then.

        Raises:
            NotFoundError: naming the nearest branches and tags.
        """
        if isinstance(ref, dt.datetime):
            return Version(self.catalog, at_time(self.catalog, "main", ref))
        return Version(self.catalog, resolve(self.catalog, ref))

    def log(self, ref: str = "main") -> list[Version]:
        """Returns a version and its ancestors, newest first."""
        head = resolve(self.catalog, ref)
        return [Version(self.catalog, commit) for commit in self.catalog.refs.history(head)]

    def diff(self, one: str, two: str) -> Changes:
        """Says which episodes came, left or were scored anew from one version to another."""
        return diff(self.catalog, resolve(self.catalog, one), resolve(self.catalog, two))

    # -- writing -------------------------------------------------------------------------------

    def append(
        self,
        episodes: Iterable[Episode],
        message: str = "",
        source: str | None = None,
        *,
        branch: str = "main",
        new_spec: str | None = None,
        on_change: OnChange = "quarantine",
        cast: bool = True,
    ) -> Version:
        """Adds episodes under the ids they have, each exactly once.

        An id that is known with the same content is not added again; with other content the
        episode is quarantined as `id_conflict`, or replaced. Memory holds a block of episodes at a
        time.

        Args:
            episodes: what to add.
            message: one line for the log.
            source: of all of them, in place of their own.
            branch: where.
            new_spec: name of the spec that episodes join which fit none of the branch's.
            on_change: `replace` puts an episode whose id is known with other content in the place
                of the old one; older versions keep that.
            cast: cast rollouts to the dtypes of a spec of equal names and shapes, floats to floats
                and whole numbers to wider ones; the commit says so. Their digest stays that of
                what came. Other kinds are never cast.

        Returns:
            The version that holds them: a new one, or the head if there was nothing to add.

        Raises:
            SpecMismatchError: if the episodes fit no spec of the branch and `new_spec` is None, or
                fit several.
            NameTakenError: if `new_spec` is the name of a spec that they do not fit.
        """
        outcome = self.append_batch(
            episodes,
            message,
            source,
            branch=branch,
            new_spec=new_spec,
            on_change=on_change,
            cast=cast,
        )
        commit = outcome.commit or self.catalog.refs.head(branch)
        if commit is None:
            raise UsageError("Expected at least one episode for a new store, came none.")
        return Version(self.catalog, commit)

    def append_batch(
        self,
        episodes: Iterable[Episode],
        message: str = "",
        source: str | None = None,
        *,
        branch: str = "main",
        new_spec: str | None = None,
        on_change: OnChange = "quarantine",
        cast: bool = True,
    ) -> Outcome:
        """Like `append`, but tells what became of every episode."""
        layout.check_name(branch, "branch")
        derive.check_free(self.catalog, branch, taken_by="tag")
        named = (e if source is None else e.replace(source=source) for e in episodes)
        casting: Casting = "rollouts" if cast else "none"
        batch = write_new(
            self.catalog, branch, rows_of(named), on_change=on_change, casting=casting
        )
        return commit_batch(
            self.catalog,
            batch,
            branch=branch,
            message=message or f"append {len(batch.rows)} episodes",
            run_id=layout.new_id(),
            new_spec=new_spec,
            on_change=on_change,
            casting=casting,
        )

    # -- names ---------------------------------------------------------------------------------

    def tag(self, name: str, version: Version | str = "main") -> None:
        """Names a version for ever."""
        commit = version.commit if isinstance(version, Version) else resolve(self.catalog, version)
        derive.create_tag(self.catalog, commit, name)

    def tags(self) -> dict[str, VersionRef]:
        """Returns all tags."""
        return derive.tags(self.catalog)

    def delete_tag(self, name: str) -> None:
        """Removes a tag; the version stays."""
        derive.delete_tag(self.catalog, name)

    def branch(self, name: str, version: Version | str = "main") -> Version:
        """Makes a branch that starts at a version."""
        commit = version.commit if isinstance(version, Version) else resolve(self.catalog, version)
        return Version(self.catalog, derive.create_branch(self.catalog, commit, name))

    def branches(self) -> dict[str, Version]:
        """Returns the newest version of every branch."""
        heads = self.catalog.refs.branches()
        return {name: Version(self.catalog, head) for name, head in heads.items()}

    def delete_branch(self, name: str) -> None:
        """Closes a branch for ever."""
        derive.delete_branch(self.catalog, layout.check_name(name, "branch"))

    def revert(self, ref: str) -> Version:
        """Makes the version a reference names the newest of its branch again."""
        to = resolve(self.catalog, ref)
        return Version(self.catalog, derive.revert(self.catalog, to.branch, to))

    # -- to another store ----------------------------------------------------------------------

    def copy(
        self,
        ref: str,
        to: Store,
        *,
        branch: str | None = None,
        advance: Callable[[int, int], None] | None = None,
    ) -> Copied:
        """Copies a version to another store: episodes, scores, labels; linked data is stored there.

        Run again, it copies what came since; ids that the other store has with other content are
        quarantined there.

        Args:
            ref: a version.
            to: the other store.
            branch: of the other store; by default the version's own.
            advance: called with the episodes and steps of each episode that is read.

        Raises:
            UsageError: if both are one store, or the version is empty.
            SpecMismatchError, NameTakenError: if episodes fit no spec of the branch, and the name
                of theirs is taken there.
        """
        version = resolve(self.catalog, ref)
        return copy_version(self.catalog, version, to.catalog, branch or version.branch, advance)

    # -- maintenance ---------------------------------------------------------------------------

    def remove(self, where: str, branch: str = "main") -> Version:
        """Hides the episodes that a filter names in a new version; older versions keep them."""
        version = self.version(branch)
        found = version.where(where)
        derivation = Derivation(base=version.commit.ref, where=f"not ({where})")
        kept = Selection(version, ~found.mask, derivation)
        return kept.commit(branch=branch, message=f"remove {len(found)} episodes: {where}")

    def erase(self, episode_ids: Iterable[str]) -> int:
        """Erases episodes from every version for ever; `gc(erase=True)` then rewrites files."""
        return erase(self.catalog, episode_ids)

    def linked_places(self, episode_ids: Iterable[str]) -> list[str]:
        """Returns the sources that hold episodes which are linked: erasing leaves those alone."""
        return linked_places(self.catalog, episode_ids)

    def expire(self, branch: str = "main", *, before: int) -> Version:
        """Lets go of a branch's versions before a number; tags and runs keep theirs."""
        return Version(self.catalog, derive.expire(self.catalog, branch, before))

    def compact(self, branch: str = "main", *, everything: bool = False) -> Compacted:
        """Puts small parts of a branch together; episodes and their order stay."""
        return compact(self.catalog, branch, everything=everything)

    def materialise(
        self,
        ref: str = "main",
        *,
        branch: str | None = None,
        advance: Callable[[int, int], None] | None = None,
    ) -> Materialised:
        """Copies what a version links to into the store; ids, digests, order and scores stay.

        Args:
            ref: a branch; with `branch`, any version.
            branch: where the outcome goes: a new one; by default where the version is.
            advance: called with the episodes and steps of each episode that is copied.

        Raises:
            LinkedSourceChangedError: if a source is not what it was; nothing is committed.
            LockHeldError: if another maintainer is at work.
        """
        return materialise(self.catalog, resolve(self.catalog, ref), ref, branch, advance)

    def gc(
        self, grace: dt.timedelta = GRACE, *, dry_run: bool = False, erase: bool = False
    ) -> Collected:
        """Deletes, in two phases, files that nothing refers to any more.

        Args:
            grace: how old a file must be to be marked, and a mark to be swept.
            dry_run: only tell.
            erase: also rewrite files that hold bytes of erased episodes, at once.
        """
        scrubbed = scrub(self.catalog) if erase and not dry_run else Scrubbed(())
        done = collect(self.catalog, grace, dry_run=dry_run)
        gone = (*scrubbed.rewritten, *scrubbed.dropped_media)
        shared = scrubbed.shared_media
        return replace(done, deleted=(*gone, *done.deleted), shared_media=shared)

    def doctor(self) -> Examination:
        """Reads everything that kept versions refer to; says what is damaged."""
        return examine(self.catalog)

    def repair(self) -> list[Repaired]:
        """Appends, to every damaged branch, a commit that shows all that is whole."""
        return repair(self.catalog)

    def quarantine(self, ref: str = "main") -> pa.Table:
        """Returns the refused episodes that a version knows of."""
        state = self.catalog.refs.state(resolve(self.catalog, ref))
        listed = [self.catalog.parquet(file) for file in state.quarantine]
        return pa.concat_tables(listed) if listed else QUARANTINE_COLUMNS.empty_table()


def open_store(
    url: str | Path,
    *,
    create: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    single_writer: bool = False,
) -> Store:
    """Opens a store.

    Args:
        url: a folder, or a URL such as `s3://bucket/prefix`.
        create: make it if there is none; racing creators agree on one.
        storage_options: for a URL, as in fsspec; by default what the environment says.
        single_writer: declare that nobody else writes to this store at the same time, which
            storage without conditional writes needs; the store remembers it there.

    Raises:
        NotFoundError: if there is no store and `create` is False.
        UntrustedError: if what is there is not a store this release can read.
        ConditionalWritesError: if it would have to be made where writers could overwrite one
            another's commits, and no single writer is declared.
    """
    objects = open_objects(url, storage_options, single_writer=single_writer)
    store = Store(Catalog(objects, create=create))
    if single_writer and isinstance(objects, RemoteObjects):
        objects.writers()  # now, for workers that this process sends out may write first
    return store


def open_version(text: str) -> Version:
    """Returns the version that `STORE@REF` names."""
    store, ref = parse_ref(text)
    return open_store(store).version(ref)


__all__ = [
    "EpisodeIndex",
    "Selection",
    "Store",
    "Version",
    "open_store",
    "open_version",
    "parse_ref",
]
