"""A store that a learner reaches through its service alone: the same versions and batches."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.service.client.objects import ServiceObjects
from pipeline.store import runs
from pipeline.store.store import Store, open_store
from pipeline.stream.loader import Stream
from schemas.errors import (
    AccessDeniedError,
    ForbiddenError,
    NotFoundError,
    PenstockError,
    TransientError,
    UnauthenticatedError,
    UntrustedError,
    UsageError,
)
from schemas.identity import digest
from tests.service.ports import episode
from tests.service.servers import Server, serving

SETTINGS: dict[str, Any] = {"batch_size": 16, "seed": 3, "framework": "numpy"}


def filled(place: Path, count: int = 12) -> Store:
    store = open_store(place, create=True)
    store.append(episode(f"e{k}", length=20 + k) for k in range(count))
    return store


def behind(server: Server, **options: Any) -> Store:
    return open_store(server.data, storage_options={"token": server.token, **options})


def batches(stream: Stream, count: int = 5) -> list[dict[str, np.ndarray]]:
    found = iter(stream)
    return [{name: np.array(rows) for name, rows in next(found).items()} for _ in range(count)]


def assert_same(one: list[dict[str, np.ndarray]], two: list[dict[str, np.ndarray]]) -> None:
    for mine, other in zip(one, two, strict=True):
        assert mine.keys() == other.keys()
        for name, rows in mine.items():
            np.testing.assert_array_equal(rows, other[name])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, Server]]:
    folder = tmp_path_factory.mktemp("served")
    store = filled(folder / "store")
    with serving(folder / "store", "--seal-every", "200ms") as server:
        yield store, server


def test_versions_and_episodes_are_the_same(served: tuple[Store, Server]) -> None:
    store, server = served
    store.tag("begun", "main:1")
    found = behind(server)
    assert (found.id, found.url) == (store.id, server.data)
    assert found.version("begun").id == found.version("main:1").id == store.version("main:1").id
    masks = [one.version("begun").where("length > 25").mask for one in (found, store)]
    assert masks[0].sum() == 6
    np.testing.assert_array_equal(*masks)
    assert digest(found.version("begun").episode("e3")) == digest(episode("e3", length=23))
    with pytest.raises(NotFoundError):
        found.version("nothing")


def test_batches_are_those_of_a_learner_that_reads_the_store(
    served: tuple[Store, Server], tmp_path: Path
) -> None:
    """In a process of its own, elsewhere, that is told the address and a token alone."""
    store, server = served
    code = f"""
import json, sys
import numpy as np
from pipeline.store.store import open_version
from pipeline.stream.loader import Stream

version = open_version({server.data!r} + "@main:1")
stream = Stream(version, cache_dir="cache", run="far", **{SETTINGS!r})
found = iter(stream)
for number in range(5):
    np.savez(f"{{number}}.npz", **next(found))
