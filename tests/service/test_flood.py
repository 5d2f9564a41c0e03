"""Idle streams up to the cap and a flood of malformed bytes, while healthy actors push."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.flight as fl
import pytest

from pipeline.service.client.control import ControlClient
from pipeline.service.token_book import TokenBook, TokenRequest
from pipeline.store.store import open_store
from schemas.errors import OutOfTimeError
from schemas.pulls import PutStream
from tests.reliability.figures import tell
from tests.service.flood import flood
from tests.service.ports import episode
from tests.service.servers import Server, serving

IS_LONG = os.environ.get("PENSTOCK_LONG") == "1"
IDLE, CAP, SECONDS = (1000, 1010, 30.0) if IS_LONG else (30, 40, 2.0)
HEALTHY = 2
BUSY_BYTES = 400 << 20
"""What the server may take more than before; a stream takes two threads."""
_SCHEMA = pa.schema({"x": pa.int64()})


def rss(server: Server) -> int:
    lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS"))


class Idle:
    """Streams that are opened and then say nothing."""

    def __init__(self, server: Server, token: str) -> None:
        self._options = fl.FlightCallOptions(
            headers=[(b"authorization", f"Bearer {token}".encode())]
        )
        self._server = server
        self._clients: list[fl.FlightClient] = []
        self._writers: list[fl.FlightStreamWriter] = []

    def open(self, count: int) -> None:
        for number in range(count):
            if number % 50 == 0:
                options = [("grpc.use_local_subchannel_pool", 1)]
                self._clients.append(fl.FlightClient(self._server.data, generic_options=options))
            descriptor = fl.FlightDescriptor.for_command(PutStream().encoded())
            writer, _ = self._clients[-1].do_put(descriptor, _SCHEMA, self._options)
            self._writers.append(writer)

    def refused(self) -> list[str]:
        """Ends all of them; returns the kinds of error of those that had been refused."""
        kinds = []
        for writer in self._writers:
            try:
                writer.close()
            except (pa.ArrowException, OSError) as error:
                kinds.append(json.loads(error.extra_info)["kind"])
        for client in self._clients:
            client.close()
        return kinds


@contextlib.contextmanager
def pushing(server: Server, waits: list[float], name: str) -> Iterator[list[str]]:
    """Two healthy actors that push one episode after the other while the context lasts."""
    over = threading.Event()
    acked: list[str] = []

    def act(which: int) -> None:
        with server.client(producer=f"{name}-{which}") as client:
            number = 0
            while not over.is_set():
                begun = time.perf_counter()
                client.push(episode(f"{name}-{which}-{number}"))
                waits.append(time.perf_counter() - begun)
                acked.append(f"{name}-{which}-{number}")
                number += 1

    threads = [threading.Thread(target=act, args=(which,)) for which in range(HEALTHY)]
    for thread in threads:
        thread.start()
    try:
        yield acked
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_idle_streams_and_a_flood(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with serving(store, "--max-streams", str(CAP)) as server:
        quiet: list[float] = []
        with pushing(server, quiet, "quiet") as first:
            time.sleep(SECONDS)
        book = TokenBook(store / "wal" / "token.book")
        idle_token = book.create(TokenRequest(name="idle", scopes=("push",)))[1]
        before = rss(server)
        idle = Idle(server, idle_token)
        ports = tuple(urlsplit(one).port or 0 for one in (server.data, server.control))
        loud: list[float] = []
        with pushing(server, [], "between") as between:
            idle.open(IDLE)
        with flood(ports) as thrown, pushing(server, loud, "loud") as second:
            time.sleep(SECONDS)
            held = rss(server) - before
        assert server.process.poll() is None
        assert sum(thrown) > 20
        assert held < BUSY_BYTES
        assert idle.refused() == []
        assert server.end() == 0
    found = set(open_store(store).version().episodes()["episode_id"].to_pylist())
    assert found == {*first, *between, *second}
    tell("flood", idle=IDLE, thrown=sum(thrown), mib=held / 2**20, quiet_p99_ms=p99(quiet),
         loud_p99_ms=p99(loud), quiet=len(quiet), loud=len(loud))  # fmt: skip
    if IS_LONG:
        assert p99(loud) < 5 * p99(quiet)


def test_streams_beyond_the_cap_are_refused_by_kind(tmp_path: Path) -> None:
    with serving(tmp_path / "store", "--max-streams", "10") as server:
        assert server.token is not None
        with server.client(producer="healthy") as client:
            client.push(episode("before"))
            idle = Idle(server, server.token)
            idle.open(25)
            control = ControlClient(server.control, server.token)
            while control.status()["open_streams"] < 10:
                time.sleep(0.05)
            client.push(episode("between"))
            told = pytest.raises(OutOfTimeError, match="at most 10 open streams")
            with told, server.client(retry_seconds=3.0) as late:
                late.push(episode("late"))
            assert idle.refused() == ["busy"] * 16
            with server.client() as later:
                later.push(episode("late"))
        assert server.end() == 0


def p99(waits: list[float]) -> float:
    return round(float(np.quantile(waits, 0.99)) * 1e3, 2)
