"""What the processes that are killed do; importable without the tests."""

from __future__ import annotations

import itertools
import time
from multiprocessing.connection import Connection

from pipeline.store import leases
from pipeline.store.store import Store, open_store
from schemas.episode import Episode
from tests.store.makers import episode

PRELOAD = ["tests.reliability.killed"]
SIZE = 3
"""Episodes per batch."""
TAG_EVERY = 5


def batch(number: int) -> list[Episode]:
    return [episode(f"b{number}-e{k}", 2 + k) for k in range(SIZE)]


def write(root: str, first: int, told: Connection) -> None:
    """Offers batch after batch and says which are in; now and then names a version."""
    store = open_store(root)
    for number in itertools.count(first):
        store.append(batch(number))
        told.send(("batch", number))
        if number % TAG_EVERY == 0:
            version = store.version("main:1")
            store.tag(f"t{number}", version)
            told.send(("tag", number))


def maintain(root: str, _first: int, _told: Connection) -> None:
    """Compacts for ever."""
    store = open_store(root)
    while True:
        end_turns(store)
        store.compact(everything=True)
        time.sleep(0.02)


def end_turns(store: Store) -> None:
    """Lets time pass for what the dead held."""
    objects = store.catalog.objects
    for folder in (f"leases/{leases.MAINTAINER}", "leases"):
        for name in objects.names(folder):
            if name.endswith(".json"):
                objects.delete(f"{folder}/{name}")