"""
    root = str(Path(__file__).resolve().parents[2])
    told = {"PENSTOCK_TOKEN": server.token or "", "PYTHONPATH": root}
    subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, **told}, check=True
    )
    far = [dict(np.load(tmp_path / f"{number}.npz")) for number in range(5)]
    near = Stream(store.version("main:1"), cache_dir=tmp_path / "near", run="near", **SETTINGS)
    assert_same(far, batches(near))
    (said,), (mine,) = (runs.references(store.catalog, run) for run in ("far", "near"))
    assert said.model_copy(update={"run": "near", "created_at": mine.created_at}) == mine


def test_what_is_pushed_is_followed(served: tuple[Store, Server], tmp_path: Path) -> None:
    """A stream over the service reads what came, as one over the store does."""
    store, server = served
    with server.client(ack="store") as client:
        client.push(episode("pushed", length=33))
    found = behind(server).version()
    assert found.id == store.version().id
    assert digest(found.episode("pushed")) == digest(episode("pushed", length=33))
    far = Stream(found, cache_dir=tmp_path / "far", **SETTINGS)
    near = Stream(store.version(), cache_dir=tmp_path / "near", **SETTINGS)
    assert_same(batches(far), batches(near))


def test_nothing_but_the_store_can_be_read_and_nothing_changed(
    served: tuple[Store, Server],
) -> None:
    """The log and the tokens lie in the same folder, and stay unread."""
    store, server = served
    root = Path(store.url)
    assert (root / "wal" / "token").exists()
    objects = ServiceObjects(server.data, {"token": server.token})
    assert objects.exists("penstock.json")
    hidden = ["wal/token", "wal", "shards/../wal/token", "/etc/passwd", "shards//x", ".", "refs"]
    for key in hidden:
        assert not objects.exists(key)
        assert list(objects.names("refs/branches")) == ["main"]
        with pytest.raises(FileNotFoundError):
            objects.read(key)
        with pytest.raises(NotFoundError):
            list(objects.names(key))
    found = behind(server)
    before = {place for place in root.rglob("*") if "wal" not in place.parts}
    for change in (
        lambda: found.append([episode("more")]),
        lambda: found.tag("mine", "main:1"),
        lambda: found.delete_tag("begun"),
        lambda: found.erase(["e0"]),
        lambda: found.remove("length > 1"),
        lambda: found.gc(),
        lambda: runs.forget(found.catalog, "near"),
    ):
        with pytest.raises((AccessDeniedError, NotFoundError)):
            change()
    assert {place for place in root.rglob("*") if "wal" not in place.parts} == before
    with pytest.raises(UsageError, match="token"):
        open_store(server.data, storage_options={"key": "1"})


def test_who_may_not_pull_reads_nothing(served: tuple[Store, Server], tmp_path: Path) -> None:
    store, server = served
    with pytest.raises(UnauthenticatedError):
        open_store(server.data, storage_options={"token": "no"})
    make = [sys.executable, "-m", "penstock", "token", "create", store.url]
    make += ["--name", "actor", "--scopes", "push"]
    token = subprocess.run(make, check=True, capture_output=True, text=True).stdout.split()[-1]
    with pytest.raises(ForbiddenError):
        open_store(server.data, storage_options={"token": token})


def test_damage_is_not_learned_from(tmp_path: Path) -> None:
    """A file that differs from its checksum is refused, at whichever end it came to differ."""
    store = filled(tmp_path / "store")
    version = store.version()
    (block,) = [block for part in version.state.parts for block in part.blocks]
    place = tmp_path / "store" / block.file.key
    whole = place.read_bytes()
    with serving(tmp_path / "store") as server:
        place.write_bytes(whole[:-9] + bytes(9))
        with pytest.raises(UntrustedError):
            batches(Stream(behind(server).version(), cache_dir=tmp_path / "cache", **SETTINGS))
        place.write_bytes(whole)
        found = batches(Stream(behind(server).version(), cache_dir=tmp_path / "cache", **SETTINGS))
    assert_same(found, batches(Stream(version, cache_dir=tmp_path / "near", **SETTINGS)))


def test_what_was_erased_is_gone_there_too(tmp_path: Path) -> None:
    store = filled(tmp_path / "store")
    with serving(tmp_path / "store") as server:
        far = behind(server)
        stream = Stream(far.version(), cache_dir=tmp_path / "cache", **SETTINGS)
        batches(stream)
        store.erase(["e3"])
        store.gc(erase=True)
        again = behind(server)
        with pytest.raises(PenstockError):
            again.version().episode("e3")
        left = Stream(again.version(), cache_dir=tmp_path / "cache", **SETTINGS)
        near = Stream(store.version(), cache_dir=tmp_path / "near", **SETTINGS)
        assert_same(batches(left), batches(near))


def test_a_service_that_comes_back_is_waited_for(tmp_path: Path) -> None:
    store = filled(tmp_path / "store")
    with serving(tmp_path / "store") as first:
        port = first.data.rpartition(":")[2]
        far = behind(first, retry_seconds=60)
        short = behind(first, retry_seconds=0.2)
        first.end(signal.SIGKILL)
        with pytest.raises(TransientError):
            short.version()
    with serving(tmp_path / "store", "--port", port):
        assert far.version().episode("e1").length == store.version().episode("e1").length == 21


def test_a_learner_that_was_killed_begins_again(tmp_path: Path) -> None:
    """Its cache was half filled, at some moment or other; what it draws then is as ever."""
    store = filled(tmp_path / "store", 200)
    code = """
import sys
from pipeline.store.store import open_version
from pipeline.stream.loader import Stream

stream = Stream(open_version(sys.argv[1]), cache_dir="cache", batch_size=16, seed=3,
                progress=lambda *_: print("packed", flush=True))
next(iter(stream))
print("done", flush=True)
"""
    root = str(Path(__file__).resolve().parents[2])
    with serving(tmp_path / "store") as server:
        told = {**os.environ, "PENSTOCK_TOKEN": server.token or "", "PYTHONPATH": root}
        for _ in range(3):
            process = subprocess.Popen(
                [sys.executable, "-c", code, server.data],
                cwd=tmp_path,
                env=told,
                stdout=subprocess.PIPE,
                text=True,
            )
            assert process.stdout is not None
            process.stdout.readline()
            process.kill()
            process.wait(60)
            process.stdout.close()
        far = batches(Stream(behind(server).version(), cache_dir=tmp_path / "cache", **SETTINGS))
    assert_same(far, batches(Stream(store.version(), cache_dir=tmp_path / "near", **SETTINGS)))
