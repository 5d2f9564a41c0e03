"""Reverb: a server in this process that holds 100,000 steps, read by its TrajectoryDataset.

What an item is must be decided when steps are inserted. Its TensorFlow has no torch beside it, so
batches are NumPy arrays.
"""

from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import reverb
import tensorflow as tf
from stream_source import BATCH, WINDOW, WINDOWS, arrays, episodes

VERSION = f"Reverb {version('dm-reverb')}, TensorFlow {tf.__version__}"
STEPS, EVERY = 100_000, 8
SHAPES = {"seen": (11,), "action": (3,), "reward": (), "terminated": ()}
tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(1)


def l1(place: Path) -> Callable[[], Any]:
    """One item per transition, two steps of which the second is the next observation's."""
    server = filled(place, 2, 1)
    drawn = read(server, 2, BATCH)

    def batch(_: Any = server) -> Any:
        found = next(drawn)
        step = {name: found[name][:, 0] for name in ("action", "reward", "terminated")}
        seen = found["seen"]
        return seen[:, 0], step["action"], step["reward"], seen[:, 1], step["terminated"]

    return batch


def l2(place: Path) -> Callable[[], Any]:
    """One item per window that begins at every 8th step."""
    server = filled(place, WINDOW, EVERY)
    drawn = read(server, WINDOW, WINDOWS)

    def batch(_: Any = server) -> Any:
        found = next(drawn)
        return found["seen"], found["action"], found["reward"]

    return batch


def filled(place: Path, length: int, every: int) -> Any:
    """A server with one item per `every` steps, of the `length` steps that follow."""
    table = reverb.Table(
        "steps",
        sampler=reverb.selectors.Uniform(),
        remover=reverb.selectors.Fifo(),
        max_size=STEPS * 2,
        rate_limiter=reverb.rate_limiters.MinSize(1),
    )
    server = reverb.Server(tables=[table])
    client = reverb.Client(f"127.0.0.1:{server.port}")
    d = arrays(place)
    for number, (start, stop) in enumerate(episodes(d)):
        if stop > STEPS and start:
            break
        with client.trajectory_writer(num_keep_alive_refs=length) as writer:
            for step in range(start, stop + (length == 2)):
                is_last = step == stop  # a step for the last observation alone
                row = stop - 1 if is_last else step
                seen = d["last_observations"][number] if is_last else d["observations"][step]
                writer.append(
                    {
                        "seen": seen,
                        "action": d["actions"][row],
                        "reward": d["rewards"][row],
                        "terminated": np.float32(d["terminals"][row]),
                    }
                )
                since = step - start - length + 1
                if since >= 0 and since % every == 0:
                    columns = {name: writer.history[name][-length:] for name in SHAPES}
                    writer.create_item("steps", 1.0, columns)
            writer.flush(timeout_ms=60_000)
    return server


def read(server: Any, length: int, rows: int) -> Iterator[Any]:
    held = reverb.TrajectoryDataset(
        f"127.0.0.1:{server.port}",
        "steps",
        max_in_flight_samples_per_worker=2 * rows,
        dtypes=dict.fromkeys(SHAPES, tf.float32),
        shapes={name: tf.TensorShape((length, *shape)) for name, shape in SHAPES.items()},
        num_workers_per_iterator=1,
    )
    for found in held.batch(rows).prefetch(2).as_numpy_iterator():
        yield found.data
