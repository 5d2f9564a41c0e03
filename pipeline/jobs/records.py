"""Run records: what became of a job, for its caller and for later.

The commit step of a pipeline may run in another process or on another host than whoever started
the job. It leaves the outcome as `runs/<run id>.json` in the store; a dry run leaves nothing.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from pipeline.jobs.report import IngestReport
from pipeline.store import layout
from pipeline.store.store import open_store
from schemas.errors import PenstockError, TransientError
from schemas.jobs import IngestJob


def leave(job: IngestJob, outcome: IngestReport | PenstockError) -> None:
    """Records how a job ended; a step that is run twice records once."""
    if job.dry_run:
        return
    if isinstance(outcome, PenstockError):
        stated = {name: value for name, value in vars(outcome).items() if name[0] != "_"}
        fields = {"kind": outcome.kind, **stated}
        record: dict[str, Any] = {"job": job.model_dump(), "error": fields}
    else:
        record = {"job": job.model_dump(), "report": asdict(outcome)}
    objects = open_store(job.into).catalog.objects
    objects.put_if_absent(layout.run_record(job.run_id), json.dumps(record).encode())


def take(job: IngestJob) -> IngestReport:
    """Returns how a job ended.

    Raises:
        PenstockError: the error that ended it.
        TransientError: if the engine came back without an outcome.
    """
    try:
        data = open_store(job.into).catalog.objects.read(layout.run_record(job.run_id))
    except FileNotFoundError:
        raise TransientError(
            "The engine ended without an outcome of the job; nothing of it is sure to be "
            "committed; run it again.",
            where=job.into,
        ) from None
    record = json.loads(data)
    if "error" in record:
        fields = record["error"]
        raise _class_of(fields.pop("kind"))(**fields)
    report = record["report"]
    texts = {name: tuple(report[name]) for name in ("guesses", "warnings")}
    return IngestReport(**{**report, **texts})


def _class_of(kind: str) -> type[PenstockError]:
    """Returns the error class of a kind; the commit step knows no others."""
    found: list[type[PenstockError]] = [PenstockError]
    for cls in found:
        if cls.kind == kind:
            return cls
        found.extend(cls.__subclasses__())
    return PenstockError
