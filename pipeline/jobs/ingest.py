"""The way in, as plain functions: discover, read, validate, write, name, commit.

An engine maps `load_unit` over the units of `discover` and calls `finish` once with all outcomes;
that is all the wiring there is. What travels between the steps are references and episode rows,
never arrays. Blocks are written where they are read; they exist for no reader until `finish`
commits them, and a step that is run twice commits once.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from connectors import registry
from connectors.base import Found, Listing, Unit
from pipeline.jobs import progress
from pipeline.jobs.report import IngestReport, report_of
from pipeline.steps.name import episode_ids, qualified
from pipeline.steps.validate import fault_of
from pipeline.store import derive, ids, layout, specs
from pipeline.store.append import Batch, Refusal, commit_batch
from pipeline.store.joining import cast_to_fit
from pipeline.store.known import Known
from pipeline.store.store import Store, open_store
from pipeline.store.writer import WrittenBlock, write_blocks
from schemas.episode import Episode
from schemas.errors import EpisodeError, NameTakenError, PenstockError, SourceError
from schemas.identity import content_id
from schemas.jobs import IngestJob
from schemas.table import EpisodeRow, episode_row
from schemas.version import Commit, SourceState, State


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


@dataclass(frozen=True)
class Prepared:
    """What is known before any work: the sources, and where the branch stood."""

    listings: tuple[Listing, ...]
    base: int
    """Number of the branch's newest version, 0 if it has none: a run that died after its commit
    finds it among what came since."""
    started: float
    """`time.time()`."""


# -- the steps -----------------------------------------------------------------------------------


def discover(job: IngestJob) -> list[Listing]:
    """Lists every source of a job.

    Raises:
        NotFoundError: if a source is not there.
        SourceError: if a source cannot be trusted whole.
    """
    listings = []
    for source in job.sources:
        named, where = registry.parse(source)
        name = job.format or named or registry.detect(where)
        listings.append(registry.source(name).discover(where))
    return listings


def plan(job: IngestJob, prepared: Prepared) -> list[Work]:
    """Returns the units of all sources as elements of work."""
    limit = job.max_episodes
    return [
        Work(job, index, _namespace(job, listing), unit)
        for index, listing in enumerate(prepared.listings)
        for unit in listing.units
        if limit is None or unit.start < limit
    ]


def load_unit(work: Work) -> UnitOutcome:
    """Reads one unit and writes those of its episodes that the branch does not know.

    A source that turns out to be unreadable is an outcome, not an exception, so that every engine
    carries its reason home.
    """
    read: list[Read] = []
    refusals: list[Refusal] = []
    try:
        candidates = _candidates(work, read, refusals)
        if work.job.dry_run:
            written: tuple[WrittenBlock, ...] = ()
            for _ in candidates:
                pass
        else:
            objects = _store(work.job.into).catalog.objects
            written = tuple(write_blocks(objects, candidates, cast=_cast(work.job)))
    except PenstockError as error:
        return UnitOutcome(work, failure=error)
    placed = {row.facts["source_key"]: row for block in written for row in block.rows}
    found = (replace(one, row=placed.get(one.row.facts["source_key"], one.row)) for one in read)
    return UnitOutcome(work, tuple(found), written, tuple(refusals))


def finish(job: IngestJob, prepared: Prepared, outcomes: Iterable[UnitOutcome]) -> IngestReport:
    """Names the episodes of all units in order, commits them, and reports.

    Args:
        job: what was asked.
        prepared: as `prepare` returned it.
        outcomes: of all units, in any order.

    Raises:
        PenstockError: if a source cannot be trusted whole; nothing is committed.
    """
    ordered = sorted(outcomes, key=lambda o: (o.work.source, o.work.unit.start))
    for outcome in ordered:
        if outcome.failure is not None:
            raise outcome.failure
    rows = _named(job, ordered)
    refusals = [refusal for outcome in ordered for refusal in outcome.refusals]
    if job.dry_run:
        return report_of(job, prepared.listings, None, None, refusals, prepared.started)
    store = _store(job.into)
    ordered, rows = _write_missing(store, job, ordered, rows)
    batch = Batch(
        written=[block for outcome in ordered for block in outcome.written],
        rows=rows,
        refusals=refusals,
        sources={listing.where: _source_state(listing) for listing in prepared.listings},
    )
    message = job.message or _message(prepared.listings, rows)
    committed = commit_batch(
        store.catalog,
        batch,
        branch=job.branch,
        message=message,
        run_id=job.run_id,
        base=prepared.base,
        new_spec=job.new_spec,
        on_change=job.on_change,
        casting="all" if job.dtype == specs.OF_SPEC else "none",
    )
    if job.tag is not None:
        store.tag(job.tag, job.branch)
    shown = committed.commit or store.catalog.refs.head(job.branch)
    refused = committed.refusals
    return report_of(job, prepared.listings, committed, shown, refused, prepared.started)


def prepare(job: IngestJob) -> Prepared:
    """Checks what can be checked before any work: sources first, then the store.

    A wrong source leaves no empty store behind.
    """
    started = time.time()
    layout.check_name(job.branch, "branch")
    if job.tag is not None:
        layout.check_name(job.tag, "tag")
    if job.new_spec is not None:
        layout.check_name(job.new_spec, "spec")
    specs.check_dtype(job.dtype)
    listings = tuple(discover(job))
    if not any(listing.episodes for listing in listings):
        raise SourceError(
            "Expected at least one episode, came a source without any.",
            where=", ".join(listing.where for listing in listings),
        )
    if job.dry_run:
        return Prepared(listings, 0, started)
    store = open_store(job.into, create=True, single_writer=job.single_writer)
    derive.check_free(store.catalog, job.branch, taken_by="tag")
    head = store.catalog.refs.head(job.branch)
    if job.tag is not None:
        _check_tag(store, job.tag, head)
    return Prepared(listings, head.number if head else 0, started)


def _check_tag(store: Store, tag: str, head: Commit | None) -> None:
    """Refuses a tag that names another version already, before any work."""
    derive.check_free(store.catalog, tag, taken_by="branch")
    named = derive.read_tag(store.catalog, tag)
    if named is not None and (head is None or named.id != head.id):
        raise NameTakenError(
            f"The tag {tag!r} names another version; tags never move: choose another name."
        )


# -- within --------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=8)
def _store(url: str) -> Store:
    """One open store per process: its id indexes are read once."""
    return open_store(url)


def _namespace(job: IngestJob, listing: Listing) -> str | None:
    return (job.namespace or listing.identity) if listing.identity else None


def _candidates(
    work: Work, read: list[Read], refusals: list[Refusal]
) -> Iterator[tuple[Episode, EpisodeRow]]:
    """Yields the unit's episodes that must be written; notes every episode on the way."""
    limit = work.job.max_episodes
    seen = _Seen(work)
    for found in registry.source(work.unit.format).read(work.unit):
        if limit is not None and found.position >= limit:
            break
        key = f"{work.unit.where}#{found.key}"
        episode = found.episode
        fault = found.fault
        if episode is not None:
            episode = episode.replace(source=_source_name(work, episode), source_key=key)
            fault = fault_of(episode)
        if fault is not None or episode is None:
            refusals.append(_refusal(work, found, key, fault))
            continue
        row = episode_row(episode)
        native = qualified(work.namespace, found.native_id)
        read.append(Read(found.position, native, row))
        progress.advance(work.job.run_id, 1, episode.length)
        if seen.should_write(read[-1]):
            yield episode, row


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
    refs = _store(job.into).catalog.refs
    head = refs.head(job.branch)
    return refs.state(head) if head else State()


