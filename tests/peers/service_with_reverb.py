"""Reverb beside our service: what it inserts and samples, and what a kill -9 leaves of it.

`service_with_reverb.py rates SECONDS` and `service_with_reverb.py kill` print one JSON object;
`serve` is the server that both start as a process of its own. An item counts as acknowledged when
`flush` returned. Reverb keeps items in memory; what outlives the process is its last checkpoint.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import reverb
import tensorflow as tf

VERSION = f"Reverb {version('dm-reverb')}, TensorFlow {tf.__version__}"
OBSERVED, ACTED, PUT_STEPS, LONG_STEPS, BATCH = 17, 6, 64, 1000, 256
ACTORS = 8
KEPT = 1_000_000
ITEMS, AT_CHECKPOINT = 800, 500
SHAPES = {"seen": (OBSERVED,), "action": (ACTED,), "reward": ()}
STEP = {
    "seen": np.arange(OBSERVED, dtype=np.float32),
    "action": np.arange(ACTED, dtype=np.float32),
    "reward": np.float32(0),
}


def serve(folder: Path) -> None:
    """Serves a table until it is killed; prints its port."""
    table = reverb.Table(
        "steps",
        sampler=reverb.selectors.Uniform(),
        remover=reverb.selectors.Fifo(),
        max_size=KEPT,
        rate_limiter=reverb.rate_limiters.MinSize(1),
    )
    keeps = reverb.checkpointers.DefaultCheckpointer(str(folder))
    server = reverb.Server(tables=[table], checkpointer=keeps)
    sys.stdout.write(json.dumps({"port": server.port}) + "\n")
    sys.stdout.flush()
    server.wait()


@contextmanager
def served(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server's process and its address."""
    command = [sys.executable, __file__, "serve", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        port = json.loads(process.stdout.readline())["port"]
        yield process, f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def rates(seconds: float) -> dict[str, Any]:
    """What eight writers insert, flushing every item, and what is sampled of it."""
    with (
        tempfile.TemporaryDirectory(prefix="penstock-reverb-") as folder,
        served(Path(folder)) as (_, address),
    ):
        return {
            "version": VERSION,
            "actors": ACTORS,
            "items_of_64_steps": inserted(address, seconds, PUT_STEPS),
            "items_of_1000_steps": inserted(address, seconds, LONG_STEPS, LONG_STEPS),
            "items_of_1_step": inserted(address, seconds, 1),
            "sample_256": sampled(address, seconds),
            "sample_256_following": sampled_meanwhile(address, seconds),
        }


def inserted(
    address: str, seconds: float, length: int, put_steps: int = PUT_STEPS
) -> dict[str, float]:
    """Inserts items of some steps from all actors, anew; waits are those for `flush`.

    Args:
        address: of the server.
        seconds: for how long.
        length: steps of an item.
        put_steps: steps between two flushes.
    """
    client = reverb.Client(address)
    client.reset("steps")
    waits: list[list[float]] = [[] for _ in range(ACTORS)]
    until = time.perf_counter() + seconds

    def act(mine: list[float]) -> None:
        with client.trajectory_writer(num_keep_alive_refs=put_steps) as writer:
            if put_steps == LONG_STEPS:  # the length of chunks that it finds itself is far slower
                for name in SHAPES:
                    writer.configure(
                        (name,), num_keep_alive_refs=put_steps, max_chunk_length=put_steps
                    )
            while time.perf_counter() < until:
                begun = time.perf_counter()
                for step in range(1, put_steps + 1):
                    writer.append(STEP)
                    if step % length == 0:
                        columns = {name: writer.history[name][-length:] for name in SHAPES}
                        writer.create_item("steps", 1.0, columns)
                writer.flush(timeout_ms=60_000)
                mine.append(time.perf_counter() - begun)

    begun = time.perf_counter()
    together([lambda mine=mine: act(mine) for mine in waits])
    took = time.perf_counter() - begun
    found = np.concatenate([np.asarray(mine) for mine in waits])
    return {
        "puts_per_second": round(len(found) / took, 1),
        "steps_per_second": round(len(found) * put_steps / took),
        "ack_p50_ms": round(float(np.median(found)) * 1e3, 3),
        "ack_p99_ms": round(float(np.quantile(found, 0.99)) * 1e3, 3),
    }


def together(works: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def sampled(address: str, seconds: float) -> dict[str, float]:
    """Draws batches of 256 single steps."""
    held = reverb.TrajectoryDataset(
        address,
        "steps",
        max_in_flight_samples_per_worker=2 * BATCH,
        dtypes=dict.fromkeys(SHAPES, tf.float32),
        shapes={name: tf.TensorShape((1, *shape)) for name, shape in SHAPES.items()},
    )
    drawn = held.batch(BATCH).prefetch(2).as_numpy_iterator()
    next(drawn)
    waits = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        begun = time.perf_counter()
        next(drawn)
        waits.append(time.perf_counter() - begun)
    return {
        "steps_per_second": round(len(waits) * BATCH / sum(waits)),
        "p50_ms": round(float(np.median(waits)) * 1e3, 3),
        "p99_ms": round(float(np.quantile(waits, 0.99)) * 1e3, 3),
    }


def sampled_meanwhile(address: str, seconds: float) -> dict[str, float]:
    """Draws such batches while all actors go on inserting single steps."""
    inserting = threading.Thread(target=inserted, args=(address, seconds + 2, 1))
    inserting.start()
    time.sleep(1)
    found = sampled(address, seconds)
    inserting.join()
    return found


def kill() -> dict[str, Any]:
    """Inserts and flushes items, with one checkpoint on the way; counts what a restart has."""
    with tempfile.TemporaryDirectory(prefix="penstock-reverb-") as folder:
        with served(Path(folder)) as (process, address):
            client = reverb.Client(address)
            with client.trajectory_writer(num_keep_alive_refs=1) as writer:
                for number in range(1, ITEMS + 1):
                    writer.append(STEP)
                    columns = {name: writer.history[name][-1:] for name in SHAPES}
                    writer.create_item("steps", 1.0, columns)
                    writer.flush(timeout_ms=60_000)
                    if number == AT_CHECKPOINT:
                        client.checkpoint()
                process.kill()
                process.wait()
        begun = time.perf_counter()
        with served(Path(folder)) as (_, address):
            left = reverb.Client(address).server_info()["steps"].current_size
            seconds = time.perf_counter() - begun
    return {
        "version": VERSION,
        "acknowledged": ITEMS,
        "checkpoint_at": AT_CHECKPOINT,
        "after_restart": left,
        "lost": ITEMS - left,
        "restart_seconds": round(seconds, 2),
    }


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    if what == "serve":
        serve(Path(arguments[0]))
    else:
        found = rates(float(arguments[0])) if what == "rates" else kill()
        sys.stdout.write(json.dumps(found) + "\n")
