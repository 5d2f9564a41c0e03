"""Fills a cache from a process of its own, to be killed or raced: FOLDER PAUSE NAME..."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

import pipeline.stream.cache as cache
from pipeline.stream.record import plan_record
from schemas.spec import FieldSpec

LAYOUT = plan_record({"observations": FieldSpec("<f4", (15,))}, "float32")


def numbered(name: str, rows: int = 50) -> np.ndarray:
    """Records of one block that tell their block."""
    numbers = int(name) + 1000 * np.arange(rows, dtype=np.int32)[:, None]
    return np.ascontiguousarray(np.broadcast_to(numbers, (rows, LAYOUT.words)))


def pieces(name: str, rows: int = 50) -> list[np.ndarray]:
    """The same in two pieces."""
    records = numbered(name, rows)
    return [records[:20], records[20:]]


def fill(folder: Path, pause: float, names: list[str]) -> None:
    """Packs blocks slowly, saves the index after each, and says how many are done."""
    cache.SAVE_EVERY = 1

    def pack(name: str) -> list[np.ndarray]:
        time.sleep(pause)
        return pieces(name)

    def say(done: int, _of: int) -> None:
        sys.stdout.write(f"{done}\n")
        sys.stdout.flush()

    cache.PackedCache(folder, LAYOUT).ensure(dict.fromkeys(names, 50), pack, say)


if __name__ == "__main__":
    fill(Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3:])
