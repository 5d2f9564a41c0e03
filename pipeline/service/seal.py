"""Sealing: ended episodes become ordinary commits of the store, each exactly once.

A commit says through which offset of which log it holds the episodes, in its source state, so that
the store itself tells a restarted service where to go on. Everything before that is the store's:
an id that it knows with the same content is not added again.

Episodes were acknowledged before they are sealed. One that must not enter a version (NaN, infinite
values, and, where other writers were faster, an id known with other content or fields that fit no
spec) goes into quarantine with its reason, where `penstock quarantine` shows it; its rows are gone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from pipeline.steps.validate import fault_of
from pipeline.store import derive, ids, layout
from pipeline.store.append import Refusal, commit_batch, write_new
from pipeline.store.ids import Seen
from pipeline.store.joining import REMEMBERED, CastToFit
from pipeline.store.specs import join
from pipeline.store.store import Store
from schemas.episode import Episode
from schemas.errors import EpisodeError, NameTakenError, SpecMismatchError
from schemas.identity import digest
from schemas.spec import DatasetSpec
from schemas.table import EpisodeRow, episode_row
from schemas.version import Commit, SourceState, State, VersionRef

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


class Offer(NamedTuple):
    """An episode that is to come into a version."""

    episode: Episode
    content: str | None
    """Digest of its content, if it is known."""


Offered = Callable[[], Iterable[Offer | Refusal]]
"""Yields episodes in the order of their ends; called again for another try."""


class Sealing:
    """The store's side of a log."""

    def __init__(self, store: Store, branch: str, new_spec: str | None) -> None:
        """Opens a branch.

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

    def sealed_through(self, server: str) -> int:
        """Returns through which offset the store has a log's episodes; -1 for none."""
        return sealed_in(self._head()[1], server)

    def seen(self, episode_id: str, content: str) -> Seen:
        """Says whether the branch, as of the last seal, knows an id, and with which digest."""
        return ids.seen_one(self._known, episode_id, content)

    @property
    def needs_first(self) -> bool:
        """True if one episode must be sealed alone, for the branch's first spec is its."""
        return self._new_spec is not None and not self._state.specs

    def check_spec(self, episode: Episode) -> None:
        """Makes sure that an episode fits the branch, as of the last seal.

        Raises:
            SpecMismatchError: if it does not; it would be quarantined.
        """
        try:
            self._fitting.join(episode, remember=False)
        except NameTakenError as error:
            raise SpecMismatchError(error.message, where=episode.episode_id) from None

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
        self._fitting = _Fitting(state, self._new_spec)
        self._known = [self._catalog.id_index(file) for file in state.known]
        self.version = head.ref if head else None
        """The branch's version as of the last seal."""

    def _commit(self, server: str, through: int, offered: Offered) -> Sealed:
        head, state = self._head()
        if head is not None and sealed_in(state, server) >= through:
            self._remember(head, state)
            return Sealed(head.ref, through, 0, 0, 0)
        self._remember(head, state)
        sorting = _Sorting(state, self._new_spec, server)
        batch = write_new(self._catalog, self._branch, sorting.healthy(offered), casting="rollouts")
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
        return Sealed(made.ref, through, *counts)


class _Sorting:
    """Tells episodes that fit a state from those that must not enter it."""

    def __init__(self, state: State, new_spec: str | None, server: str) -> None:
        self._fitting = _Fitting(state, new_spec)
        self._server = server
        self.refusals: list[Refusal] = []

    def healthy(self, offered: Offered) -> Iterator[tuple[Episode, EpisodeRow]]:
        """Yields the episodes that may come in, with their rows."""
        for came in offered():
            if isinstance(came, Refusal):
                self.refusals.append(came)
                continue
            episode = came.episode
            fault = fault_of(episode)
            if fault is not None:
                self._refuse(episode, fault.code, fault.message)
                continue
            try:
                self._fitting.join(episode)
            except (SpecMismatchError, NameTakenError) as error:
                self._refuse(episode, "spec_mismatch", error.message)
                continue
            key = _key(self._server, episode.episode_id)
            yield episode, episode_row(episode, content=came.content, source_key=key)

    def _refuse(self, episode: Episode, code: str, message: str) -> None:
        key = episode.source_key or _key(self._server, episode.episode_id)
        self.refusals.append(refusal(episode.replace(source_key=key), code, message))


class _Fitting:
    """The specs of a branch, and which episodes fit them."""

    def __init__(self, state: State, new_spec: str | None) -> None:
        self._cast = CastToFit(state, "rollouts")
        self._specs = dict(self._cast.specs)
        self._new_spec = new_spec
        self._fitting: dict[int, DatasetSpec] = {}
        """Specs that one of the branch's holds already, by their identity; of rollouts."""

    def join(self, episode: Episode, *, remember: bool = True) -> None:
        """Makes sure that there is a spec for an episode.

        Args:
            episode: which.
            remember: whether the episodes after it find that spec as it is then.

        Raises:
            SpecMismatchError, NameTakenError: if there is none for it.
        """
        spec = episode.spec
        if id(spec) in self._fitting:
            return
        fits = self._cast(episode)
        new = self._new_spec if self._specs else None
        name, joined = join(self._specs, fits.spec, new, episode.episode_id)
        if fits is episode and self._specs.get(name) is joined:
            if len(self._fitting) >= REMEMBERED:
                self._fitting.clear()
            self._fitting[id(spec)] = spec
        elif remember:
            self._specs[name] = joined
            self._fitting.clear()


def refusal(episode: Episode, code: str, message: str) -> Refusal:
    """Returns what quarantine says of an episode."""
    return Refusal(
        source=episode.source,
        source_key=episode.source_key,
        episode_id=episode.episode_id,
        digest=digest(episode),
        code=code,
        message=message,
    )


def unreadable(server: str, episode_id: str, error: EpisodeError) -> Refusal:
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
