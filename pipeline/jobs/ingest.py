"""The way in, as plain functions: discover, read, validate, write, name, commit.

An engine maps `load_unit` over the units of `discover` and calls `finish` once with all outcomes;
that is all the wiring there is. What travels between the steps are references and episode rows,
never arrays. Blocks are written where they are read; they exist for no reader until `finish`
commits them, and a step that is run twice commits once.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from connectors.base import Listing
from pipeline.jobs import gate, link, sources
from pipeline.jobs.drift import merge
from pipeline.jobs.loading import UnitOutcome, Work, check_time, load_unit, store_of
from pipeline.jobs.report import IngestReport, report_of
from pipeline.jobs.slices import in_slices
from pipeline.jobs.sources import Dataset
from pipeline.steps.name import episode_ids
from pipeline.store import derive, ids, layout, specs
from pipeline.store.append import Batch, Refusal, commit_batch
from pipeline.store.known import Known
from pipeline.store.store import Store, open_store
from schemas.errors import NameTakenError, NotFoundError, SourceError
from schemas.jobs import IngestJob
from schemas.metrics import ScoreSet
from schemas.table import EpisodeRow
from schemas.version import Commit, SourceState, State


@dataclass(frozen=True)
class Prepared:
    """What is known before any work: the sources, and where the branch stood."""

    datasets: tuple[Dataset, ...]
    base: int
    """Number of the branch's newest version, 0 if it has none: a run that died after its commit
    finds it among what came since."""
    started: float
    """`time.time()`."""
    before: Mapping[str, SourceState] = field(default_factory=dict)
    """The branch's source states then."""
    score_set: ScoreSet | None = None
    """The branch's frozen reference, for the gate."""
    waiting: tuple[str, ...] = ()
    """Sources left for the next run."""


# -- the steps -----------------------------------------------------------------------------------


def plan(job: IngestJob, prepared: Prepared) -> list[Work]:
    """Returns the units of all sources as elements of work."""
    limit = job.max_episodes
    deadline = prepared.started + job.timeout if job.timeout else None
    return [
        Work(
            job,
            index,
            _namespace(job, dataset.listing),
            unit,
            is_member=dataset.is_member,
            deadline=deadline,
            score_set=prepared.score_set,
        )
        for index, dataset in enumerate(prepared.datasets)
        for unit in dataset.listing.units
        if dataset.settled is None and (limit is None or unit.start < limit)
    ]


def rounds(job: IngestJob, prepared: Prepared) -> list[tuple[IngestJob, Prepared]]:
    """Returns a run in parts that commit one after the other: whole datasets, never pieces.

    An episode without an id of its own is named by how many equal ones its dataset has before it,
    which takes all of the dataset to know.
    """
    if job.commit_every is None or job.dry_run:
        return [(job, prepared)]
    groups: list[list[Dataset]] = [[]]
    episodes = 0
    for dataset in prepared.datasets:
        if episodes >= job.commit_every:
            groups.append([])
            episodes = 0
        groups[-1].append(dataset)
        episodes += 0 if dataset.settled else dataset.listing.episodes
    if len(groups) == 1:
        return [(job, prepared)]
    parts = []
    for number, group in enumerate(groups, 1):
        is_last = number == len(groups)
        mine = {"run_id": f"{job.run_id}-{number:06d}", "tag": job.tag if is_last else None}
        waiting = prepared.waiting if is_last else ()
        part = replace(prepared, datasets=tuple(group), waiting=waiting)
        parts.append((job.model_copy(update=mine), part))
    return parts


