"""What scoring a version costs: all metrics, some more episodes, and each metric by itself.

Every case starts from a branch without scores, so it pays for its own reference; the reading of the
version, and what metrics share (moments, clusters, neighbours), is in each of them. Seconds are CPU
seconds of this process. Actions follow one linear policy with noise of a known variance, which
`action_divergence` should find: a figure that is quick and wrong would show.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.jobs.measure import measure_version
from pipeline.quality.registry import METRICS
from pipeline.store.store import Store, open_store
from schemas.episode import Episode
from schemas.metrics import MeasureConfig

LENGTH = 1_000
OBSERVATION, ACTION = 11, 3
NOISE = 0.3
"""Standard deviation of the actions around their policy; one, of the actions without it."""
ALL, MORE = "all that are default", "the same after 1 % more episodes"


def bench_measure(
    rows: int = 100_000, say: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Measures scoring on this machine.

    Args:
        rows: steps of the version, in episodes of 1,000.
        say: told what is measured next.

    Returns:
        `rows`; `cases` with name, CPU seconds and steps per CPU second; `divergence` as found and
        as it is, both in the unit of standardised actions squared.
    """
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder:
        store = open_store(Path(folder) / "store", create=True)
        count = max(rows // LENGTH, 10)
        store.append(_episodes(count, seed=0))
        store.branch("bare")
        steps = count * LENGTH
        say(ALL)
        cases = [_case(ALL, store, "main", None, steps)]
        found = store.version().state.metrics["action_divergence"].value.value
        store.append(_episodes(max(count // 100, 1), seed=1))
        say(MORE)
        cases.append(_case(MORE, store, "main", None, steps))
        for name in METRICS:
            say(name)
            store.branch(f"only-{name}", "bare")
            cases.append(_case(name, store, f"only-{name}", (name,), steps))
    truth = NOISE**2 / (1 + NOISE**2)
    return {"rows": steps, "cases": cases, "divergence": {"found": found, "true": truth}}


def _case(
    name: str, store: Store, branch: str, metrics: tuple[str, ...] | None, steps: int
) -> dict[str, Any]:
    config = MeasureConfig(metrics=metrics, return_random=-1.0, return_expert=1.0)
    begun = time.process_time()
    measure_version(store, branch, config)
    seconds = time.process_time() - begun
    return {"name": name, "cpu_seconds": round(seconds, 3), "per_second": round(steps / seconds)}


def _episodes(count: int, seed: int) -> Iterator[Episode]:
    """Yields episodes of a slow walk under a linear policy."""
    random = np.random.default_rng(seed)
    policy = np.random.default_rng(9).normal(size=(OBSERVATION, ACTION))
    policy /= np.linalg.norm(policy, axis=0)
    for number in range(count):
        states = np.empty((LENGTH + 1, OBSERVATION))
        states[0] = random.normal(size=OBSERVATION)
        kicks = random.normal(size=(LENGTH, OBSERVATION)) * np.sqrt(1 - 0.95**2)
        for t in range(LENGTH):
            states[t + 1] = 0.95 * states[t] + kicks[t]
        actions = states[:-1] @ policy + NOISE * random.normal(size=(LENGTH, ACTION))
        yield Episode(
            f"{seed}-{number}",
            {"observations": states.astype(np.float32)},
            actions.astype(np.float32),
            random.normal(size=LENGTH).astype(np.float32),
            truncated=np.arange(LENGTH) == LENGTH - 1,
        )
