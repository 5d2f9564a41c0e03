"""Sealing: ended episodes become ordinary commits of the store, each exactly once.

A commit says through which offset of which log it holds the episodes, in its source state, so that
the store itself tells a restarted service where to go on. Everything before that is the store's:
an id that it knows with the same content is not added again.

Episodes were acknowledged before they are sealed, and checked before that. One that must not enter
a version all the same (where other writers were faster, an id known with other content or fields
that fit no spec) goes into quarantine with its reason, where `penstock quarantine` shows it; the
log keeps its rows in a file (`refused`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from pipeline.service.assemble import Ended
from pipeline.service.fitting import Fitting, Joins
from pipeline.service.reading import read_ended
from pipeline.service.segments import Segments
from pipeline.steps.validate import fault_of
from pipeline.store import derive, ids, layout
from pipeline.store.append import Refusal, commit_batch, write_new
from pipeline.store.ids import Seen
from pipeline.store.store import Store
from schemas.episode import Episode
from schemas.errors import EpisodeError, NameTakenError, SpecMismatchError
from schemas.identity import digest
from schemas.spec import DatasetSpec
from schemas.table import EpisodeRow, episode_row
from schemas.version import Commit, SourceState, State, VersionRef, dataset_spec

ATTEMPTS = 3
"""How often a seal is tried when other writers change the branch's specs meanwhile."""


@dataclass(frozen=True)
class Sealed:
    """What one seal did."""

    version: VersionRef
    """The version that holds the episodes."""
    through: int
    """Episodes that ended at this offset or before it are in the store."""
    episodes: int
    """Those that came into a version; those known before and those refused are not among them."""
    steps: int
    quarantined: int
    conflicts: int = 0
    """How often another writer's commit came first."""
    refusals: tuple[Refusal, ...] = ()
    """Those that went into quarantine."""


class Offer(NamedTuple):
    """An episode that is to come into a version."""

    episode: Episode
    content: str | None
    """Digest of its content, if it is known."""
    is_sound: bool = False
    """True if `fault_of` was asked and has nothing against it."""


Offered = Callable[[], Iterable[Offer | Refusal]]
"""Yields episodes in the order of their ends; called again for another try."""


class Sealing:
    """The store's side of a log."""

    def __init__(self, store: Store, branch: str, new_spec: str | None) -> None:
        """Opens a branch; call `begin_again` before episodes are checked.

        Args:
            store: where.
            branch: to which commits go.
            new_spec: name of the spec that episodes join which fit none of the branch's.

        Raises:
            UsageError: if the branch's name is none, or a tag's.
        """
        layout.check_name(branch, "branch")
        derive.check_free(store.catalog, branch, taken_by="tag")
        self._catalog = store.catalog
        self._branch = branch
        self._new_spec = new_spec
        self._remember(*self._head())
        self._fitting = Fitting({}, new_spec)  # until `begin_again`

    def sealed_through(self, server: str) -> int:
        """Returns through which offset the store has a log's episodes; -1 for none."""
        return sealed_in(self._head()[1], server)

    def seen(self, episode_id: str, content: str) -> Seen:
        """Says whether the branch, as of the last seal, knows an id, and with which digest."""
        return ids.seen_one(self._known, episode_id, content)

    def knows(self, episode_id: str) -> bool:
        """True if the branch, as of the last seal, knows an id, with whatever content."""
        return self.seen(episode_id, "0") is not Seen.NEW

    @property
    def needs_first(self) -> bool:
        """True if one episode must be sealed alone, for the branch's first spec is its."""
        return self._new_spec is not None and not self._state.specs

    def check_spec(self, episode: Episode, checked: object = None) -> object:
        """Makes sure that an episode fits the branch as of the last seal, and what waits for it.

        Args:
            episode: which.
            checked: what was returned for it before: if nothing changed since, that is all.

        Raises:
            SpecMismatchError: if it does not; it would be quarantined.
        """
        before = self._fitting.known
        if before is checked:
            return before
        try:
            self._fitting.check(episode)
        except NameTakenError as error:
            raise SpecMismatchError(error.message, where=episode.episode_id) from None
        return before

    def take_spec(self, episode: Episode) -> None:
        """Counts an episode that was checked just now among those that wait for the branch.

        One call at a time, and nothing else that changes what episodes are held against.
        """
        self._fitting.take(Joins(episode.spec, episode.kind, episode.episode_id))

    def begin_again(self, waiting: Iterable[Joins]) -> None:
        """Holds what comes against the branch as of the last seal, and what waits for it now.

        Not while `take_spec` is called.
        """
        self._fitting.begin_again(_specs(self._state), waiting)

    def commit(self, server: str, through: int, offered: Offered) -> Sealed:
        """Commits a log's episodes through an offset, unless they are committed already.

        Args:
            server: the log's id.
            through: offset of the last one's end.
            offered: the episodes that ended after the last seal, in the order of their ends.

        Raises:
            TransientError: if the store cannot be written now; nothing is lost, try again.
            SpecMismatchError: if other writers kept changing the branch's specs.
        """
        for attempt in range(ATTEMPTS):
            try:
                return self._commit(server, through, offered)
            except SpecMismatchError:
                if attempt == ATTEMPTS - 1:
                    raise
        raise AssertionError

    # -- within --------------------------------------------------------------------------------

    def _head(self) -> tuple[Commit | None, State]:
        refs = self._catalog.refs
        head = refs.head(self._branch)
        if head is None:
            return None, State()
        refs.settle(head)  # records are deleted because of it: it must outlive a crash
        return head, refs.state(head)

    def _remember(self, head: Commit | None, state: State) -> None:
        self._state = state
        self._known = [self._catalog.id_index(file) for file in state.known]
        self.version = head.ref if head else None
        """The branch's version as of the last seal."""

    def _commit(self, server: str, through: int, offered: Offered) -> Sealed:
        head, state = self._head()
        if head is not None and sealed_in(state, server) >= through:
            self._remember(head, state)
            missing = tuple(self.missing(server, offered()))
            return Sealed(head.ref, through, 0, 0, len(missing), refusals=missing)
        self._remember(head, state)
        fitting = Fitting(_specs(state), self._new_spec)
        sorting = _Sorting(fitting, server)
        batch = write_new(self._catalog, self._branch, sorting.healthy(offered), cast=fitting.check)
        name = source_name(server)
        source = _moved(state, name, server, through, len(batch.rows), sorting.refusals)
        outcome = commit_batch(
            self._catalog,
            replace(batch, refusals=sorting.refusals, sources={name: source}),
            branch=self._branch,
            message=f"seal {len(batch.rows)} rollouts",
            run_id=f"{server}-{through}",
            new_spec=None if self.needs_first else self._new_spec,
            casting="rollouts",
        )
        made = outcome.commit or self._head()[0]
        assert made is not None
        self._remember(made, self._catalog.refs.state(made))
        steps = sum(row.length for row in outcome.added)
        counts = (len(outcome.added), steps, len(outcome.refusals), outcome.conflicts)
        return Sealed(made.ref, through, *counts, outcome.refusals)

    def missing(self, server: str, offered: Iterable[Offer | Refusal]) -> Iterator[Refusal]:
        """Yields, of episodes that an earlier try committed, those that came into no version."""
        fitting = Fitting(_specs(self._state), self._new_spec)
        for came in offered:
            if isinstance(came, Refusal):
                yield came
                continue
            episode, content = came.episode, came.content or digest(came.episode)
            if self.seen(episode.episode_id, content) is not Seen.KNOWN:
                yield _refused(came, server, *(_fault(came, fitting) or _taken(episode)))