def finish(job: IngestJob, prepared: Prepared, outcomes: Iterable[UnitOutcome]) -> IngestReport:
    """Names the episodes of all units in order, commits them, and reports.

    Args:
        job: what was asked.
        prepared: as `prepare` or `rounds` returned it.
        outcomes: of all its units, in any order.

    Raises:
        GateError: if the job's gate refuses it; nothing is committed.
        OutOfTimeError: if it took too long; nothing is committed.
        PenstockError: if a source cannot be trusted whole; nothing is committed.
    """
    ordered = sorted(outcomes, key=lambda o: (o.work.source, o.work.unit.start))
    for outcome in ordered:
        if outcome.failure is not None:
            raise outcome.failure
    ordered, spoiled = _without_spoiled(prepared, ordered)
    rows = _named(ordered)
    refusals = [*spoiled, *(refusal for outcome in ordered for refusal in outcome.refusals)]
    if job.timeout:
        check_time(prepared.started + job.timeout)
    warnings = _pass_gate(job, prepared, ordered, refusals)
    if job.dry_run:
        return _foretold(job, rows, report_of(job, prepared, (), None, refusals, warnings))
    store = store_of(job.into)
    ordered, rows, further = _write_missing(store, job, ordered, rows)
    refusals += further
    states = _source_states(job, prepared, ordered, refusals)
    written = [block for outcome in ordered for block in outcome.written]
    slices = in_slices(rows, written, job.commit_every)
    committed = []
    for number, (some_rows, some_blocks) in enumerate(slices, 1):
        is_last = number == len(slices)
        batch = Batch(
            written=some_blocks,
            rows=some_rows,
            refusals=refusals if is_last else (),
            sources=states if is_last else {},
            before=prepared.before,
        )
        outcome_of_slice = commit_batch(
            store.catalog,
            batch,
            branch=job.branch,
            message=job.message or _message(prepared, some_rows),
            run_id=job.run_id if len(slices) == 1 else f"{job.run_id}.{number:06d}",
            base=prepared.base,
            new_spec=job.new_spec,
            on_change=job.on_change,
            casting="all" if job.dtype == specs.OF_SPEC else "none",
        )
        committed.append(outcome_of_slice)
    if job.tag is not None:
        store.tag(job.tag, job.branch)
    shown = next((done.commit for done in reversed(committed) if done.commit), None)
    shown = shown or store.catalog.refs.head(job.branch)
    refused = [refusal for done in committed for refusal in done.refusals]
    return report_of(job, prepared, committed, shown, refused, warnings)


def prepare(job: IngestJob) -> Prepared:
    """Checks what can be checked before any work: sources first, then the store.

    A wrong source leaves no empty store behind.
    """
    started = job.started_at or time.time()
    layout.check_name(job.branch, "branch")
    if job.tag is not None:
        layout.check_name(job.tag, "tag")
    if job.new_spec is not None:
        layout.check_name(job.new_spec, "spec")
    specs.check_dtype(job.dtype)
    store = None if job.dry_run else opened(job.into)
    head = store.catalog.refs.head(job.branch) if store else None
    state = store.catalog.refs.state(head) if store and head else State()
    found = sources.find(job, state.sources, started)
    link.check(job, found.datasets)
    is_something = any(d.listing.episodes or d.settled or d.spoiled for d in found.datasets)
    if not is_something and not found.waiting:
        raise SourceError(
            "Expected at least one episode, came a source without any.",
            where=", ".join(dataset.listing.where for dataset in found.datasets),
        )
    score_set = gate.score_set_of(state) if job.gate else None
    prepared = Prepared(
        datasets=found.datasets,
        base=head.number if head else 0,
        started=started,
        before=state.sources,
        score_set=score_set,
        waiting=found.waiting,
    )
    if job.dry_run:
        return prepared
    store = open_store(job.into, create=True, single_writer=job.single_writer)
    derive.check_free(store.catalog, job.branch, taken_by="tag")
    if job.tag is not None:
        _check_tag(store, job.tag, head)
    return prepared


def opened(url: str) -> Store | None:
    """Returns the store at a URL, or None if there is none yet."""
    try:
        return open_store(url)
    except NotFoundError:
        return None


def _check_tag(store: Store, tag: str, head: Commit | None) -> None:
    """Refuses a tag that names another version already, before any work."""
    derive.check_free(store.catalog, tag, taken_by="branch")
    named = derive.read_tag(store.catalog, tag)
    if named is not None and (head is None or named.id != head.id):
        raise NameTakenError(
            f"The tag {tag!r} names another version; tags never move: choose another name."
        )


# -- within --------------------------------------------------------------------------------------


def _namespace(job: IngestJob, listing: Listing) -> str | None:
    return (job.namespace or listing.identity) if listing.identity else None


def _named(ordered: Sequence[UnitOutcome]) -> list[EpisodeRow]:
    """Returns the rows of all units in order, each under its id."""
    rows: list[EpisodeRow] = []
    for source in dict.fromkeys(outcome.work.source for outcome in ordered):
        read = [read for o in ordered if o.work.source == source for read in o.read]
        names = episode_ids((one.native, one.row.digest) for one in read)
        rows += [one.row.named(name) for one, name in zip(read, names, strict=True)]
    return rows


def _foretold(job: IngestJob, rows: Sequence[EpisodeRow], report: IngestReport) -> IngestReport:
    """Returns the report of a dry run with what a commit would add to the branch as it is."""
    store = opened(job.into)
    head = store.catalog.refs.head(job.branch) if store else None
    new, known, conflicts = tuple(rows), 0, 0
    if store and head:
        sorted_out = Known(store.catalog, store.catalog.refs.state(head)).sort(rows)
        new, conflicts = sorted_out.new, len(sorted_out.conflicts)
        known = len(rows) - len(new) - conflicts
    return replace(
        report,
        episodes_added=len(new),
        episodes_known=known,
        episodes_changed=conflicts,
        steps_added=sum(row.length for row in new),
    )


