"""The service's benchmark: real processes, durable pushes beside the disk's own sync, pulls.

Everything is measured in rounds that take turns, so that a ratio compares moments that are near.
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
from dataclasses import dataclass
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


@dataclass(frozen=True)
class ServiceBench:
    """What is measured."""

    actors: int = 8
    processes: int = 2
    """That the actors are in, as threads."""
    seconds: float = 3.0
    """Of each turn."""
    rounds: int = 3
    folder: Path | None = None
    """Where store and log are; a temporary folder by default."""


def bench_service(
    config: ServiceBench | None = None, say: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Measures a service on this machine; seconds are wall seconds."""
    config = config or ServiceBench()
    syncs: list[float] = []
    waits: dict[str, list[float]] = {}
    rates: dict[str, list[float]] = {}
    pulls: list[float] = []
    blocks: list[float] = []
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=config.folder) as folder:
        root = Path(folder)
        _make_block(root / "store")
        with _served(root) as address:
            for number in range(config.rounds):
                say(f"round {number + 1} of {config.rounds}")
                for steps in STEPS:
                    syncs += _sync_seconds(root, steps * 100)
                    for actors, window in ((1, 1), (config.actors, 1), (config.actors, 16)):
                        name = f"{steps} steps, {actors} actors, {window} on their way"
                        found, seconds = _pushed(address, actors, steps, window, config)
                        waits.setdefault(name, []).extend(found)
                        rates.setdefault(name, []).append(len(found) / seconds)
                pulls += _tail_seconds(address)
                blocks.append(_block_rate(address))
    sync = float(np.median(syncs))
    return {
        "machine": {"cores": os.cpu_count(), "load_before": load, "load_after": os.getloadavg()[0]},
        "fdatasync_p50_ms": _ms(sync),
        "pushes": [
            {
                "name": name,
                "puts_per_second": round(float(np.median(rates[name])), 1),
                "steps_per_second": round(float(np.median(rates[name])) * int(name.split()[0])),
                "ack_p50_ms": _ms(np.median(found)),
                "ack_p99_ms": _ms(np.quantile(found, 0.99)),
                "ack_p50_of_fdatasync": round(float(np.median(found)) / sync, 2),
            }
            for name, found in waits.items()
        ],
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


def _make_block(store: Path) -> None:
    """Makes a store with one block of about `BLOCK_BYTES` that does not get smaller."""
    random = np.random.default_rng(0)
    steps = BLOCK_BYTES // 100 // 10
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


def _pushed(
    address: str, actors: int, steps: int, window: int, config: ServiceBench
) -> tuple[list[float], float]:
    """Returns the waits of some actors, and the seconds that they pushed."""
    processes = min(config.processes, actors)
    each = str(actors // processes)
    command = [sys.executable, "-m", "pipeline.service.bench_actors", address, each]
    command += [str(steps), str(config.seconds), str(window)]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(processes)
    ]
    waits: list[float] = []
    for process in running:
        text, _ = process.communicate()
        waits += json.loads(text)
    return waits, config.seconds


def _tail_seconds(address: str) -> list[float]:
    """Returns how long it takes to pull an episode of 256 rows that was just pushed."""
    random = np.random.default_rng()
    found = []
    with RolloutClient(address) as client:
        for _ in range(_PULLS):
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
