"""What became of an ingest job, in the words of `penstock ingest --json`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from pipeline.jobs.sources import Dataset
from pipeline.store.append import Outcome, Refusal
from schemas.jobs import IngestJob
from schemas.state import size_of
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
    """True if nothing was written: the counts say what would have been."""
    warnings: tuple[str, ...] = ()
    """What the gate noticed and let pass."""
    sources_unchanged: int = 0
    """Sources that were not read, because nothing about them changed."""
    sources_waiting: int = 0
    """Sources that were left for the next run, because their files are too young."""


class Found(Protocol):
    """What a report needs of a job's preparation."""

    @property
    def datasets(self) -> Sequence[Dataset]:
        """All datasets of the job."""
        ...

    @property
    def waiting(self) -> Sequence[str]:
        """Sources left for the next run."""
        ...

    @property
    def started(self) -> float:
        """`time.time()`."""
        ...


def report_of(
    job: IngestJob,
    prepared: Found,
    committed: Sequence[Outcome],
    shown: Commit | None,
    refusals: Sequence[Refusal],
    warnings: Sequence[str] = (),
) -> IngestReport:
    """Returns the report of a job that ended.

    Args:
        job: what was asked.
        prepared: its sources.
        committed: what became of its episodes, commit by commit; nothing for a dry run.
        shown: the version that holds them: a new one, or the head where nothing was to add.
        refusals: of this run, those known from earlier runs included.
        warnings: what was noticed and let pass.
    """
    added = [row for one in committed for row in one.added]
    replaced = [row for one in committed for row in one.replaced]
    commits = {one.commit.id: one.commit for one in committed if one.commit}
    operations = [op for commit in commits.values() for op in commit.operations]
    parts = [part for op in operations if isinstance(op, Append) for part in op.parts]
    settled = [dataset.settled for dataset in prepared.datasets if dataset.settled]
    reasons = Counter(refusal.code for refusal in refusals)
    for state in settled:
        reasons.update(state.quarantined)
    listings = [dataset.listing for dataset in prepared.datasets]
    return IngestReport(
        version=shown.id if shown else None,
        number=shown.number if shown else None,
        branch=job.branch,
        episodes_added=len(added),
        episodes_known=sum(one.known for one in committed) + sum(s.episodes for s in settled),
        episodes_changed=reasons["id_conflict"] + len(replaced),
        episodes_replaced=len(replaced),
        episodes_quarantined=reasons.total(),
        steps_added=sum(row.length for row in [*added, *replaced]),
        bytes_written=size_of(parts),
        seconds=round(time.time() - prepared.started, 3),
        reasons={code: count for code, count in reasons.items() if count},
        guesses=tuple(dict.fromkeys(g for listing in listings for g in listing.guesses)),
        dry_run=job.dry_run,
        warnings=tuple(warnings),
        sources_unchanged=len(settled),
        sources_waiting=len(prepared.waiting),
    )


def joined(reports: Sequence[IngestReport]) -> IngestReport:
    """Returns the report of a run that committed in parts, in their order."""
    last = reports[-1]
    reasons: Counter[str] = Counter()
    for one in reports:
        reasons.update(one.reasons)
    counted = (
        *("episodes_added", "episodes_known", "episodes_changed", "episodes_replaced"),
        *("episodes_quarantined", "steps_added", "bytes_written"),
        *("sources_unchanged", "sources_waiting"),
    )
    return replace(
        last,
        **{name: sum(getattr(one, name) for one in reports) for name in counted},
        seconds=max(one.seconds for one in reports),
        reasons=dict(reasons),
        guesses=tuple(dict.fromkeys(g for one in reports for g in one.guesses)),
        warnings=tuple(dict.fromkeys(w for one in reports for w in one.warnings)),
    )
