"""What a soak writes down every few seconds, and what it may not find in it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations

MIB = 1 << 20
HOUR_STEPS = 5_000_000 / 24
"""Steps that stand for an hour: an hour's soak at half the peak of a small machine takes 5 million,
and stands for a day."""
RSS_PER_HOUR = 1 * MIB
RSS_NOISE = 64 * MIB
"""How far it swings: what waits for a seal is in memory, and freed memory is returned in lumps."""
RSS_SECONDS = 60.0
"""Below which memory is not judged: it still grows to what a server needs."""
WAITING = 1.8
"""Resident bytes of each byte that waits for a seal: no leak, a busy machine seals late."""
RSS_RUN = 6
"""Samples of which the least counts: the moment when the least waited for a seal."""
LOG_BYTES = 512 * MIB
"""Eight segments: what waits for a seal, the one that is written, and those about to go."""
WARM = 0.25
"""Share of the time after which caches are full and every thread has begun."""


@dataclass(frozen=True)
class Sample:
    """The server at one moment."""

    seconds: float
    """Since the actors keep their pace."""
    steps: int
    """Acknowledged since then."""
    rss: int
    """Bytes."""
    fds: int
    threads: int
    log_bytes: int
    """Of all files in the log's folder."""
    seal_lag: float
    """Seconds."""
    ack_p50: float
    """Milliseconds from handing an episode over to its acknowledgement, since the last sample."""
    ack_p99: float
    tail_behind: int
    """Acknowledged episodes that the tail has not received."""


@dataclass(frozen=True)
class Outcome:
    """What came of the episodes in the end."""

    pushed: int
    acknowledged: int
    stored: int
    """Rows of the last version, each id once."""
    lost: int
    """Acknowledged and in no version."""
    doubled: int
    unasked: int
    """In the version though nobody pushed it."""
    altered: int
    """Of those that were read again."""
    tail_lost: int
    tail_doubled: int
    failures: tuple[str, ...]
    """Of actors, the learner and scrapes."""


def slope(samples: Sequence[Sample], of: Callable[[Sample], float]) -> float:
    """Returns the growth of a figure in one second: the median of all pairs' (Theil-Sen)."""
    pairs = [(b.seconds - a.seconds, of(b) - of(a)) for a, b in combinations(samples, 2)]
    return statistics.median(rise / run for run, rise in pairs if run > 0)


def rss_growth(samples: Sequence[Sample]) -> tuple[float, float]:
    """Returns by how many bytes resident memory grew, and by how many it may have."""
    span = samples[-1].seconds - samples[0].seconds
    hours = max(span / 3600, (samples[-1].steps - samples[0].steps) / HOUR_STEPS)
    return rss_slope(samples) * span, RSS_NOISE + RSS_PER_HOUR * hours


def rss_slope(samples: Sequence[Sample]) -> float:
    """Returns by how many bytes a second the least resident memory of runs of samples grew."""
    runs = [samples[at : at + RSS_RUN] for at in range(0, len(samples), RSS_RUN)]
    least = [min(run, key=_rested) for run in runs if len(run) > RSS_RUN // 2]
    return slope(least if len(least) > 2 else samples, _rested)


def _rested(one: Sample) -> float:
    return one.rss - WAITING * one.log_bytes


def warmed(samples: Sequence[Sample]) -> Sequence[Sample]:
    """Returns the samples after the warm-up."""
    return samples[int(len(samples) * WARM) :]


def broken_rules(samples: Sequence[Sample], outcome: Outcome) -> list[str]:
    """Returns a sentence for everything that a soak should not have found."""
    found = []
    warm = warmed(samples)
    grew, may = rss_growth(warm)
    if grew > may and samples[-1].seconds >= RSS_SECONDS:
        found.append(f"resident memory grew by {grew / MIB:.1f} MiB, {may / MIB:.1f} are allowed")
    quarter = max(len(warm) // 4, 1)
    for name in ("fds", "threads"):
        first = statistics.median(getattr(one, name) for one in warm[:quarter])
        last = statistics.median(getattr(one, name) for one in warm[-quarter:])
        if last > first + 2:
            found.append(f"{name} grew from {first:g} to {last:g}")
    most = max(one.log_bytes for one in samples)
    if most > LOG_BYTES:
        found.append(f"the log had {most / MIB:.0f} MiB, {LOG_BYTES / MIB:.0f} are allowed")
    counts = asdict(outcome)
    for name in ("lost", "doubled", "unasked", "altered", "tail_lost", "tail_doubled"):
        if counts[name]:
            found.append(f"{counts[name]} episodes {name.replace('_', ' ')}")
    if outcome.acknowledged != outcome.pushed:
        found.append(f"{outcome.pushed - outcome.acknowledged} episodes were not acknowledged")
    return [*found, *outcome.failures]
