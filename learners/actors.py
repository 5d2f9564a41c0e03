"""Actors as processes of their own: started, watched, and ended by whoever learns from them.

Each is `penstock actor` with the other end of its standard input in our hands, so that it ends with
us however we end. One that died is started again, later each time; one that was given something
wrong ends us, too.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import IO

from schemas.errors import TransientError, UsageError

logger = logging.getLogger(__name__)
USAGE = 2
END_SECONDS = 20.0
MAX_PAUSE = 30.0
STEADY_SECONDS = 60.0
"""An actor that lived so long is started again at once."""


@dataclass
class _Process:
    number: int
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    began: float = field(default_factory=time.monotonic)
    failures: int = 0

    def said(self) -> str:
        """Returns the last line of what it said."""
        self.log.seek(0)
        lines = self.log.read()[-2000:].decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else "nothing"


class Actors:
    """Some actor processes of this machine.

    Args:
        arguments: of `penstock actor`, all but the seed.
        count: how many.
        token: of the service, if it wants one; handed over in the environment.
        seed: of the first; the others' follow.
    """

    def __init__(
        self, arguments: Sequence[str], count: int, token: str | None, seed: int = 0
    ) -> None:
        self._arguments, self._count, self._seed = list(arguments), count, seed
        self._environment = {**os.environ, **({} if token is None else {"PENSTOCK_TOKEN": token})}
        self._processes: list[_Process] = []
        self._due: dict[int, tuple[float, int]] = {}
        self._starts: Counter[int] = Counter()

    def __enter__(self) -> Actors:
        try:
            for number in range(self._count):
                self._start(number, 0)
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.end()

    @property
    def pids(self) -> list[int]:
        """Of those that run."""
        return [one.process.pid for one in self._processes]

    def look(self) -> None:
        """Starts again what died.

        Raises:
            UsageError: if an actor says that it was given something wrong.
        """
        now = time.monotonic()
        for one in list(self._processes):
            code = one.process.poll()
            if code is None:
                continue
            self._processes.remove(one)
            said = one.said()
            self._close(one)
            if code == USAGE:
                raise UsageError(f"Expected an actor that plays, it said: {said}")
            steady = now - one.began > STEADY_SECONDS
            failures = 0 if steady else one.failures + 1
            logger.warning("actor %s ended with %s: %s", one.number, code, said)
            self._due[one.number] = (now + min(0.5 * 2**failures, MAX_PAUSE), failures)
        for number, (moment, failures) in list(self._due.items()):
            if moment <= now:
                del self._due[number]
                self._start(number, failures)

    def end(self) -> None:
        """Ends all of them: asked first, killed if they do not listen."""
        for one in self._processes:
            with contextlib.suppress(ProcessLookupError):
                one.process.terminate()
        until = time.monotonic() + END_SECONDS
        for one in self._processes:
            try:
                one.process.wait(max(until - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                one.process.kill()
                one.process.wait()
            self._close(one)
        self._processes = []

    def _start(self, number: int, failures: int) -> None:
        # Of each start other seeds: what it had begun to play is not played again.
        seed = self._seed + number + self._count * self._starts[number]
        self._starts[number] += 1
        command = [sys.executable, "-m", "penstock", "actor", "--until-stdin-ends"]
        log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as its process
        try:
            process = subprocess.Popen(
                [*command, "--seed", str(seed), *self._arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env=self._environment,
            )
        except OSError as error:
            log.close()
            raise TransientError(f"Expected to start an actor, came: {error}.") from error
        self._processes.append(_Process(number, process, log, failures=failures))

    @staticmethod
    def _close(one: _Process) -> None:
        if one.process.stdin is not None:
            with contextlib.suppress(OSError):
                one.process.stdin.close()
        one.log.close()
