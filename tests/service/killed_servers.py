"""Server processes that tests kill, quick to start: importable without the tests."""

from __future__ import annotations

import contextlib
import random
import socket
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pipeline.jobs.summary import describe
from pipeline.service.config import service_config
from pipeline.service.serve import serve
from pipeline.store.store import open_store

PRELOAD = ["tests.service.killed_servers"]


def serve_in(root: str, wal: str, settings: dict[str, Any], told: Connection) -> None:
    """Serves `root/store` over the log `root/wal`; says when it is ready."""
    given = {"wal": Path(root) / wal, "seal_every": 0.1, "disk_reserve_bytes": 0, "no_token": True}
    config = service_config({**given, "http_port": 0, **settings})
    serve(open_store(Path(root) / "store", create=True), config, describe, told.send)


def free_port() -> int:
    """Returns a port that was free a moment ago, and that no client is ever given as its own."""
    for port in random.sample(range(20_000, 30_000), 100):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise OSError("no free port")
