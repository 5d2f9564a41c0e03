"""What a client promises before anything is sent, step by step, and over TLS."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.service.client.client import RolloutClient
from pipeline.service.client.lane import _Stream
from pipeline.service.flight import data_port
from schemas.errors import (
    BusyError,
    EpisodeError,
    NotFoundError,
    OutOfTimeError,
    PenstockError,
    UsageError,
)
from schemas.rollouts import PutHeader
from tests.service.ports import episode, service_in
from tests.service.servers import serving

NOBODY = "grpc://127.0.0.1:1"
STEP = {"observation": np.zeros(3, np.float32), "action": np.zeros(2, np.float32), "reward": 1.0}


def test_a_full_buffer_is_told() -> None:
    small = {"buffer_bytes": 2000, "put_bytes": 1000}
    client = RolloutClient(NOBODY, **small, retry_seconds=None)
    client.push_async(episode("kept"))
    with pytest.raises(BusyError, match="raise buffer_bytes"):
        client.push_async(episode("waits", length=60), timeout=0.05)
    with pytest.raises(OutOfTimeError):
        client.close(0.05)
    client = RolloutClient(NOBODY, **small, retry_seconds=0.5)
    kept = client.push_async(episode("kept"))
    with pytest.raises(OutOfTimeError):  # nobody ever answers; then its room is free again
        kept.result(30)
    with client.episode("open") as going:  # noqa: SIM117
        with pytest.raises(BusyError, match="until an open episode ends"):  # noqa: PT012
            for _ in range(1000):
                going.add(**STEP)
    with pytest.raises(PenstockError):
        client.close(5)


def test_who_waits_when_a_client_is_closed_is_told() -> None:
    """Nobody sends any more what is still kept, so nobody is left waiting for it."""
    client = RolloutClient(NOBODY, retry_seconds=None)
    kept = client.push_async(episode("kept"))
    told: list[PenstockError] = []

    def wait() -> None:
        with pytest.raises(OutOfTimeError, match="was closed before") as caught:
            client.push(episode("waits"))
        told.append(caught.value)

    thread = threading.Thread(target=wait)
    thread.start()
    with client.episode("open") as going:
        going.add(**STEP)
        while len(client._all()[0].outbox.episodes) < 2:
            time.sleep(0.01)
        with pytest.raises(OutOfTimeError, match=r"acknowledged within 0\.05 s"):
            client.close(0.05)
        with pytest.raises(OutOfTimeError, match="was closed before"):
            kept.result(30)
        thread.join(30)
        assert len(told) == 1
        for call in (lambda: client.push(episode("late")), lambda: going.end(terminated=True)):
            with pytest.raises(PenstockError):
                call()


def test_who_pushes_writes_where_nothing_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not what is large, nor what others are before; an interrupt there loses nothing."""
    write, by_me, breaks = _Stream.write, list[bool](), list[bool]()

    def spied(stream: _Stream, rows: pa.RecordBatch, header: PutHeader) -> None:
        by_me.append(threading.current_thread() is threading.main_thread())
        if by_me[-1] and breaks:
            breaks.clear()
            raise KeyboardInterrupt
        write(stream, rows, header)

    monkeypatch.setattr(_Stream, "write", spied)
    pushed: list[str] = []

    def push(client: RolloutClient, name: str, length: int = 5) -> None:
        pushed.append(name)
        client.push(episode(name, length=length))

    with (
        service_in(tmp_path, is_filled=False, no_token=True, port=0) as port,
        data_port(port.state) as (_, url),
        RolloutClient(url, backoff_seconds=0.01) as client,
    ):
        while True not in by_me:
            push(client, f"one-{len(pushed)}")
        breaks.append(True)
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012
            while True:
                push(client, f"broken-{len(pushed)}")
        client.flush(30)
        by_me.clear()
        push(client, "large", length=2000)
        assert by_me == [False]
        names = [[f"{thread}-{k}" for k in range(10)] for thread in range(4)]
        work = [threading.Thread(target=lambda o=o: [push(client, n) for n in o]) for o in names]
        for thread in work:
            thread.start()
        for thread in work:
            thread.join()
        assert sorted(one.episode.episode_id for one in client.tail()) == sorted(pushed)


