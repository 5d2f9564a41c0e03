"""Erased episodes leave the caches of a machine when their store is opened next."""

from __future__ import annotations

import gc
import json
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from pipeline.cli.main import app
from pipeline.store.store import Store, open_store
from pipeline.stream.eviction import caches
from pipeline.stream.forgetting import forget_erased
from pipeline.stream.loader import Stream
from tests.stream.conftest import made_episodes

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def store(store: Store) -> Store:
    """A store of three blocks; e35 lies in the second."""
    store.append(made_episodes(range(30, 40)))
    store.append(made_episodes(range(40, 50)))
    return store


def stream(store: Store, **settings: Any) -> Stream:
    return Stream(open_store(store.url).version(), framework="numpy", **settings)


def erase(store: Store, *names: str) -> None:
    store.erase(names)
    store.gc(erase=True)


def holds(cache_dir: Path, number: int) -> bool:
    """Whether any file below still has the observations of an episode."""
    row = np.array([1000 * number, -1000 * number, 500 * number], np.float32).tobytes()
    return any(row in file.read_bytes() for file in cache_dir.rglob("*") if file.is_file())


def drawn(one: Stream, batches: int = 20) -> list[np.ndarray]:
    return [next(one)["observations"] for _ in range(batches)]


def told(progress: list[int]) -> Callable[[int, int], None]:
    return lambda _done, of: progress.append(of)


def test_their_rows_go_and_nothing_else_is_packed_again(store: Store, cache_dir: Path) -> None:
    stream(store)
    stream(store, fields=["observations"])
    assert holds(cache_dir, 35)
    erase(store, "e35")
    assert holds(cache_dir, 35)  # nobody has opened the store yet
    packed: list[int] = []
    after = stream(store, progress=told(packed))
    assert not holds(cache_dir, 35)  # nor in the cache of other fields
    assert holds(cache_dir, 36)
    assert holds(cache_dir, 3)
    assert packed == [1]
    fresh = stream(store, cache_dir=cache_dir.with_name("fresh"))
    for mine, theirs in zip(drawn(after), drawn(fresh), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    stream(store, progress=told(packed))
    assert packed == [1]
    listed = CliRunner().invoke(app, ["cache", "list", "--json"])
    assert [one["blocks_erased"] for one in json.loads(listed.stdout)["caches"]] == [1, 1]


def test_episodes_that_go_one_after_the_other(store: Store, cache_dir: Path) -> None:
    stream(store)
    for number in (35, 36, 3):
        erase(store, f"e{number}")
        stream(store)
        assert not holds(cache_dir, number)
    assert [one.erased for one in caches(cache_dir)] == [3]


def test_who_maps_the_old_file_keeps_its_rows(store: Store, cache_dir: Path) -> None:
    reading, beside = stream(store), stream(store)
    erase(store, "e35")
    stream(store)
    assert not holds(cache_dir, 35)
    for mine, theirs in zip(drawn(reading), drawn(beside), strict=True):
        np.testing.assert_array_equal(mine, theirs)
        assert np.isfinite(mine).all()
    del reading, beside
    gc.collect()
    assert [one.in_use for one in caches(cache_dir)] == [False]


def test_caches_that_do_not_say_their_files_are_looked_through(
    store: Store, cache_dir: Path
) -> None:
    stream(store)
    (index,) = cache_dir.glob("*/*/index.json")
    document = json.loads(index.read_text())
    document["blocks"] = {name: entry[:3] for name, entry in document["blocks"].items()}
    del document["erased"]
    index.write_text(json.dumps(document))
    assert stream(store).transitions > 0
    erase(store, "e35")
    stream(store)
    assert not holds(cache_dir, 35)


@pytest.mark.parametrize("at", ["sync_folder", "write_index"])
def test_a_process_that_dies_meanwhile_leaves_a_cache_that_is_made_whole(
    store: Store, cache_dir: Path, at: str
) -> None:
    stream(store)
    erase(store, "e35")
    code = (
        "import os, sys; from pipeline.stream import forgetting\n"
        f"setattr(forgetting, {at!r}, lambda *_: os._exit(9))\n"
        "from pipeline.stream.loader import Stream; Stream(sys.argv[1], framework='numpy')"
    )
    died = subprocess.run([sys.executable, "-c", code, store.url], cwd=ROOT, check=False)
    assert died.returncode == 9
    after = stream(store)
    assert not holds(cache_dir, 35)
    fresh = stream(store, cache_dir=cache_dir.with_name("fresh"))
    for mine, theirs in zip(drawn(after), drawn(fresh), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_without_room_for_both_files_all_is_packed_again(store: Store, cache_dir: Path) -> None:
    stream(store)
    erase(store, "e35")
    (folder,) = cache_dir.glob("*/*")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, hard))
    try:
        rewritten = open_store(store.url).catalog.erasures.refresh().rewrites
        assert forget_erased(folder.parent, rewritten.keys()) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert not holds(cache_dir, 35)
    packed: list[int] = []
    stream(store, progress=told(packed))
    assert packed == [3, 3, 3]
