"""What became of an ingest job, in the words of `penstock ingest --json`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from connectors.base import Listing
from pipeline.store.append import Outcome, Refusal
from schemas.jobs import IngestJob
from schemas.version import Append, Commit


@dataclass(frozen=True)
class IngestReport:
    """The outcome of a job, as `penstock ingest --json` prints it."""

    version: str | None
    number: int | None
    branch: str
    episodes_added: int
    episodes_known: int
    episodes_changed: int
    episodes_replaced: int
    episodes_quarantined: int
    steps_added: int
    bytes_written: int
    seconds: float
    reasons: dict[str, int] = field(default_factory=dict)
    guesses: tuple[str, ...] = ()
    dry_run: bool = False


def report_of(
    job: IngestJob,
    listings: Sequence[Listing],
    committed: Outcome | None,
    shown: Commit | None,
    refusals: Sequence[Refusal],
    started: float,
) -> IngestReport:
    """Returns the report of a job that ended.

    Args:
        job: what was asked.
        listings: of its sources.
        committed: what became of its episodes; None for a dry run.
        shown: the version that holds them: a new one, or the head where nothing was to add.
        refusals: of this run, those known from earlier runs included.
        started: `time.time()` at the start of the job.
    """
    commit = committed.commit if committed else None
    added = committed.added if committed else ()
    replaced = committed.replaced if committed else ()
    operations = commit.operations if commit else ()
    parts = [part for op in operations if isinstance(op, Append) for part in op.parts]
    reasons = Counter(refusal.code for refusal in refusals)
    return IngestReport(
        version=shown.id if shown else None,
        number=shown.number if shown else None,
        branch=job.branch,
        episodes_added=len(added),
        episodes_known=committed.known if committed else 0,
        episodes_changed=reasons["id_conflict"] + len(replaced),
        episodes_replaced=len(replaced),
        episodes_quarantined=len(refusals),
        steps_added=sum(row.length for row in (*added, *replaced)),
        bytes_written=sum(
            part.rows.bytes + sum(block.bytes for block in part.blocks) for part in parts
        ),
        seconds=round(time.time() - started, 3),
        reasons={code: count for code, count in reasons.items() if count},
        guesses=tuple(dict.fromkeys(g for listing in listings for g in listing.guesses)),
        dry_run=job.dry_run,
    )
