"""Storage without conditional writes: refused, or used by one declared writer; read-only URLs."""

from __future__ import annotations

import functools
import http.server
import json
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import boto3
import fsspec
import pytest

from pipeline.cli.main import main
from pipeline.store import layout, writers
from pipeline.store.places import open_objects
from pipeline.store.store import open_store
from schemas.errors import ConditionalWritesError, NotFoundError, TransientError
from tests.episodes import episode, write_d4rl
from tests.store import servers
from tests.store.remote_fixtures import CREDENTIALS
from tests.store.test_remote_contract import ids


@dataclass(frozen=True)
class Careless:
    """A bucket of a server that takes the condition and ignores it."""

    folder: Path
    url: str

    @property
    def files(self) -> list[str]:
        """What is in the bucket."""
        return sorted(
            path.relative_to(self.folder).as_posix()
            for path in self.folder.rglob("*")
            if path.is_file()
        )


@pytest.fixture(scope="module")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    folder = tmp_path_factory.mktemp("rclone")
    with servers.rclone(folder) as url:
        if url is None:
            pytest.skip("no rclone binary here")
        yield url, folder / "buckets"


@pytest.fixture
def careless(rclone: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> Careless:
    endpoint, folder = rclone
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    name = f"b-{uuid.uuid4().hex}"
    boto3.client("s3").create_bucket(Bucket=name)
    return Careless(folder / name, f"s3://{name}/robots")


def test_the_server_does_ignore_the_condition(careless: Careless) -> None:
    """Without this the tests below would show nothing."""
    client = boto3.client("s3")
    for body in (b"first", b"second"):
        client.put_object(Bucket=careless.folder.name, Key="k", Body=body, IfNoneMatch="*")
    assert (careless.folder / "k").read_bytes() == b"second"


def test_a_server_that_ignores_conditions_is_refused_before_anything_is_written(
    careless: Careless,
) -> None:
    with pytest.raises(ConditionalWritesError, match=r"was ignored.*--single-writer") as caught:
        open_store(careless.url, create=True)
    assert caught.value.kind == "no_conditional_writes"
    assert caught.value.exit_code == 6
    with pytest.raises(ConditionalWritesError):
        open_objects(careless.url).put({"tails/x": b""})
    assert careless.files == []


def test_one_declared_writer_works_there_and_the_store_remembers(
    careless: Careless, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(careless.url, create=True, single_writer=True)
    store.append([episode("a", success=True), episode("b", success=False)])
    assert store.single_writer
    later = open_store(careless.url)  # another process, to which nothing was declared
    assert later.single_writer
    later.append([episode("b", success=False), episode("c", success=True)])
    assert "no other process may write" in caplog.text
    later.version().where("success").commit(branch="good", message="those that worked")
    later.tag("v1", "good")
    assert ids(open_store(careless.url), "v1") == ["a", "c"]
    assert not any(name.startswith(f"robots/{layout.PROBES}/") for name in careless.files)
    assert not writers._PROVEN & {open_objects(careless.url).place}  # type: ignore[attr-defined]


def test_the_command_line_says_so(
    careless: Careless, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = str(write_d4rl(tmp_path / "a.hdf5", [3, 4]))
    assert main(["ingest", source, "--into", careless.url]) == 6
    assert "--single-writer" in capfd.readouterr().err
    assert main(["ingest", source, "--into", careless.url, "--single-writer"]) == 0
    assert main(["ingest", source, "--into", careless.url]) == 0  # it is known by now
    capfd.readouterr()
    assert main(["show", careless.url, "--json"]) == 0
    shown = json.loads(capfd.readouterr().out)
    assert (shown["episodes"], shown["number"], shown["single_writer"]) == (2, 1, True)


def test_an_older_store_can_be_declared_later(careless: Careless) -> None:
    open_store(careless.url, create=True, single_writer=True).append([episode("a")])
    open_objects(careless.url).delete(layout.SINGLE_WRITER)  # as copied from elsewhere
    assert ids(open_store(careless.url)) == ["a"]
    with pytest.raises(ConditionalWritesError):
        open_store(careless.url).append([episode("b")])
    open_store(careless.url, single_writer=True)
    open_store(careless.url).append([episode("b")])
    assert ids(open_store(careless.url)) == ["a", "b"]


def test_a_declaration_where_none_is_needed_changes_nothing(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s", create=True, single_writer=True)
    store.append([episode("a")])
    assert not store.single_writer


# -- other URLs ----------------------------------------------------------------------------------


@pytest.fixture
def memory() -> Iterator[str]:
    name = f"/{uuid.uuid4().hex}"
    yield f"memory:/{name}"
    fs = fsspec.filesystem("memory")
    if fs.exists(name):
        fs.rm(name, recursive=True)


def test_memory_takes_one_declared_writer(memory: str) -> None:
    with pytest.raises(ConditionalWritesError, match="memory:// URLs have no exclusive creation"):
        open_store(memory, create=True)
    store = open_store(memory, create=True, single_writer=True)
    store.append([episode("a")])
    assert open_store(memory).append([episode("a"), episode("b")]).number == 2
    store.tag("v1")
    store.branch("try", "v1")
    again = open_store(memory)
    assert ids(again, "v1") == ["a", "b"]
    assert sorted(again.branches()) == ["main", "try"]
    assert list(again.tags()) == ["v1"]
    again.delete_tag("v1")
    assert open_store(memory).tags() == {}
    objects = again.catalog.objects
    made = {entry.key: entry for entry in objects.entries("tails")}
    assert len(made) == 2
    assert all(entry.modified <= objects.now() for entry in made.values())
    assert all(entry.bytes == len(objects.read(key)) for key, entry in made.items())


@pytest.fixture
def website(tmp_path: Path) -> Iterator[str]:
    store = open_store(tmp_path / "robots", create=True)
    store.append([episode("a"), episode("b")])
    store.tag("v1")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def send_head(self) -> object:  # type: ignore[override]
            if "/secret/" in self.path:
                self.send_error(403)
                return None
            return super().send_head()

    handler = functools.partial(Quiet, directory=str(tmp_path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_store_on_a_web_server_can_be_read(website: str) -> None:
    store = open_store(f"{website}/robots")
    assert ids(store) == ["a", "b"]
    assert ids(store, "v1") == ["a", "b"]
    assert len(store.version().field("rewards").compute()) == 40
    with pytest.raises(NotFoundError):
        open_store(f"{website}/nothing")
    with pytest.raises(ConditionalWritesError):
        store.append([episode("c")])
    with pytest.raises(TransientError, match="403"):  # not: "there is no such store"
        open_store(f"{website}/secret/robots")
