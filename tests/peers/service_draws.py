"""A learner of the service's benchmark beside Reverb: it has nothing but the service's address.

`service_draws.py ADDRESS SECONDS [following]` draws batches of 256 transitions, uniform, of what
is in the newest version, and prints one JSON object. Following, it takes up each newer version
that the service tells it of while others push. What it waits for before the first batch is told
apart: that is when the version's files come and are unpacked.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import uuid
from typing import Any

import numpy as np

from pipeline.stream.loader import Stream

BATCH = 256
FOLLOW_EVERY = 200


def drawn(address: str, seconds: float, *, is_following: bool) -> dict[str, float]:
    """Draws for some seconds."""
    follows: dict[str, Any] = {
        "follow": "main",
        "follow_every": FOLLOW_EVERY,
        "service": address,
        "run": f"draws-{uuid.uuid4().hex[:8]}",
    }
    with tempfile.TemporaryDirectory(prefix="penstock-draws-") as cache:
        begun = time.perf_counter()
        stream = Stream(
            f"{address}@main",
            batch_size=BATCH,
            framework="numpy",
            cache_dir=cache,
            **(follows if is_following else {}),
        )
        batches = iter(stream)
        next(batches)
        ready = time.perf_counter() - begun
        waits = []
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            begun = time.perf_counter()
            next(batches)
            waits.append(time.perf_counter() - begun)
    return {
        "steps_per_second": round(len(waits) * BATCH / sum(waits)),
        "p50_ms": round(float(np.median(waits)) * 1e3, 3),
        "p99_ms": round(float(np.quantile(waits, 0.99)) * 1e3, 3),
        "first_batch_seconds": round(ready, 2),
    }


if __name__ == "__main__":
    where, length, *how = sys.argv[1:]
    found = drawn(where, float(length), is_following=how == ["following"])
    sys.stdout.write(json.dumps(found) + "\n")
