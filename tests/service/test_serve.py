"""`penstock serve` as a real process: from ready to a graceful end, and what it refuses."""

from __future__ import annotations

import ctypes
import json
import signal
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import pytest

from pipeline.cli.main import main
from pipeline.service.client.client import RolloutClient
from pipeline.store.store import open_store
from schemas.identity import digest
from tests.service.killed_servers import free_port
from tests.service.ports import episode
from tests.service.servers import ARGUMENTS, serving


def children(pid: int) -> list[str]:
    return [
        place.name
        for place in Path("/proc").iterdir()
        if place.name.isdigit() and parent_of(place / "stat") == pid
    ]


def parent_of(stat: Path) -> int:
    try:
        return int(stat.read_text().rpartition(")")[2].split()[1])
    except OSError:
        return -1


def test_from_ready_to_the_end(tmp_path: Path) -> None:
    """Pushed, acknowledged, sealed into a version; the end leaves nothing undone."""
    store = tmp_path / "store"
    with serving(store, "--seal-every", "200ms") as server:
        assert server.token_file == str(store / "wal" / "token")
        assert Path(server.token_file).stat().st_mode & 0o777 == 0o600
        with server.client(ack="store") as client:
            offset = client.push(episode("e0"))
        assert open_store(store).version().episode("e0").length == 12
        with server.client() as client:
            assert client.push(episode("e1")) > offset
            with urllib.request.urlopen(f"{server.control}/readyz") as answer:
                assert json.load(answer)
            assert children(server.process.pid) == []
            assert server.end() == 0
    found = open_store(store).version()
    assert found.episodes()["episode_id"].to_pylist() == ["e0", "e1"]
    assert digest(found.episode("e1")) == digest(episode("e1"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_end_amid_pushes_loses_nothing(number: int, tmp_path: Path) -> None:
    """What was acknowledged is sealed; what was not is sent to the next server."""
    store, port = tmp_path / "store", ("--port", str(free_port()))
    acked: list[str] = []
    has_some, is_over = threading.Event(), threading.Event()

    def push(client: RolloutClient) -> None:
        while not is_over.is_set():
            client.push(episode(f"e{len(acked)}", length=30))
            acked.append(f"e{len(acked)}")
            if len(acked) == 20:
                has_some.set()

    with serving(store, *port) as first, first.client(put_bytes=600) as client:
        thread = threading.Thread(target=push, args=(client,))
        thread.start()
        assert has_some.wait(60)
        assert first.end(number) == 0
        told = list(acked)
        found = open_store(store).version().episodes()["episode_id"].to_pylist()
        assert found[: len(told)] == told
        assert len(found) <= len(told) + 1
        with serving(store, *port) as second:
            is_over.set()
            thread.join()
            assert second.end() == 0
    assert len(acked) > len(told)
    assert open_store(store).version().episodes()["episode_id"].to_pylist() == acked


def test_a_signal_that_another_thread_gets_ends_it_too(tmp_path: Path) -> None:
    """The kernel may hand a process's signal to any thread; Python heeds it in the main one."""
    with serving(tmp_path / "store") as server:
        pid = server.process.pid
        other = max(int(place.name) for place in Path(f"/proc/{pid}/task").iterdir())
        assert other != pid
        assert ctypes.CDLL(None).tgkill(pid, other, signal.SIGTERM) == 0
        assert server.process.wait(60) == 0


def test_a_start_after_a_kill_goes_on(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with serving(store, "--seal-every", "1h") as first:
        with first.client() as client:
            client.push(episode("e0"))
        first.end(signal.SIGKILL)
    with serving(store, "--seal-every", "1h") as second:
        with second.client() as client:
            assert [one.episode.episode_id for one in client.tail()] == ["e0"]
        assert second.end() == 0
    assert open_store(store).version().episodes()["episode_id"].to_pylist() == ["e0"]


def test_two_servers_share_nothing(tmp_path: Path) -> None:
    """Neither a log nor a port: each is told with its exit code and one sentence."""
    store = tmp_path / "store"

    def run(*arguments: str) -> tuple[int, dict[str, str]]:
        command = [sys.executable, "-m", "penstock", "serve", *ARGUMENTS, *arguments, "--json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
        assert "Traceback" not in done.stderr
        return done.returncode, json.loads(done.stdout)["error"]

    with serving(store) as server:
        code, error = run(str(store))
        assert (code, error["kind"]) == (4, "lock_held")
        port = server.data.rpartition(":")[2]
        code, error = run(str(store), "--wal", str(tmp_path / "w"), "--port", port)
        assert (code, error["kind"]) == (2, "usage")


@pytest.mark.parametrize(
    ("arguments", "kind", "says"),
    [
        (("--host", "0.0.0.0"), "bad_config", "--tls-cert"),
        (("--seal-every", "soon"), "usage", "500ms"),
        (("--tls-cert", "no-file"), "bad_config", "--tls-key"),
    ],
)
def test_what_is_wrong_is_said(
    arguments: tuple[str, ...],
    kind: str,
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["serve", str(tmp_path / "s"), *arguments, "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["kind"] == kind
    assert says in error["message"]
    assert not (tmp_path / "s").exists()


def test_a_reference_is_no_part_of_a_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No other command could name such a store: `STORE@main` is a version of `STORE`."""
    assert main(["serve", str(tmp_path / "s@main"), *ARGUMENTS, "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert (error["kind"], list(tmp_path.iterdir())) == ("usage", [])
    assert "--branch" in error["message"]


def test_a_store_behind_a_url_needs_a_log_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "s3://bucket/store", "--json"]) == 2
    assert "--wal" in json.loads(capsys.readouterr().out)["error"]["message"]
