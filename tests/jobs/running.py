"""Runs of jobs, for the tests of this folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.jobs.report import IngestReport
from pipeline.jobs.runs import run
from pipeline.store.layout import new_id
from schemas.jobs import IngestJob


def ingest(store: Path, *sources: Path | str, **options: Any) -> IngestReport:
    job = IngestJob(sources=tuple(map(str, sources)), into=str(store), run_id=new_id(), **options)
    return run(job)
