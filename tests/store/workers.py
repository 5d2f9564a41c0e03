"""What the processes of the concurrency tests do; importable without the tests."""

from __future__ import annotations

from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier

import numpy as np

from pipeline.store.store import open_store
from schemas.errors import PenstockError
from tests.store.makers import episode

PRELOAD = ["tests.store.workers"]
SHARED = 12
"""Ids that all writers offer."""
OWN = 5
"""Episodes per batch of a writer's own."""
BATCHES = 3


def own_ids(writer: int, batch: int) -> list[str]:
    return [f"w{writer}-b{batch}-e{number}" for number in range(OWN)]


def shared_ids(writer: int, batch: int) -> list[str]:
    """Each writer offers the shared ids in another order, cut into batches otherwise."""
    turned = [f"shared{(number * (2 * writer + 1) + writer) % SHARED}" for number in range(SHARED)]
    size = writer + 3
    return [turned[number % SHARED] for number in range(batch * size, (batch + 1) * size)]


def race(root: str, writer: int, barrier: Barrier, report: Connection) -> None:
    """Creates the store with the others, appends own rows, then the same rows as the others."""
    try:
        barrier.wait(60)
        store = open_store(root, create=True)
        for batch in range(BATCHES):
            store.append([episode(name, 2) for name in own_ids(writer, batch)])
        barrier.wait(60)
        for batch in range(-(-SHARED // (writer + 3))):
            store.append([episode(name, 2) for name in shared_ids(writer, batch)])
        report.send(store.id)
    except PenstockError as error:
        report.send(error)


def batch_ids(batch: int) -> list[str]:
    return [f"b{batch}-e{number}" for number in range(OWN)]


def offer_for_ever(root: str, first: int, acknowledged: Connection) -> None:
    """Offers every batch twice from `first` on, and tells each that was accepted."""
    store = open_store(root)
    batch = first
    while True:
        # Every other batch has two layouts, so two blocks.
        changes = {"rewards": None} if batch % 2 else {}
        offered = [episode(name, 3) for name in batch_ids(batch)[:-1]]
        offered.append(episode(batch_ids(batch)[-1], 3, **changes))
        for _ in range(2):
            store.append(offered)
            acknowledged.send(batch)
        batch += 1


def race_specs(root: str, writer: int, barrier: Barrier, report: Connection) -> None:
    """Appends episodes one by one; the actions of writers 0 and 2 are alike, those of 1 are not."""
    try:
        store = open_store(root)
        barrier.wait(60)
        for number in range(OWN):
            actions = np.zeros((2, 2 + writer % 2), np.float32)
            made = episode(f"w{writer}-{number}", 2, actions=actions)
            store.append([made], new_spec=f"s{writer % 2}")
        report.send(None)
    except PenstockError as error:
        report.send(error)
