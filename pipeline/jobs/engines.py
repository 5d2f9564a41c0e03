"""Engines by name: the one place that knows which of them runs a job."""

from __future__ import annotations

from pipeline.jobs.on_beam import IN_PROCESS, run_ingest
from pipeline.jobs.progress import Listener
from pipeline.jobs.report import IngestReport
from schemas.errors import UsageError
from schemas.jobs import EngineConfig, IngestJob


def run(
    job: IngestJob, engine: EngineConfig | None = None, listener: Listener | None = None
) -> IngestReport:
    """Runs an ingest job on an engine and returns its report.

    Args:
        job: what to ingest.
        engine: by default this process, on Beam's FnApiRunner.
        listener: hears of progress, where the engine works in this process.

    Raises:
        PenstockError: whatever stopped the job.
    """
    engine = engine or EngineConfig()
    if engine.engine == "dask":
        raise UsageError("Expected the engine in-process or beam, came 'dask'.")
    runner = engine.runner or IN_PROCESS
    return run_ingest(job, runner=runner, options=engine.options, listener=listener)
