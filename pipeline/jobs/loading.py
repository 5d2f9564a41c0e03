"""One unit on its way in: read, validated, held against the gate, written where it is new.

This is what runs on workers. What travels home are rows and refusals, never arrays; blocks exist
for no reader until the job commits them.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

from connectors import registry
from connectors.base import Found, Unit
from pipeline.jobs import gate, progress
from pipeline.jobs.drift import Spreads, merge, spreads_of
from pipeline.jobs.link import Linking
from pipeline.steps.name import qualified
from pipeline.steps.validate import fault_of
from pipeline.store import specs
from pipeline.store.append import Refusal
from pipeline.store.joining import cast_to_fit
from pipeline.store.known import Known
from pipeline.store.recent import Recent
from pipeline.store.store import Store, open_store
from pipeline.store.writer import WrittenBlock, write_blocks
from schemas.episode import Episode
from schemas.errors import EpisodeError, OutOfTimeError, PenstockError, SourceError
from schemas.identity import content_id
from schemas.jobs import IngestJob
from schemas.metrics import ScoreSet
from schemas.table import EpisodeRow, episode_row
from schemas.version import State


@dataclass(frozen=True)
class Work:
    """One element of the pipeline: a unit of one of the job's sources."""

    job: IngestJob
    source: int
    """Which of the job's sources."""
    namespace: str | None
    """Of its native ids; None names its episodes by content."""
    unit: Unit
    only: frozenset[int] | None = None
    """Positions to write without asking; None writes what looks new."""
    is_member: bool = False
    """One of several datasets that a pattern stands for: the others can do without it."""
    deadline: float | None = None
    """By `time.time()`; later nothing is begun."""
    score_set: ScoreSet | None = None
    """The branch's frozen reference, for the gate."""


@dataclass(frozen=True)
class Read:
    """One healthy episode of a unit: its row, and what its dataset calls it."""

    position: int
    native: str | None
    row: EpisodeRow
    """Placed in a block if it was written."""