def _write_missing(
    store: Store, job: IngestJob, ordered: list[UnitOutcome], rows: list[EpisodeRow]
) -> tuple[list[UnitOutcome], list[EpisodeRow], list[Refusal]]:
    """Writes the few episodes that looked known by content but are a further copy of it.

    They meet the gate only now; returns what it refuses beside what is written.
    """
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
        return ordered, rows, []
    again: list[UnitOutcome] = []
    for outcome in ordered:
        keys = {one.position for one in outcome.read if one.row.facts["source_key"] in missing}
        if keys:
            again.append(load_unit(replace(outcome.work, only=frozenset(keys))))
    placed = {
        row.facts["source_key"]: row for o in again for block in o.written for row in block.rows
    }
    refused = [refusal for outcome in again for refusal in outcome.refusals]
    refused = [refusal for refusal in refused if refusal.source_key in missing]
    filled = [
        row.placed(placed[key].block, placed[key].row) if key in placed else row
        for row in rows
        for key in (row.facts["source_key"],)
        if key in placed or key not in missing
    ]
    return [*ordered, *again], filled, refused


def _without_spoiled(
    prepared: Prepared, ordered: Sequence[UnitOutcome]
) -> tuple[list[UnitOutcome], list[Refusal]]:
    """Leaves out the datasets that cannot be trusted whole; returns each as one refusal."""
    spoiled = {at: d.spoiled for at, d in enumerate(prepared.datasets) if d.spoiled}
    spoiled |= {o.work.source: o.spoiled for o in ordered if o.spoiled}
    refusals = [
        Refusal(
            source=prepared.datasets[at].listing.where,
            source_key=f"{prepared.datasets[at].listing.where}#",
            episode_id=None,
            digest=None,
            code="unreadable",
            message=error.message,
        )
        for at, error in sorted(spoiled.items())
    ]
    return [o for o in ordered if o.work.source not in spoiled], refusals


def _pass_gate(
    job: IngestJob,
    prepared: Prepared,
    ordered: Sequence[UnitOutcome],
    refusals: Sequence[Refusal],
) -> tuple[str, ...]:
    """Holds a run against its gate; returns warnings."""
    if job.gate is None:
        return ()
    settled = sum(d.settled.episodes for d in prepared.datasets if d.settled)
    read = sum(len(outcome.read) for outcome in ordered)
    refused = [said for outcome in ordered for said in outcome.refused]
    totals = gate.Totals(
        healthy=settled + read,
        read=read + len(refusals) + len(refused),
        quarantined=len(refusals),
        refused=refused,
    )
    gate.check_totals(job.gate, totals)
    names = gate.unmeasured(job.gate, prepared.score_set)
    warnings = [
        f"The branch has no reference for {', '.join(names)}: rules that name it do not hold "
        f"(penstock measure makes one)."
    ]
    warnings = warnings if names else []
    if job.gate.drift is not None and prepared.base and not job.dry_run:
        spreads = merge(outcome.spreads for outcome in ordered)
        new = spreads["length"].count if "length" in spreads else 0
        version = store_of(job.into).version(f"{job.branch}:{prepared.base}")
        warnings += gate.check_drift(job.gate.drift, version, new, spreads)
    return tuple(warnings)


def _source_states(
    job: IngestJob,
    prepared: Prepared,
    ordered: Sequence[UnitOutcome],
    refusals: Sequence[Refusal],
) -> dict[str, SourceState]:
    """Returns what the branch will remember of the datasets that were read."""
    settings = sources.settings_of(job)
    found = {}
    for at, dataset in enumerate(prepared.datasets):
        if dataset.settled is not None:
            continue
        first = [o for o in ordered if o.work.source == at and o.work.only is None]
        prefix = f"{dataset.listing.where}#"
        codes = Counter(r.code for r in refusals if (r.source_key or "").startswith(prefix))
        gone = codes.total() - sum(len(o.refusals) for o in first)
        episodes = sum(len(o.read) for o in first)
        if first:  # what a further copy's late verdict took away was counted as healthy
            episodes -= gone
        found[dataset.key] = dataset.state(settings, episodes, codes)
    return found


def _message(prepared: Prepared, rows: Sequence[EpisodeRow]) -> str:
    listings = [dataset.listing for dataset in prepared.datasets if dataset.settled is None]
    names = [listing.identity or listing.where for listing in listings]
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"ingest {shown} ({len(rows)} episodes)"
