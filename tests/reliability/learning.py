"""What the learners that are killed do; importable without the tests."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from learners.train import TrainConfig, train
from pipeline.stream.loader import Stream

PRELOAD = ["tests.reliability.learning"]
BATCH, EVERY, SEED = 16, 20, 7
PAUSE = 0.001  # seconds between batches, so that there is time to be killed in


def config(url: str, out: str, steps: int) -> TrainConfig:
    return TrainConfig(
        algo="bc",
        data=(url,),
        out=out,
        steps=steps,
        settings={"hidden": (8, 8)},
        stream={"sampler": "shuffle", "follow": "main", "follow_every": EVERY},
        batch_size=BATCH,
        seed=SEED,
        log_every=15,
        checkpoint_every=30,
        resume=True,
    )


def rows(batch: Any) -> str:
    """Which rows a batch holds, as a SHA-256."""
    indices = np.ascontiguousarray(batch["indices"], "<i8")
    return hashlib.sha256(indices.tobytes()).hexdigest()


def learn(url: str, out: str, steps: int, log: str, cache: str) -> None:
    """Trains, or goes on; each batch it learns from is a line of the log."""
    os.environ["PENSTOCK_CACHE"] = cache
    line = os.open(log, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    following = Stream.__next__

    def told(self: Stream) -> Any:
        step, batch = self.step, following(self)
        os.write(line, f"{step} {rows(batch)}\n".encode())
        time.sleep(PAUSE)
        return batch

    Stream.__next__ = told  # type: ignore[method-assign]
    train(config(url, out, steps))


def lines(log: Path) -> list[tuple[int, str]]:
    """Steps and rows of the batches that were learned from, as often as they were."""
    if not log.exists():
        return []
    whole = [line.split() for line in log.read_text().splitlines()]
    return [(int(step), sha) for step, sha in whole]
