"""Real server processes for tests: started as people start them, and spoken to over their ports."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.service.client.client import RolloutClient

ARGUMENTS = ("--port", "0", "--http-port", "0", "--disk-reserve-bytes", "0B")


@dataclass
class Server:
    """One process of `penstock serve`."""

    process: subprocess.Popen[str]
    data: str
    control: str
    token_file: str | None

    @property
    def token(self) -> str | None:
        return Path(self.token_file).read_text().strip() if self.token_file else None

    def client(self, **settings: object) -> RolloutClient:
        return RolloutClient(self.data, self.token, **settings)

    def end(self, number: int = signal.SIGTERM, timeout: float = 60) -> int:
        """Sends a signal; returns the exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout)


def start(store: Path, *arguments: str, environment: dict[str, str] | None = None) -> Server:
    """Starts a server and waits until it is ready."""
    command = [sys.executable, "-m", "penstock", "serve", str(store), *ARGUMENTS, *arguments]
    with (store.parent / "server.log").open("a") as log:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, **(environment or {})},
        )
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        process.wait(60)
        process.stdout.close()
        raise AssertionError((store.parent / "server.log").read_text())
    return Server(process, **json.loads(line))


@contextlib.contextmanager
def serving(store: Path, *arguments: str, **more: dict[str, str]) -> Iterator[Server]:
    """A server while the context lasts."""
    server = start(store, *arguments, **more)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
        server.process.wait(60)
        assert server.process.stdout is not None
        server.process.stdout.close()
