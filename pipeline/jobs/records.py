"""Run records: what became of a job, for its caller and for later.

The commit step of a pipeline may run in another process or on another host than whoever started
the job. It leaves the outcome as `runs/<run id>.json` in the store; a dry run leaves nothing.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import json
import platform
import socket
import time
from dataclasses import asdict
from importlib import metadata
from typing import Any

from pipeline.jobs.report import IngestReport
from pipeline.store import layout
from pipeline.store.objects import Objects
from pipeline.store.store import open_store
from schemas.errors import PenstockError, TransientError
from schemas.jobs import IngestJob


def leave(job: IngestJob, outcome: IngestReport | PenstockError) -> None:
    """Records how a job ended; a step that is run twice records once."""
    if job.dry_run:
        return
    now = time.time()
    record: dict[str, Any] = {
        "job": job.model_dump(),
        "engine": job.engine,
        "host": socket.gethostname(),
        "started_at": _iso(job.started_at or now),
        "ended_at": _iso(now),
        "versions": _versions(),
    }
    if isinstance(outcome, PenstockError):
        record |= _failure(outcome)
    else:
        is_new = outcome.episodes_added or outcome.episodes_replaced
        record |= {
            "outcome": "committed" if is_new else "nothing new",
            "reasons": outcome.reasons,
            "report": asdict(outcome),
        }
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
    _raise_failure(record)
    report = record["report"]
    texts = {name: tuple(report[name]) for name in ("guesses", "warnings")}
    return IngestReport(**{**report, **texts})


def leave_failure(objects: Objects, run_id: str, error: PenstockError) -> None:
    """Records the error that ended a run; the first one counts."""
    record = {**_failure(error), "host": socket.gethostname(), "ended_at": _iso(time.time())}
    objects.put_if_absent(layout.run_record(run_id), json.dumps(record).encode())


def raise_failure(objects: Objects, run_id: str) -> None:
    """Raises the error that a run recorded, if it did."""
    with contextlib.suppress(FileNotFoundError):
        _raise_failure(json.loads(objects.read(layout.run_record(run_id))))


def _failure(error: PenstockError) -> dict[str, Any]:
    stated = {name: value for name, value in vars(error).items() if name[0] != "_"}
    return {"outcome": "failed", "error": {"kind": error.kind, **stated}}


def _raise_failure(record: dict[str, Any]) -> None:
    if "error" in record:
        fields = dict(record["error"])
        raise _class_of(fields.pop("kind"))(**fields)


def _iso(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat()


@functools.cache
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("penstock", "numpy", "pyarrow", "zarr"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def _class_of(kind: str) -> type[PenstockError]:
    """Returns the error class of a kind; the commit step knows no others."""
    found: list[type[PenstockError]] = [PenstockError]
    for cls in found:
        if cls.kind == kind:
            return cls
        found.extend(cls.__subclasses__())
    return PenstockError
