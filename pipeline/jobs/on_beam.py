"""Jobs on Apache Beam: the same plain functions, wired into a pipeline.

An element is a reference to some episodes; rows are read and written inside one DoFn, and only
small outcomes are gathered for the commit, which is the last step *inside* the pipeline. By default
it runs on Beam's in-process FnApiRunner, by name, because `DirectRunner` downloads another engine
where it can.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

# Beam's import warns about optional packages and thereby installs a root log handler.
logging.getLogger("apache_beam").setLevel(logging.ERROR)
logging.getLogger("root").addHandler(logging.NullHandler())

import apache_beam as beam  # noqa: E402
from apache_beam.options.pipeline_options import PipelineOptions  # noqa: E402

from pipeline.jobs import ingest, progress, records  # noqa: E402
from pipeline.jobs.progress import Listener  # noqa: E402
from pipeline.jobs.report import IngestReport  # noqa: E402
from schemas.errors import PenstockError, UsageError  # noqa: E402
from schemas.jobs import IngestJob  # noqa: E402

IN_PROCESS = "FnApiRunner"


def run_ingest(
    job: IngestJob,
    *,
    runner: str = IN_PROCESS,
    options: Sequence[str] = (),
    listener: Listener | None = None,
) -> IngestReport:
    """Runs an ingest job as a Beam pipeline and returns its report.

    Args:
        job: what to ingest.
        runner: a Beam runner by name.
        options: further Beam options as on a command line (`--direct_num_workers=2`).
        listener: hears of progress, where the runner works in this process.

    Raises:
        UsageError: for Beam's DaskRunner, which returns wrong results.
        PenstockError: whatever stopped the job; nothing is committed then.
    """
    refuse_dask(runner)
    prepared = ingest.prepare(job)
    beam_options = PipelineOptions([*options, f"--runner={runner}"])
    with progress.watch(job.run_id, listener):
        result = _pipeline(job, prepared, beam_options).run()
        result.wait_until_finish()
    return records.take(job)


def refuse_dask(runner: str) -> None:
    """Raises for the one runner that reports success with results missing."""
    if runner.rsplit(".", 1)[-1].lower() == "daskrunner":
        raise UsageError(
            "Beam's DaskRunner computes only the last leaf of a pipeline and drops tagged and "
            "finish_bundle output, yet reports DONE; use --runner FnApiRunner or another runner."
        )


def _pipeline(job: IngestJob, prepared: ingest.Prepared, options: PipelineOptions) -> beam.Pipeline:
    pipeline = beam.Pipeline(options=options)
    _ = (
        pipeline
        | "Job" >> beam.Create([job])
        | "Units" >> beam.FlatMap(ingest.plan, prepared)
        | "Spread" >> beam.Reshuffle()
        | "Load" >> beam.Map(ingest.load_unit)
        | "Gather" >> beam.combiners.ToList()
        | "Commit" >> beam.Map(_finish, job, prepared)
    )
    return pipeline


def _finish(outcomes: list[ingest.UnitOutcome], job: IngestJob, prepared: ingest.Prepared) -> None:
    """Commits, and leaves the report or the reason where the caller finds it."""
    try:
        records.leave(job, ingest.finish(job, prepared, outcomes))
    except PenstockError as error:
        records.leave(job, error)
