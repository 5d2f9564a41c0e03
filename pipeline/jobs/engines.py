"""Engines by name: the one place that knows which of them runs a job.

All of them wire the same functions and agree on what they commit: the same episodes under the same
ids with the same digests, in the same order. Which shards hold them may differ.
"""

from __future__ import annotations

import multiprocessing
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from connectors import registry
from pipeline.jobs import ingest, loading, progress, workers
from pipeline.jobs.progress import Listener
from pipeline.jobs.report import IngestReport
from pipeline.jobs.spread import ATTEMPTS, spread
from schemas.errors import TransientError, UsageError, missing_extra
from schemas.jobs import EngineConfig, IngestJob

IN_FLIGHT = 2
"""Elements on the way per process of ours."""
_URL = re.compile(r"(?!file://)[A-Za-z][A-Za-z0-9+.-]+://")


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
            home: Iterable[loading.UnitOutcome] = map(workers.load, elements)
        else:
            home = workers.telling(_in_processes(elements, processes), listener)
        outcomes = list(workers.until_failure(home))
        return workers.commit(job, prepared, outcomes, reread=False)


def _in_processes(
    elements: Sequence[loading.Work], processes: int
) -> Iterator[loading.UnitOutcome]:
    """Loads elements in processes of ours; where one dies, new ones take up what is not home."""
    waiting = dict(enumerate(elements))
    # Not by fork: a copy of a process with threads (Zarr's, Arrow's) may hang.
    context = multiprocessing.get_context("spawn")
    for _ in range(ATTEMPTS):
        try:
            with ProcessPoolExecutor(processes, mp_context=context) as pool:
                left = list(waiting.items())
                for index, outcome in spread(pool, _load, left, in_flight=IN_FLIGHT * processes):
                    del waiting[index]
                    yield outcome
        except BrokenProcessPool:
            continue
        return
    raise TransientError(
        "Worker processes kept dying. If memory is short, use fewer; a script that starts them "
        "does so below `if __name__ == '__main__':`. Nothing is committed; run it again."
    )


def _load(numbered: tuple[int, loading.Work]) -> tuple[int, loading.UnitOutcome]:
    index, work = numbered
    return index, workers.load(work)


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
    local = [] if _URL.match(job.into) else [f"the store {job.into}"]
    for source in job.sources:
        _, where = registry.parse(source)
        if not _URL.match(where) and Path(where).exists():
            local.append(f"the source {source}")
    if local:
        raise UsageError(
            f"Expected what {who} can reach from other hosts, came {' and '.join(local[:3])} on "
            f"this machine; use a URL, or say --shared-filesystem if every worker sees the same "
            f"files at the same paths."
        )
