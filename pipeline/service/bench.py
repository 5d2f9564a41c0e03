"""The service's benchmark: real processes, durable pushes beside the disk's own sync, pulls.

Everything is measured in rounds that take turns, so that a ratio compares moments that are near.
Actors that push as soon as an acknowledgement lets them tell how much the service takes; actors at
a pace, as those that step environments are, tell how long a push takes while it takes less.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.service.bench_actors import rollout
from pipeline.service.client.client import RolloutClient
from pipeline.store.store import open_store

STEPS = (64, 1000)
BLOCK_BYTES = 64_000_000
_SYNCS = 100
_PULLS = 100


def _windows(actors: int) -> tuple[tuple[int, int], ...]:
    """Returns how many actors push, and how many puts each has on its way."""
    return (1, 1), (actors, 1), (actors, 16)


@dataclass(frozen=True)
class ServiceBench:
    """What is measured."""

    actors: int = 8
    processes: int = 2
    """That the actors are in, as threads."""
    paces: tuple[int, ...] = (400, 1000)
    """Puts a second, of the first of `steps`, that the actors push together at their times."""
    seconds: float = 3.0
    """Of each turn; twice as long at a pace, so that what is pushed is sealed meanwhile."""
    rounds: int = 3
    steps: tuple[int, ...] = STEPS
    """Of each put."""
    folder: Path | None = None
    """Where store and log are; a temporary folder by default."""
    block_bytes: int = BLOCK_BYTES
    pulls: int = _PULLS

    def loads(self, steps: int) -> list[Load]:
        """Returns what is pushed in a round, in puts of some steps."""
        closed = [Load(steps, n, window) for n, window in _windows(self.actors)]
        paces = self.paces if steps == self.steps[0] else ()
        return closed + [Load(steps, self.actors, pace=pace) for pace in paces]


@dataclass(frozen=True)
class Load:
    """Who pushes how."""

    steps: int
    """Of each put."""
    actors: int
    window: int = 1
    """Puts of an actor on their way at most, without a pace."""
    pace: int = 0
    """Puts a second of all actors together; 0 for as many as the window lets through."""

    @property
    def name(self) -> str:
        """What the row is called."""
        how = f"{self.pace} a second together" if self.pace else f"{self.window} on their way"
        return f"{self.steps} steps, {self.actors} actors, {how}"


@dataclass
class _Turns:
    """What the turns of one load found."""

    load: Load
    waits: list[float] = field(default_factory=list)
    """Seconds of each put until it was acknowledged."""
    rates: list[float] = field(default_factory=list)
    """Puts a second of each turn."""

    def row(self, sync: float) -> dict[str, Any]:
        """Returns the row of the report."""
        rate, median = float(np.median(self.rates)), float(np.median(self.waits))
        return {
            "name": self.load.name,
            "pushed": len(self.waits),
            "puts_per_second": round(rate, 1),
            "steps_per_second": round(rate * self.load.steps),
            "ack_p50_ms": _ms(median),
            "ack_p99_ms": _ms(np.quantile(self.waits, 0.99)),
            "ack_p50_of_fdatasync": round(median / sync, 2),
        }


def bench_service(
    config: ServiceBench | None = None, say: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Measures a service on this machine; seconds are wall seconds."""
    config = config or ServiceBench()
    syncs: list[float] = []
    turns: dict[str, _Turns] = {}
    pulls: list[float] = []
    blocks: list[float] = []
    busy = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=config.folder) as folder:
        root = Path(folder)
        _make_block(root / "store", config.block_bytes)
        with _served(root) as address:
            for number in range(config.rounds):
                say(f"round {number + 1} of {config.rounds}")
                for steps in config.steps:
                    syncs += _sync_seconds(root, steps * 100)
                    for load in config.loads(steps):
                        if load.pace:
                            _settle(address)
                        how = (load.actors, load.steps, load.window)
                        found, seconds = pushed(address, *how, config, load.pace)
                        row = turns.setdefault(load.name, _Turns(load))
                        row.waits += found
                        row.rates.append(len(found) / seconds)
                pulls += _tail_seconds(address, config.pulls)
                blocks.append(_block_rate(address))
    sync = float(np.median(syncs))
    return {
        "machine": {"cores": os.cpu_count(), "load_before": busy, "load_after": os.getloadavg()[0]},
        "fdatasync_p50_ms": _ms(sync),
        "pushes": [found.row(sync) for found in turns.values()],
        "tail_256_rows_p50_ms": _ms(np.median(pulls)),
        "tail_256_rows_p99_ms": _ms(np.quantile(pulls, 0.99)),
        "block_mb_per_second": round(float(np.median(blocks)), 1),
    }


def _ms(seconds: Any) -> float:
    return round(float(seconds) * 1000, 3)


@contextmanager
def _served(root: Path) -> Iterator[str]:
    """Runs a server; yields its address."""
    ports = ("--port", "0", "--http-port", "0", "--no-token", "--disk-reserve-bytes", "0B")
    command = [sys.executable, "-m", "penstock", "serve", str(root / "store"), *ports]
    with (root / "server.log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())["data"]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        process.stdout.close()


def _make_block(store: Path, size: int) -> None:
    """Makes a store with one block of about so many bytes that does not get smaller."""
    random = np.random.default_rng(0)
    steps = size // 100 // 10
    open_store(store, create=True).append([rollout(steps, random) for _ in range(10)])


def _sync_seconds(root: Path, size: int) -> list[float]:
    """Returns how long the disk takes to write some bytes and sync them, again and again."""
    found = []
    handle = os.open(root / "probe", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        for _ in range(_SYNCS):
            begun = time.perf_counter()
            os.write(handle, bytes(size))
            os.fdatasync(handle)
            found.append(time.perf_counter() - begun)
    finally:
        os.close(handle)
    return found


def _settle(address: str) -> None:
    """Waits until all that was pushed is in a version: what is at a pace pays for itself alone."""
    with RolloutClient(address, ack="store") as client:
        client.push(rollout(1, np.random.default_rng()))


def pushed(
    address: str, actors: int, steps: int, window: int, config: ServiceBench, pace: int = 0
) -> tuple[list[float], float]:
    """Returns the waits of some actors, and the seconds until all was acknowledged."""
    processes = min(config.processes, actors)
    command = [sys.executable, "-m", "pipeline.service.bench_actors", address]
    lasts = config.seconds * (2 if pace else 1)
    command += [str(actors // processes), str(steps), str(lasts), str(window), str(pace / actors)]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(processes)
    ]
    waits: list[float] = []
    seconds = 0.0
    for process in running:
        text, _ = process.communicate()
        found = json.loads(text)
        waits += found["waits"]
        seconds = max(seconds, found["seconds"])
    return waits, seconds


def _tail_seconds(address: str, pulls: int) -> list[float]:
    """Returns how long it takes to pull an episode of 256 rows that was just pushed."""
    random = np.random.default_rng()
    found = []
    with RolloutClient(address) as client:
        for _ in range(pulls):
            offset = client.push(rollout(255, random))
            begun = time.perf_counter()
            (one,) = client.tail(after=int(offset) - 1, min_offset=int(offset))
            found.append(time.perf_counter() - begun)
            assert one.episode.length == 255
    return found


def _block_rate(address: str) -> float:
    """Returns with how many MB a second the files of the first version's blocks come."""
    with RolloutClient(address) as client:
        begun = time.perf_counter()
        size = sum(
            data.size for _, files in client.pull_blocks("main:1") for data in files.values()
        )
        return float(size) / 1e6 / (time.perf_counter() - begun)
