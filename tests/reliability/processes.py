"""Processes that are killed and go on with the same command."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class Processes:
    """What was started, by its name; each writes a log of its name into a folder."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._folder, self._environment = folder, {**os.environ, **environment}
        self._commands: dict[str, list[str]] = {}
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *command: str) -> None:
        self._commands[name] = list(command)
        with (self._folder / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                [sys.executable, *command],
                stdout=log,
                stderr=log,
                env=self._environment,
                cwd=ROOT,
            )

    def kill(self, name: str) -> None:
        process = self._running[name]
        assert process.poll() is None, f"{name} ended by itself: {self.said(name)[-3000:]}"
        process.kill()
        assert process.wait(30) == -signal.SIGKILL
        self.start(name, *self._commands[name])

    def wait(self, name: str, seconds: float) -> int:
        return self._running[name].wait(seconds)

    def check(self) -> None:
        """Fails if one of them ended by itself, and not well."""
        for name, process in self._running.items():
            assert process.poll() in (None, 0), f"{name} ended: {self.said(name)[-3000:]}"

    def said(self, name: str) -> str:
        return (self._folder / f"{name}.log").read_text()

    def end(self) -> dict[str, int]:
        """Ends all, the server last: actors wait for what it acknowledges."""
        served = {name: one for name, one in self._running.items() if name != "server"}
        codes: dict[str, int] = {}
        for group in (served, self._running):
            for process in group.values():
                process.terminate()
            for name, process in group.items():
                try:
                    codes[name] = process.wait(60)
                except subprocess.TimeoutExpired:
                    process.kill()
                    codes[name] = process.wait()
        return codes


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def wait_until(is_so: Callable[[], bool], seconds: float, what: str) -> None:
    until = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < until, what
        time.sleep(0.1)