def test_steps_that_are_none(tmp_path: Path) -> None:
    with (
        service_in(tmp_path, is_filled=False, no_token=True, port=0) as port,
        data_port(port.state) as (_, url),
    ):
        with RolloutClient(url) as client:
            with client.episode("dropped") as going, pytest.raises(UsageError):
                going.end()
            with client.episode("late") as going:
                going.add(**STEP)
                ended = going.end(STEP["observation"], terminated=True)
                for call in (lambda: going.add(**STEP), lambda: going.end()):
                    with pytest.raises(UsageError):
                        call()
            assert ended.result(30) >= 0
            others = {
                "another shape": {**STEP, "observation": np.zeros(4, np.float32)},
                "no reward": {**STEP, "reward": None},
                "an extra": {**STEP, "noise": 1.0},
            }
            for name, other in others.items():
                with client.episode(name) as going:
                    going.add(**STEP)
                    going.add(**other)
                    with pytest.raises(EpisodeError):
                        going.end(STEP["observation"])
            with (  # noqa: PT012
                pytest.raises(ZeroDivisionError),
                client.episode("raised") as going,
            ):
                going.add(**STEP)
                raise ZeroDivisionError
            found = {one.episode.episode_id: one.episode.length for one in client.tail()}
        assert found == {"late": 1}


def test_a_pull_over_a_connection_that_broke_while_idle(tmp_path: Path) -> None:
    """A service that was started again at its address is not noticed."""
    with service_in(tmp_path, no_token=True, port=0) as port:
        with data_port(port.state) as (_, url):
            client = RolloutClient(url)
            client.push(episode("first"))
            assert len(list(client.tail())) == 1
        config = port.state.config.model_copy(update={"port": int(url.rpartition(":")[2])})
        state = dataclasses.replace(port.state, config=config)
        with data_port(state) as (_, again):
            assert again == url
            assert len(list(client.tail())) == 1
            client.close()


def test_small_pulls_share_a_stream(tmp_path: Path) -> None:
    """What goes wrong with one is told, and the next one goes over the same stream."""
    with (
        service_in(tmp_path, no_token=True, port=0) as port,
        data_port(port.state) as (_, url),
        RolloutClient(url) as client,
    ):
        offset = client.push(episode("first"))
        idle = client._pulls._connections
        assert [one.offset for one in client.tail()] == [offset]
        (first,) = idle._idle
        stream = first.stream
        assert stream is not None
        with pytest.raises(OutOfTimeError, match="durable"):
            list(client.tail(min_offset=offset + 1, wait_seconds=0.01))
        with pytest.raises(NotFoundError):
            client.pull_episode("none")
        assert [one.offset for one in client.tail(after=offset - 1)] == [offset]
        assert [one.stream for one in idle._idle] == [stream]
        next(client.tail())  # its one message has come
        assert [one.stream for one in idle._idle] == [stream]
        large = [client.push(episode(f"large{k}", length=60_000)) for k in range(2)]
        next(client.tail())  # left before its end: nobody gets the rest of it
        assert [one.offset for one in client.tail()] == [offset, *large]
        (other,) = idle._idle
        assert other is not first
        while other.stream is not None:  # it holds a thread of the service for a moment only
            time.sleep(0.01)
        assert [one.offset for one in client.tail()] == [offset, *large]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_the_data_port_over_tls(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
    make += ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    make += ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(make, check=True, capture_output=True)
    key.chmod(0o600)
    tls = ("--tls-cert", str(certificate), "--tls-key", str(key))
    with serving(tmp_path / "store", *tls) as server:
        assert server.data.startswith("grpc+tls://")
        with server.client(tls_root_certs=certificate) as client:
            client.push(episode("sealed from eyes"))
            assert [one.episode.episode_id for one in client.tail()] == ["sealed from eyes"]
        quick = {"retry_seconds": 0.5, "backoff_seconds": 0.05, "max_backoff_seconds": 0.1}
        plain = RolloutClient(server.data.replace("+tls", ""), server.token, **quick)
        for other in (plain, server.client(**quick)):  # no TLS; an authority that nobody knows
            with pytest.raises(OutOfTimeError):
                other.push(episode("refused"))
            other.close()
        assert server.end() == 0
