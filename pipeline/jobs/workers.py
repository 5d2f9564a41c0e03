"""What the workers of every engine do: load one element, and at the end commit all of them.

An engine hands `load` the elements of `ingest.plan`, carries the outcomes home, and hands them to
`commit`. Both may run twice, on whichever worker is there: the files of a first try that was lost
belong to no version, and a run commits once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from pipeline.jobs import ingest, loading, records
from pipeline.jobs.arrival import check_arrived
from pipeline.jobs.events import tell
from pipeline.jobs.progress import Listener
from pipeline.jobs.report import IngestReport
from pipeline.jobs.spread import patiently
from pipeline.store.store import open_store
from schemas.errors import PenstockError, TransientError
from schemas.jobs import IngestJob


def load(work: loading.Work) -> loading.UnitOutcome:
    """Loads one unit, again where it meets trouble that may pass."""
    try:
        return patiently(_load, work)
    except TransientError as error:
        return loading.UnitOutcome(work, failure=error)


def _load(work: loading.Work) -> loading.UnitOutcome:
    outcome = loading.load_unit(work)
    if isinstance(outcome.failure, TransientError):
        raise outcome.failure
    return outcome


def commit(
    job: IngestJob,
    prepared: ingest.Prepared,
    outcomes: Sequence[loading.UnitOutcome],
    reread: bool,
) -> IngestReport:
    """Makes sure that all files are there, commits them, and leaves the run's record.

    Args:
        job: what was asked.
        prepared: as `ingest.prepare` returned it.
        outcomes: of all units, in any order.
        reread: see `check_arrived`.

    Raises:
        PenstockError: whatever keeps the job from committing.
    """
    try:
        report = patiently(_commit, job, prepared, outcomes, reread)
    except PenstockError as error:
        records.leave(job, error)
        raise
    records.leave(job, report)
    return report


def _commit(
    job: IngestJob,
    prepared: ingest.Prepared,
    outcomes: Sequence[loading.UnitOutcome],
    reread: bool,
) -> IngestReport:
    written = [block for outcome in outcomes for block in outcome.written]
    if written:
        check_arrived(open_store(job.into).catalog, written, reread=reread)
    return ingest.finish(job, prepared, outcomes)


def until_failure(outcomes: Iterable[loading.UnitOutcome]) -> Iterator[loading.UnitOutcome]:
    """Yields outcomes up to the first that ends the job."""
    for outcome in outcomes:
        unit = outcome.work.unit
        tell(
            "unit done",
            source=unit.where,
            first=unit.start,
            stop=unit.stop,
            read=len(outcome.read),
            quarantined=len(outcome.refusals),
        )
        yield outcome
        if outcome.failure is not None:
            return


def telling(
    outcomes: Iterable[loading.UnitOutcome], listener: Listener | None
) -> Iterator[loading.UnitOutcome]:
    """Yields outcomes of workers elsewhere, and tells a listener of each as it comes home."""
    for outcome in outcomes:
        if listener is not None:
            listener(len(outcome.read), sum(one.row.length for one in outcome.read))
        yield outcome
