"""Engines by name: the one place that knows which of them runs a job.

All of them wire the same functions and agree on what they commit: the same episodes under the same
ids with the same digests, in the same order. Which shards hold them may differ.
"""

from __future__ import annotations

import re
from pathlib import Path

from connectors import registry
from pipeline.jobs import ingest, progress, workers
from pipeline.jobs.processes import Processes
from pipeline.jobs.progress import Listener
from pipeline.jobs.report import IngestReport
from schemas.errors import UsageError, missing_extra
from schemas.jobs import EngineConfig, IngestJob

_URL = re.compile(r"(?!file://)[A-Za-z][A-Za-z0-9+.-]+://")


def is_url(where: str) -> bool:
    """True for what other hosts can reach too."""
    return _URL.match(where) is not None


def run(
    job: IngestJob,
    engine: EngineConfig | None = None,
    listener: Listener | None = None,
    prepared: ingest.Prepared | None = None,
) -> IngestReport:
    """Runs an ingest job on an engine and returns its report.

    Args:
        job: what to ingest.
        engine: by default this process alone.
        listener: hears of progress; not from workers that Beam started elsewhere.
        prepared: of `ingest.prepare` or `ingest.rounds`, where that is done already.

    Raises:
        UsageError: for a local store and workers on other hosts.
        PenstockError: whatever else stopped the job.
    """
    engine = engine or EngineConfig()
    if engine.engine == "dask":
        return _on_dask(job, engine, listener, prepared)
    if engine.engine == "beam":
        return _on_beam(job, engine, listener, prepared)
    return _in_process(job, engine.workers or 1, listener, prepared)


# -- this machine --------------------------------------------------------------------------------


def _in_process(
    job: IngestJob,
    processes: int,
    listener: Listener | None,
    prepared: ingest.Prepared | None,
) -> IngestReport:
    prepared = prepared or ingest.prepare(job)
    elements = ingest.plan(job, prepared)
    processes = min(processes, len(elements))
    with progress.watch(job.run_id, listener if processes < 2 else None):
        if processes < 2:
            outcomes = list(workers.until_failure(map(workers.load, elements)))
        else:
            with Processes(processes) as pool:
                home = workers.telling(pool.map(workers.load, elements), listener)
                outcomes = list(workers.until_failure(home))
        return workers.commit(job, prepared, outcomes, reread=False)


# -- clusters ------------------------------------------------------------------------------------


def _on_dask(
    job: IngestJob,
    engine: EngineConfig,
    listener: Listener | None,
    prepared: ingest.Prepared | None,
) -> IngestReport:
    try:
        from pipeline.jobs import on_dask  # noqa: PLC0415 (an optional extra)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "distributed":
            raise
        raise missing_extra("cluster", "distributed") from error
    if engine.address is not None:
        refuse_local(job, f"Dask workers of {engine.address}")
    return on_dask.run_ingest(
        job,
        address=engine.address,
        processes=engine.workers,
        listener=listener,
        prepared=prepared,
    )


def _on_beam(
    job: IngestJob,
    engine: EngineConfig,
    listener: Listener | None,
    prepared: ingest.Prepared | None,
) -> IngestReport:
    from pipeline.jobs import on_beam  # noqa: PLC0415 (0.6 s that the others need not spend)

    runner = engine.runner or on_beam.IN_PROCESS
    on_beam.refuse_dask(runner)
    options = on_beam.with_workers(runner, engine.options, engine.workers)
    if job.dry_run:  # leaves nothing behind that its outcome could come home in
        return _in_process(job, engine.workers or 1, listener, prepared)
    is_elsewhere = on_beam.is_elsewhere(runner, options)
    if is_elsewhere:
        refuse_local(job, f"workers of Beam's {runner}")
    return on_beam.run_ingest(
        job,
        runner=runner,
        options=options,
        reread=is_elsewhere,
        listener=listener,
        prepared=prepared,
    )


def refuse_local(job: IngestJob, who: str) -> None:
    """Refuses what only this machine sees, for workers that may be on other hosts.

    Raises:
        UsageError: for a local store or source, unless the job says that all hosts share it.
    """
    if job.shared_filesystem:
        return
    local = [] if is_url(job.into) else [f"the store {job.into}"]
    for source in job.sources:
        _, where = registry.parse(source)
        if not is_url(where) and Path(where).exists():
            local.append(f"the source {source}")
    _refuse(local, who)


def refuse_local_store(url: str, who: str) -> None:
    """Refuses a store on this machine, for workers that may be on other hosts.

    Raises:
        UsageError: if it is one.
    """
    _refuse([] if is_url(url) else [f"the store {url}"], who)


def _refuse(local: list[str], who: str) -> None:
    if local:
        raise UsageError(
            f"Expected what {who} can reach from other hosts, came {' and '.join(local[:3])} on "
            f"this machine; use a URL, or say --shared-filesystem if every worker sees the same "
            f"files at the same paths."
        )