class _Seen:
    """Decides which episodes look new to the branch."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._known: Known | None = None
        if not work.job.dry_run:
            catalog = _store(work.job.into).catalog
            self._known = Known(catalog, _state(work.job), work.job.on_change)

    def should_write(self, read: Read) -> bool:
        if self._work.only is not None:
            return read.position in self._work.only
        # An episode named by content gets its count when all units are in: its first name tells
        # whether the content is known at all.
        digest = read.row.digest
        name = read.native or content_id(digest, 0)
        return self._known is None or self._known.is_wanted(name, digest)


def _named(job: IngestJob, ordered: Sequence[UnitOutcome]) -> list[EpisodeRow]:
    """Returns the rows of all units in order, each under its id."""
    rows: list[EpisodeRow] = []
    for source in range(len(job.sources)):
        read = [read for o in ordered if o.work.source == source for read in o.read]
        names = episode_ids((one.native, one.row.digest) for one in read)
        rows += [one.row.named(name) for one, name in zip(read, names, strict=True)]
    return rows


def _write_missing(
    store: Store, job: IngestJob, ordered: list[UnitOutcome], rows: list[EpisodeRow]
) -> tuple[list[UnitOutcome], list[EpisodeRow]]:
    """Writes the few episodes that looked known by content but are a further copy of it."""
    head = store.catalog.refs.head(job.branch)
    known = store.catalog.refs.state(head).known if head else ()
    indexes = [store.catalog.id_index(file) for file in known]
    verdicts = ids.classify(indexes, ids.keys((row.episode_id, row.digest) for row in rows))
    missing = {
        row.facts["source_key"]
        for row, verdict in zip(rows, verdicts, strict=True)
        if verdict == ids.Seen.NEW and not row.block
    }
    if not missing:
        return ordered, rows
    again: list[UnitOutcome] = []
    for outcome in ordered:
        keys = {one.position for one in outcome.read if one.row.facts["source_key"] in missing}
        if keys:
            again.append(load_unit(replace(outcome.work, only=frozenset(keys))))
    placed = {
        row.facts["source_key"]: row for o in again for block in o.written for row in block.rows
    }
    filled = [
        row.placed(placed[key].block, placed[key].row) if key in placed else row
        for row in rows
        for key in (row.facts["source_key"],)
    ]
    return [*ordered, *again], filled


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


def _source_state(listing: Listing) -> SourceState:
    metadata: dict[str, Any] = json.loads(json.dumps(dict(listing.metadata)))
    return SourceState(
        format=listing.format,
        where=listing.where,
        identity=listing.identity,
        fingerprint=listing.fingerprint,
        metadata=metadata,
        guesses=listing.guesses,
    )


def _message(listings: Sequence[Listing], rows: Sequence[EpisodeRow]) -> str:
    names = ", ".join(listing.identity or listing.where for listing in listings)
    return f"ingest {names} ({len(rows)} episodes)"
