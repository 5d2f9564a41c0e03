"""How near streams come to the physical ceiling, measured side by side in one run.

The ceiling is what nothing can beat that draws random transitions of this size from one
memory-mapped file: random numbers, looked up in a table of rows that have a next one, one gather of
(row, next row) for many batches, and the five arrays that a training step reads, cut per batch; no
plan, no provenance, no resume. `numpy.take` makes the ceiling of NumPy batches and
`torch.index_select` that of tensors; the bare copy of random records, nothing looked up and nothing
cut, stands beside them. All figures are batches per second of CPU time on one core; contenders take
many short turns and the best of each counts, so that a noisy moment hurts none of them.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.store.reader import Version
from pipeline.store.store import open_store
from pipeline.stream.batches import SPAN, rows_per_gather
from pipeline.stream.loader import Stream
from pipeline.stream.record import RecordLayout
from pipeline.stream.source import OpenVersion
from schemas.episode import Episode

OBSERVATION, ACTION, LENGTH = 11, 3, 500  # Hopper
_READ = (
    ("observations", 0),
    ("actions", 0),
    ("rewards", 0),
    ("observations", 1),
    ("terminated", 0),
)
"""Fields that a training step reads, and from which of the two records."""

Contender = Callable[[], object]
"""Makes one batch."""

GATHER, BY_TAKE, BY_SELECT = "numpy.take alone", "numpy.take ceiling", "torch.index_select ceiling"
_CEILINGS = {"Stream as NumPy": BY_TAKE, "Stream as torch": BY_SELECT, BY_SELECT: BY_SELECT}


def bench_stream(
    rows: int = 1_000_000, batch_size: int = 256, batches: int = 1_920, rounds: int = 15
) -> dict[str, Any]:
    """Measures uniform transitions of Hopper's size against the packed-gather ceiling.

    Args:
        rows: steps in the store.
        batch_size: B.
        batches: per contender and round.
        rounds: how often contenders take turns; the best round of each counts.

    Returns:
        `results`: name, batches per CPU second and share of its ceiling per contender; and the
        seconds to the first batch with a cold and a warm cache.
    """
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder:
        version = _made_version(Path(folder), rows)
        seconds = [_first_batch_seconds(version, folder, batch_size) for _ in range(2)]
        contenders = _contenders(version, folder, batch_size)
        best = dict.fromkeys(contenders, 0.0)
        for _ in range(rounds):
            for name, make in contenders.items():
                best[name] = max(best[name], _rate(make, batches))
    return {
        "rows": rows,
        "batch_size": batch_size,
        "first_batch_seconds": round(seconds[0], 3),
        "first_batch_seconds_warm": round(seconds[1], 3),
        "results": [
            {
                "name": name,
                "batches_per_cpu_second": round(rate),
                "ratio": round(rate / best[_CEILINGS.get(name, BY_TAKE)], 3),
            }
            for name, rate in best.items()
        ],
    }


def _made_version(folder: Path, rows: int) -> Version:
    random = np.random.default_rng(0)

    def episodes() -> Iterator[Episode]:
        for number in range(-(-rows // LENGTH)):
            length = min(LENGTH, rows - number * LENGTH)
            yield Episode(
                episode_id=f"bench/{number}",
                observations=random.random((length + 1, OBSERVATION), np.float32),  # type: ignore[arg-type]
                actions=random.random((length, ACTION), np.float32),
                rewards=random.random(length, np.float32),
                terminated=number % 2 == 0,  # type: ignore[arg-type]
                truncated=number % 2 == 1,  # type: ignore[arg-type]
            )

    return open_store(folder / "store", create=True).append(episodes())


def _first_batch_seconds(version: Version, folder: str, batch_size: int) -> float:
    start = time.perf_counter()
    next(Stream(version, batch_size=batch_size, framework="numpy", cache_dir=f"{folder}/cache"))
    return time.perf_counter() - start


def _contenders(version: Version, folder: str, batch_size: int) -> dict[str, Contender]:
    def stream(framework: Any) -> Stream:
        return Stream(
            version, batch_size=batch_size, framework=framework, cache_dir=f"{folder}/cache"
        )

    by_numpy = stream("numpy")
    opened = by_numpy.feed.at(0)
    steps = rows_per_gather(opened.layout.size, batch_size)
    rows = opened.index.find(np.arange(len(opened.index)))[0].astype(np.int64)
    every = np.arange(len(opened.records) - 1)
    found: dict[str, Contender] = {
        GATHER: _take_gather(opened, every, (steps, batch_size), read=()),
        BY_TAKE: _take_gather(opened, rows, (steps, batch_size), read=_READ),
    }
    try:
        from pipeline.stream import torch_adapter  # noqa: PLC0415 - an optional extra
    except ModuleNotFoundError:
        return {**found, "Stream as NumPy": by_numpy.__next__}
    read = [(*_words(opened.layout, name), ahead) for name, ahead in _READ]
    found[BY_SELECT] = torch_adapter.window_gather(opened.records, rows, (steps, batch_size), read)
    return {
        **found,
        "Stream as NumPy": by_numpy.__next__,
        "Stream as torch": stream("torch").__next__,
    }


def _take_gather(
    opened: OpenVersion,
    anchors: np.ndarray,
    shape: tuple[int, int],
    read: Sequence[tuple[str, int]],
) -> Contender:
    """Batches of random (row, next row) pairs by `numpy.take`; whole blocks if nothing is read."""
    random = np.random.default_rng(0)
    ready: list[object] = []

    def batch() -> object:
        if not ready:
            drawn = random.integers(0, len(anchors), shape)
            pairs = np.empty((*shape, SPAN), np.int64)
            pairs[..., 0] = np.take(anchors, drawn, mode="clip") if read else drawn
            np.add(pairs[..., 0], 1, out=pairs[..., 1])
            taken = np.take(opened.records, pairs, axis=0, mode="clip")
            views = [list(opened.layout.view(taken, name, ahead)) for name, ahead in read]
            ready.extend(zip(*views, strict=True) if read else [taken] * shape[0])
        return ready.pop()

    return batch


def _words(layout: RecordLayout, name: str) -> tuple[int, int]:
    """First word and number of words of a field."""
    field = next(field for field in layout.fields if field.name == name)
    size = int(np.prod(field.shape, dtype=np.int64)) * np.dtype(field.dtype).itemsize
    return field.offset // 4, -(-size // 4)


def _rate(make: Contender, batches: int) -> float:
    for _ in range(64):
        make()
    start = time.process_time()
    for _ in range(batches):
        make()
    return batches / (time.process_time() - start)