class _Sorting:
    """Tells episodes that fit a state from those that must not enter it."""

    def __init__(self, fitting: Fitting, server: str) -> None:
        self._fitting = fitting
        self._server = server
        self.refusals: list[Refusal] = []

    def healthy(self, offered: Offered) -> Iterator[tuple[Episode, EpisodeRow]]:
        """Yields the episodes that may come in, with their rows."""
        for came in offered():
            if isinstance(came, Refusal):
                self.refusals.append(came)
                continue
            episode = came.episode
            fault = _fault(came, self._fitting)
            if fault is not None:
                self.refusals.append(_refused(came, self._server, *fault))
                continue
            self._fitting.take(Joins(episode.spec, episode.kind, episode.episode_id))
            key = _key(self._server, episode.episode_id)
            yield episode, episode_row(episode, content=came.content, source_key=key)


def _fault(came: Offer, fitting: Fitting) -> tuple[str, str] | None:
    """Returns the code and the sentence of what keeps an episode out of a version."""
    fault = None if came.is_sound else fault_of(came.episode)
    if fault is not None:
        return fault.code, fault.message
    try:
        fitting.check(came.episode)
    except (SpecMismatchError, NameTakenError) as error:
        return "spec_mismatch", error.message
    return None


def _refused(came: Offer, server: str, code: str, message: str) -> Refusal:
    episode = came.episode
    return Refusal(
        source=episode.source,
        source_key=episode.source_key or _key(server, episode.episode_id),
        episode_id=episode.episode_id,
        digest=came.content or digest(episode),
        code=code,
        message=message,
    )


def _specs(state: State) -> dict[str, DatasetSpec]:
    return {name: dataset_spec(document) for name, document in state.specs.items()}


def _taken(episode: Episode) -> tuple[str, str]:
    return (
        "id_conflict",
        f"Expected the episode {episode.episode_id!r} with the content it is known with, came "
        f"other content; give it an id of its own.",
    )


def offers(waiting: Iterable[Ended], segments: Segments, server: str) -> Iterator[Offer | Refusal]:
    """Yields episodes that wait, as `Sealing.commit` asks for them."""
    for ended in waiting:
        try:
            yield Offer(read_ended(ended, segments), ended.digest, ended.is_sound)
        except EpisodeError as error:
            yield _unreadable(server, ended.episode_id, error)


def _unreadable(server: str, episode_id: str, error: EpisodeError) -> Refusal:
    """Returns what quarantine says of an episode whose rows make none."""
    return Refusal(
        source=None,
        source_key=_key(server, episode_id),
        episode_id=episode_id,
        digest=None,
        code=error.code,
        message=error.message,
    )


def source_name(server: str) -> str:
    """Returns the name under which a branch remembers a log."""
    return f"rollouts/{server}"


def _key(server: str, episode_id: str) -> str:
    return f"{source_name(server)}#{episode_id}"


def sealed_in(state: State, server: str) -> int:
    """Returns through which offset a version has the episodes of a log; -1 for none."""
    source = state.sources.get(source_name(server))
    return int(source.metadata["offset"]) if source else -1


def _moved(
    state: State, name: str, server: str, through: int, episodes: int, refusals: list[Refusal]
) -> SourceState:
    """Returns what the branch is to remember of a log."""
    before = state.sources.get(name)
    codes = Counter(before.quarantined if before else {})
    codes.update(one.code for one in refusals)
    return SourceState(
        format="rollouts",
        where=name,
        identity=server,
        fingerprint=str(through),
        metadata={"offset": through},
        episodes=(before.episodes if before else 0) + episodes,
        quarantined=dict(codes),
    )