@dataclass(frozen=True)
class UnitOutcome:
    """What became of one unit."""

    work: Work
    read: tuple[Read, ...] = ()
    written: tuple[WrittenBlock, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    failure: PenstockError | None = None
    """Why the whole source cannot be trusted."""
    spoiled: SourceError | None = None
    """The same for one that the others can do without."""
    refused: tuple[str, ...] = ()
    """What the gate says of episodes that refuse the job."""
    spreads: Spreads = field(default_factory=dict)
    """Of its new episodes, for the gate."""


def load_unit(work: Work) -> UnitOutcome:
    """Reads one unit and writes those of its episodes that the branch does not know.

    A source that turns out to be unreadable is an outcome, not an exception, so that every engine
    carries its reason home.
    """
    found = _Loading(work)
    try:
        written: tuple[WrittenBlock, ...] = ()
        if work.job.dry_run:
            for _ in found.to_write():
                pass
        else:
            written = tuple(_write(work, found.to_write()))
    except SourceError as error:
        if work.is_member:
            return UnitOutcome(work, spoiled=error)
        return UnitOutcome(work, failure=error)
    except PenstockError as error:
        return UnitOutcome(work, failure=error)
    placed = {row.facts["source_key"]: row for block in written for row in block.rows}
    read = sorted(found.read, key=lambda one: one.position)
    return UnitOutcome(
        work,
        tuple(replace(one, row=placed.get(one.row.facts["source_key"], one.row)) for one in read),
        written,
        tuple(found.refusals),
        refused=tuple(found.refused),
        spreads=found.spreads,
    )


# -- within --------------------------------------------------------------------------------------


_stores = Recent(8)


def store_of(url: str) -> Store:
    """One open store per process: its id indexes are read once.

    A worker outlives stores: one that was removed and made anew at its place is another.
    """
    fresh = open_store(url)
    kept: Store = _stores.get(f"{fresh.id} {url}", lambda: fresh)
    return kept


def check_time(deadline: float) -> None:
    """Raises `OutOfTimeError` if a deadline has passed."""
    late = time.time() - deadline
    if late > 0:
        raise OutOfTimeError(
            f"The job's time was up {late:.1f} s ago; what it was about to commit is not "
            f"committed: give it more with --timeout, or commit in parts with --commit-every."
        )


class _Loading:
    """One unit on its way in: what is to be written, and notes on all of it."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self.read: list[Read] = []
        """Healthy ones, by and by; those that wait for the gate's verdict come later."""
        self.refusals: list[Refusal] = []
        self.refused: list[str] = []
        self.spreads: Spreads = {}

    def to_write(self) -> Iterator[tuple[Episode, EpisodeRow]]:
        """Yields the episodes that must be written."""
        rules = self._work.job.gate
        if rules is None:
            for new, _ in self._new():
                yield new
            return
        judge = gate.Judge(rules, self._work.job.into, self._work.score_set)
        reads: dict[str, Read] = {}
        for (episode, row), verdict in judge.judged(new for new, _ in self._noting(reads)):
            read = reads.pop(row.facts["source_key"])
            if verdict is None:
                self.read.append(read)
                if rules.drift is not None:
                    self.spreads = merge([self.spreads, spreads_of(episode)])
                yield episode, row
            elif verdict.rule.refuse is not None:
                self.refused.append(f"{row.facts['source_key']}: {verdict.says}")
            else:
                self.refusals.append(_gate_refusal(self._work, read, verdict))

    def _noting(self, reads: dict[str, Read]) -> Iterator[tuple[tuple[Episode, EpisodeRow], Read]]:
        """Yields the new episodes; takes back that they are healthy until the gate says so."""
        for new, read in self._new():
            self.read.pop()
            reads[read.row.facts["source_key"]] = read
            yield new, read

    def _new(self) -> Iterator[tuple[tuple[Episode, EpisodeRow], Read]]:
        work = self._work
        limit = work.job.max_episodes
        seen = _Seen(work)
        for found in registry.source(work.unit.format).read(work.unit):
            if work.deadline is not None:
                check_time(work.deadline)
            if limit is not None and found.position >= limit:
                break
            key = f"{work.unit.where}#{found.key}"
            episode = found.episode
            fault = found.fault
            if episode is not None:
                fault = fault_of(episode)
            if fault is not None or episode is None:
                self.refusals.append(_refusal(work, found, key, fault))
                continue
            row = episode_row(episode).sourced(_source_name(work, episode), key)
            read = Read(found.position, qualified(work.namespace, found.native_id), row)
            self.read.append(read)
            progress.advance(work.job.run_id, 1, episode.length)
            if seen.should_write(read):
                yield (episode, row), read


def _write(work: Work, episodes: Iterator[tuple[Episode, EpisodeRow]]) -> Iterator[WrittenBlock]:
    """Writes blocks that no two commits share, or links."""
    job = work.job
    objects = store_of(job.into).catalog.objects
    write: Callable[[Iterable[tuple[Episode, EpisodeRow]]], Iterator[WrittenBlock]]
    if job.link:
        write = Linking(objects, work.unit, job.run_id).link_blocks
    else:
        write = functools.partial(write_blocks, objects, cast=_cast(job))
    if job.commit_every is None:
        yield from write(episodes)
        return
    for first in episodes:
        some = itertools.islice(episodes, job.commit_every - 1)
        yield from write(itertools.chain([first], some))


def _cast(job: IngestJob) -> Callable[[Episode], Episode] | None:
    """Returns what casts episodes before they are written, if the job asks for it."""
    if job.dtype is None:
        return None
    if job.dtype == specs.OF_SPEC:
        return functools.partial(cast_to_fit, state=_state(job), casting="all")
    dtype = job.dtype
    return lambda one: specs.cast_episode(one, specs.with_floats(one.spec, dtype))


def _state(job: IngestJob) -> State:
    """Returns what the branch shows now."""
    refs = store_of(job.into).catalog.refs
    head = refs.head(job.branch)
    return refs.state(head) if head else State()


class _Seen:
    """Decides which episodes look new to the branch."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._known: Known | None = None
        if not work.job.dry_run:
            catalog = store_of(work.job.into).catalog
            self._known = Known(catalog, _state(work.job), work.job.on_change)

    def should_write(self, read: Read) -> bool:
        if self._work.only is not None:
            return read.position in self._work.only
        # An episode named by content gets its count when all units are in: its first name tells
        # whether the content is known at all.
        digest = read.row.digest
        name = read.native or content_id(digest, 0)
        return self._known is None or self._known.is_wanted(name, digest)


def _refusal(work: Work, found: Found, key: str, fault: EpisodeError | None) -> Refusal:
    code = fault.code if fault else "unreadable"
    message = fault.message if fault else "The episode could not be read."
    return Refusal(
        source=_source_name(work, found.episode),
        source_key=key,
        episode_id=qualified(work.namespace, found.native_id),
        digest=None,
        code=code,
        message=message,
    )


def _source_name(work: Work, episode: Episode | None) -> str:
    stated = episode.source if episode is not None else None
    return stated or work.namespace or work.unit.where


def _gate_refusal(work: Work, read: Read, verdict: gate.Verdict) -> Refusal:
    return Refusal(
        source=read.row.facts["source"],
        source_key=read.row.facts["source_key"],
        episode_id=read.native,
        digest=read.row.digest,
        code=f"gate:{verdict.rule.name}",
        message=verdict.says,
    )
