"""One run of a job, from its lock to its record, whatever engine does the work."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable

from connectors import registry
from pipeline.jobs import engines, ingest, records, workers
from pipeline.jobs.events import tell
from pipeline.jobs.progress import Listener
from pipeline.jobs.report import IngestReport, joined
from pipeline.jobs.sources import place_of
from pipeline.store.leases import lease
from pipeline.store.locks import lock
from pipeline.store.store import open_store
from schemas.errors import LockHeldError, PenstockError
from schemas.jobs import EngineConfig, IngestJob


def run(
    job: IngestJob,
    engine: EngineConfig | None = None,
    listener: Listener | None = None,
    *,
    is_stopped: Callable[[], bool] = lambda: False,
) -> IngestReport:
    """Runs a job while nobody else runs it, and leaves a record of what became of it.

    Where nothing changed since the last run, no engine is started.

    Args:
        job: what to ingest.
        engine: by default this process alone.
        listener: hears of progress.
        is_stopped: asked between commits; then the rest is left for the next run.

    Raises:
        LockHeldError: if another run of the job is under way.
        PenstockError: whatever else stopped it.
    """
    engine = engine or EngineConfig()
    job = job.model_copy(update={"engine": engine.engine, "started_at": time.time()})
    try:
        with contextlib.ExitStack() as held:
            report = _run(job, engine, listener, is_stopped, held)
    except LockHeldError:
        raise
    except PenstockError as error:
        if not job.dry_run:
            with contextlib.suppress(PenstockError):  # the first error is the one to tell
                if ingest.opened(job.into):
                    records.leave(job, error)
        raise
    return report


def lock_name(job: IngestJob) -> str:
    """Returns what a job's lock goes by: its name, else what it brings from where to where."""
    if job.name is not None:
        return job.name
    parts = [str(job.format), job.branch]
    for source in sorted(job.sources):
        named, where = registry.parse(source)
        parts.append(f"{named}:{place_of(where)}")
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]
    return f"{' '.join(job.sources)[:60]} ({digest})"


def _run(
    job: IngestJob,
    engine: EngineConfig,
    listener: Listener | None,
    is_stopped: Callable[[], bool],
    held: contextlib.ExitStack,
) -> IngestReport:
    store = None if job.dry_run else ingest.opened(job.into)
    if store is not None:
        held.enter_context(lock(store.catalog.objects, lock_name(job)))
    prepared = ingest.prepare(job)
    if store is None and not job.dry_run:
        held.enter_context(lock(open_store(job.into).catalog.objects, lock_name(job)))
    tell("started", sources=len(prepared.datasets), into=job.into, branch=job.branch)
    for dataset in prepared.datasets:
        tell(
            "source listed",
            source=dataset.listing.where,
            format=dataset.listing.format,
            episodes=dataset.listing.episodes,
            is_unchanged=dataset.settled is not None,
        )
    reports: list[IngestReport] = []
    for part_job, part in ingest.rounds(job, prepared):
        if reports and is_stopped():
            break
        reports.append(_part(part_job, part, engine, listener))
    report = joined(reports)
    if len(reports) > 1:
        records.leave(job, report)
    return report


def _part(
    job: IngestJob,
    prepared: ingest.Prepared,
    engine: EngineConfig,
    listener: Listener | None,
) -> IngestReport:
    if ingest.plan(job, prepared):
        with contextlib.ExitStack() as held:
            if not job.dry_run:  # what a long job has written is not taken for garbage meanwhile
                held.enter_context(lease(open_store(job.into).catalog.objects))
            report = engines.run(job, engine, listener, prepared)
    else:
        report = workers.commit(job, prepared, [], reread=False)
    if not job.dry_run:
        tell(
            "committed",
            version=report.version,
            number=report.number,
            branch=report.branch,
            episodes_added=report.episodes_added,
            episodes_known=report.episodes_known,
            episodes_quarantined=report.episodes_quarantined,
        )
    return report
