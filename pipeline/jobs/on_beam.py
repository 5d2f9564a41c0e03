"""Jobs on Apache Beam: the same plain functions, wired into a pipeline.

An element is a reference to some episodes; rows are read and written inside one DoFn, and only
small outcomes are gathered for the commit, which is the last step *inside* the pipeline. By default
it runs on Beam's in-process FnApiRunner, by name, because `DirectRunner` downloads another engine
where it can. Errors of ours come home as outcomes or in the run's record, so that they stay typed
whatever a runner makes of exceptions.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence

# Beam's import warns about optional packages and thereby installs a root log handler.
logging.getLogger("apache_beam").setLevel(logging.ERROR)
logging.getLogger("root").addHandler(logging.NullHandler())

import apache_beam as beam  # noqa: E402
import grpc  # type: ignore[import-untyped]  # noqa: E402
from apache_beam.options.pipeline_options import PipelineOptions, PortableOptions  # noqa: E402
from apache_beam.runners.runner import create_runner  # noqa: E402

from pipeline.jobs import ingest, loading, progress, records, workers  # noqa: E402
from pipeline.jobs.progress import Listener  # noqa: E402
from pipeline.jobs.report import IngestReport  # noqa: E402
from schemas.errors import (  # noqa: E402
    PenstockError,
    TransientError,
    UnknownNameError,
    UsageError,
)
from schemas.jobs import IngestJob  # noqa: E402

IN_PROCESS = "FnApiRunner"
ON_THIS_MACHINE = (
    *("fnapirunner", "directrunner", "switchingdirectrunner", "bundlebaseddirectrunner"),
    "prismrunner",
)


def run_ingest(
    job: IngestJob,
    *,
    runner: str = IN_PROCESS,
    options: Sequence[str] = (),
    reread: bool = False,
    listener: Listener | None = None,
    prepared: ingest.Prepared | None = None,
) -> IngestReport:
    """Runs an ingest job as a Beam pipeline and returns its report.

    Args:
        job: what to ingest; no dry run, which leaves no record for its outcome to come home in.
        runner: a Beam runner by name.
        options: further Beam options as on a command line (`--direct_num_workers=2`).
        reread: see `check_arrived`.
        listener: hears of progress, where the runner works in this process.
        prepared: what `ingest.prepare` returned, where that is done already.

    Raises:
        UsageError: for Beam's DaskRunner, which returns wrong results, or no runner's name.
        TransientError: if nobody answers at the runner's address.
        PenstockError: whatever stopped the job; nothing is committed then.
    """
    refuse_dask(runner)
    try:
        create_runner(runner)
    except (ValueError, ImportError, AttributeError) as error:
        raise UnknownNameError(f"Expected a Beam runner, came {runner!r}: {error}") from error
    prepared = prepared or ingest.prepare(job)
    beam_options = PipelineOptions([*options, f"--runner={runner}"])
    with progress.watch(job.run_id, listener):
        try:
            build(job, prepared, reread, beam_options).run().wait_until_finish()
        except (grpc.FutureTimeoutError, grpc.RpcError) as error:
            raise TransientError(
                f"Beam's {runner} did not answer, or went away ({type(error).__name__}); see "
                f"that it runs at the address in its options, then run it again."
            ) from error
    return records.take(job)


def refuse_dask(runner: str) -> None:
    """Raises for the one runner that reports success with results missing."""
    if _short(runner) == "daskrunner":
        raise UsageError(
            "Beam's DaskRunner computes only the last leaf of a pipeline and drops tagged and "
            "finish_bundle output, yet reports DONE; use --engine dask, or another --runner."
        )


def with_workers(runner: str, options: Sequence[str], processes: int | None) -> tuple[str, ...]:
    """Returns Beam's options for a number of worker processes.

    Raises:
        UsageError: for a runner that takes it as an option of its own.
    """
    if processes is None:
        return tuple(options)
    if _short(runner) != IN_PROCESS.lower():
        raise UsageError(
            f"Expected --workers with Beam's {IN_PROCESS} only, came {runner}; say it in the "
            f"runner's own options (--parallelism for Flink, --num_workers for Dataflow)."
        )
    if processes == 1:
        return tuple(options)
    mode = ("--direct_running_mode=multi_processing", f"--direct_num_workers={processes}")
    return (*mode, *options)


def is_elsewhere(runner: str, options: Sequence[str]) -> bool:
    """True if a runner's workers may be on other hosts."""
    if _short(runner) in ON_THIS_MACHINE:
        return False
    stated = PipelineOptions(list(options)).view_as(PortableOptions)
    return bool(stated.environment_type != "LOOPBACK")


def _short(runner: str) -> str:
    return runner.rsplit(".", 1)[-1].lower()


def build(
    job: IngestJob, prepared: ingest.Prepared, reread: bool, options: PipelineOptions
) -> beam.Pipeline:
    """Returns the pipeline of a prepared job, commit included."""
    pipeline = beam.Pipeline(options=options)
    _ = (
        pipeline
        | "Job" >> beam.Create([job])
        | "Units" >> beam.FlatMap(ingest.plan, prepared)
        | "Spread" >> beam.Reshuffle()
        | "Load" >> beam.Map(workers.load)
        | "Gather" >> beam.combiners.ToList()
        | "Commit" >> beam.Map(_finish, job, prepared, reread)
    )
    return pipeline


def _finish(
    outcomes: list[loading.UnitOutcome], job: IngestJob, prepared: ingest.Prepared, reread: bool
) -> None:
    """Commits; the report, or the reason why not, is in the run's record."""
    with contextlib.suppress(PenstockError):
        workers.commit(job, prepared, outcomes, reread)
