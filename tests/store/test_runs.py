"""What a run reads: the first to say so decides, collection keeps it, forgetting lets it go."""

from __future__ import annotations

import datetime as dt
import threading
from pathlib import Path

import pytest

from pipeline.store import layout, runs
from pipeline.store.store import Store, open_store
from schemas.errors import DamagedStoreError, NotFoundError, UsageError
from tests.episodes import episode

NOW = dt.timedelta(0)


def grown(path: Path, versions: int) -> Store:
    store = open_store(path, create=True)
    for k in range(versions):
        store.append([episode(f"e{k}", seed=k)])
    return store


def test_the_first_to_refer_decides(tmp_path: Path) -> None:
    store = grown(tmp_path / "s", 3)
    commits = [store.version(f"main:{k}").commit for k in (1, 2, 3)]
    decided = []

    def rank(number: int) -> None:
        mine = open_store(tmp_path / "s").catalog
        decided.append(runs.refer(mine, "r1", 40, [commits[number]], [{"seed": 1}]))

    threads = [threading.Thread(target=rank, args=(k,)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({reference.versions for reference in decided}) == 1
    assert runs.references(store.catalog, "r1") == decided[:1]


def test_references_stand_in_the_order_of_their_steps(tmp_path: Path) -> None:
    store = grown(tmp_path / "s", 2)
    for step, number in ((120, 2), (0, 1), (9, 1)):
        commit = store.version(f"main:{number}").commit
        runs.refer(store.catalog, "r1", step, [commit], [{"seed": step}])
    found = runs.references(store.catalog, "r1")
    assert [(r.step, r.versions[0].number, r.streams[0]["seed"]) for r in found] == [
        (0, 1, 0),
        (9, 1, 9),
        (120, 2, 120),
    ]
    assert runs.runs(store.catalog) == ["r1"]


def test_collection_keeps_what_a_run_reads_until_it_is_forgotten(tmp_path: Path) -> None:
    store = grown(tmp_path / "s", 1)
    first = store.version("main:1")
    runs.refer(store.catalog, "r1", 0, [first.commit], [{}])
    store.append([episode("more")])
    store.compact(everything=True)
    store.expire(before=store.version().number)
    store.gc(NOW)
    store.gc(NOW)
    assert store.version("main:1").episode("e0").length == 20
    assert runs.forget(store.catalog, "r1") == 1
    store.gc(NOW)
    gone = store.gc(NOW).deleted
    assert gone
    with pytest.raises(NotFoundError, match="'r1'"):
        runs.references(store.catalog, "r1")


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    store = grown(tmp_path / "s", 1)
    runs.refer(store.catalog, "hopper-1", 0, [store.version().commit], [{}])
    with pytest.raises(NotFoundError, match="hopper-1"):
        runs.forget(store.catalog, "hoper-1")
    with pytest.raises(UsageError, match="run name"):
        runs.refer(store.catalog, "../up", 0, [store.version().commit], [{}])
    store.catalog.objects.put_if_absent(layout.run_reference("bad", 0), b"{}")
    with pytest.raises(DamagedStoreError, match="forget"):
        runs.references(store.catalog, "bad")
