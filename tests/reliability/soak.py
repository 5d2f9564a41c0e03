"""A soak: one server, three actors at half the rate they can reach, a learner's tail and scrapes.

`make soak` runs it for SOAK_MINUTES (30), at SOAK_SHARE (0.5) of that rate, and fails if anything
grows that should not, or if any episode is lost or there twice in the end. One JSON line per sample
goes to SOAK_FIGURES.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import queue
import shutil
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from pipeline.store.store import open_store
from schemas.identity import digest
from tests.reliability.soak_clients import STEPS, Wanted, actor, episode_of, learner, name_of
from tests.reliability.soak_rules import (
    Outcome,
    Sample,
    broken_rules,
    rss_growth,
    rss_slope,
    warmed,
)
from tests.service.servers import Server, serving

ENOUGH = 16
"""Samples that say something of growth."""


@dataclass(frozen=True)
class SoakConfig:
    """How long, and how hard."""

    seconds: float = 1800.0
    sample_every: float = 10.0
    peak_seconds: float = 10.0
    share: float = 0.5
    actors: int = 3
    read_again: int = 500
    """Episodes whose content is compared in the end."""
    tail_seconds: float = 20.0
    """After which a tail ends when nothing comes."""
    serve: tuple[str, ...] = ()
    """Further arguments of the server."""


@dataclass
class _Heard:
    """What the clients said so far."""

    pushed: dict[int, int] = field(default_factory=dict)
    acknowledged: dict[int, int] = field(default_factory=dict)
    peaks: dict[int, float] = field(default_factory=dict)
    over: set[int] = field(default_factory=set)
    latencies: list[float] = field(default_factory=list)
    received: int = 0
    seen: list[str] | None = None
    doubled: int = 0
    failures: list[str] = field(default_factory=list)

    def take(self, message: dict[str, Any]) -> None:
        if "failure" in message:
            self.failures.append(message["failure"])
        if "received" in message:
            self.received, self.seen = message["received"], message.get("seen")
            self.doubled = message.get("doubled", 0)
        if "actor" in message:
            which = message["actor"]
            self.pushed[which] = message["pushed"]
            self.acknowledged[which] = message["acknowledged"]
            self.latencies += message["latencies"]
            if "peak" in message:
                self.peaks[which] = message["peak"]
                self.latencies = []
            if message.get("is_over"):
                self.over.add(which)


@dataclass(frozen=True)
class Soaked:
    """What a soak found."""

    peak: float
    """Episodes a second of all actors together."""
    samples: list[Sample]
    outcome: Outcome
    exit_code: int

    @property
    def broken(self) -> list[str]:
        """What should not be; empty if all is well."""
        found = broken_rules(self.samples, self.outcome)
        return found + ([f"the server ended with {self.exit_code}"] if self.exit_code else [])


def soak(folder: Path, config: SoakConfig, say: Callable[[Sample], None]) -> Soaked:
    """Soaks a new server in a folder.

    Args:
        folder: for the store and the server's log.
        config: how long, and how hard.
        say: told of every sample.
    """
    context = multiprocessing.get_context("spawn")
    stop, over, told = context.Event(), context.Event(), context.Queue()
    with serving(folder / "store", *config.serve) as server:
        assert server.token is not None
        every = min(config.sample_every / 2, 2.0)
        wanted = Wanted(server.data, server.token, config.peak_seconds, config.share, every)
        tail = context.Process(target=learner, args=(wanted, config.tail_seconds, over, told))
        tail.start()
        actors = [
            context.Process(target=actor, args=(number, wanted, stop, told))
            for number in range(config.actors)
        ]
        for one in actors:
            one.start()
        try:
            run = _Run(server, config, over, told)
            samples = run.watch(say)
            stop.set()
            heard = run.rest()
        finally:
            stop.set()
            for process in (*actors, tail):
                process.join(30)
                if process.is_alive():
                    process.kill()
                    process.join()
        exit_code = server.end()
    return Soaked(sum(heard.peaks.values()), samples, _outcome(folder, heard, config), exit_code)


class _Run:
    def __init__(self, server: Server, config: SoakConfig, over: Any, told: Any) -> None:
        self._server, self._config, self._over, self._told = server, config, over, told
        self._heard = _Heard()

    def watch(self, say: Callable[[Sample], None]) -> list[Sample]:
        """Takes samples while the actors keep their pace."""
        wanted = range(self._config.actors)
        self._hear(lambda: self._heard.peaks.keys() == set(wanted) or self._heard.failures, 120)
        begun, before = time.monotonic(), sum(self._heard.acknowledged.values())
        samples: list[Sample] = []
        while time.monotonic() - begun < self._config.seconds and not self._heard.failures:
            self._hear(lambda: bool(self._heard.failures), self._config.sample_every)
            samples.append(self._sample(time.monotonic() - begun, before))
            say(samples[-1])
        return samples

    def rest(self) -> _Heard:
        """Waits for the last acknowledgements, and until the tail has ended."""
        heard, seconds = self._heard, self._config.tail_seconds + 180
        self._hear(lambda: len(heard.over) == self._config.actors, seconds)
        self._over.set()
        self._hear(lambda: heard.seen is not None, seconds)
        return heard

    def _hear(self, until: Callable[[], object], seconds: float) -> None:
        end = time.monotonic() + seconds
        while not until() and (left := end - time.monotonic()) > 0:
            try:
                self._heard.take(self._told.get(timeout=left))
            except queue.Empty:
                return

    def _sample(self, seconds: float, before: int) -> Sample:
        heard, process = self._heard, Path(f"/proc/{self._server.process.pid}")
        status = dict(
            line.split(":", 1) for line in (process / "status").read_text().splitlines() if line
        )
        latencies, heard.latencies = sorted(heard.latencies) or [0.0], []
        acknowledged = sum(heard.acknowledged.values())
        self._ask("/readyz")
        families = text_string_to_metric_families(self._ask("/metrics"))
        figures = {one.name: one.value for family in families for one in family.samples}
        assert self._server.token_file is not None
        return Sample(
            seconds=round(seconds, 1),
            steps=(acknowledged - before) * STEPS,
            rss=int(status["VmRSS"].split()[0]) << 10,
            fds=sum(1 for _ in (process / "fd").iterdir()),
            threads=int(status["Threads"]),
            log_bytes=sum(_sizes(Path(self._server.token_file).parent)),
            seal_lag=round(figures["penstock_seal_lag_seconds"], 2),
            ack_p50=round(statistics.median(latencies), 2),
            ack_p99=round(latencies[int(len(latencies) * 0.99)], 2),
            tail_behind=max(acknowledged - heard.received, 0),
        )

    def _ask(self, path: str) -> str:
        headers = {"Authorization": f"Bearer {self._server.token}"}
        request = urllib.request.Request(self._server.control + path, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return str(answer.read().decode())
        except OSError as error:
            self._heard.failures.append(f"{path}: {error}")
            return "penstock_seal_lag_seconds -1\n"


def _sizes(folder: Path) -> Iterable[int]:
    for file in folder.iterdir():
        try:
            yield file.stat().st_size
        except FileNotFoundError:
            continue  # the segment was sealed a moment ago


def _outcome(folder: Path, heard: _Heard, config: SoakConfig) -> Outcome:
    version = open_store(folder / "store").version()
    stored = version.episodes(columns=["episode_id"])["episode_id"].to_pylist()
    asked = {name_of(a, n) for a, count in heard.pushed.items() for n in range(count)}
    seen = set(heard.seen or ())
    total = sum(heard.pushed.values())
    picked = [(a, n) for a, count in heard.pushed.items() for n in range(count)]
    picked = picked[:: max(total // config.read_again, 1)]
    altered = sum(
        digest(version.episode(name_of(*one))) != digest(episode_of(*one)) for one in picked
    )
    return Outcome(
        pushed=total,
        acknowledged=sum(heard.acknowledged.values()),
        stored=len(set(stored)),
        lost=len(asked - set(stored)),
        doubled=len(stored) - len(set(stored)),
        unasked=len(set(stored) - asked),
        altered=altered,
        tail_lost=len(asked - seen),
        tail_doubled=heard.doubled,
        failures=tuple(heard.failures),
    )


def summary(done: Soaked) -> dict[str, Any]:
    """Returns the figures of a soak."""
    warm = warmed(done.samples)
    grew, may = rss_growth(warm)
    last = done.samples[-1]
    return {
        "minutes": round(last.seconds / 60, 1),
        "peak_puts_per_second": round(done.peak * STEPS / 64),
        "puts_per_second": round(last.steps / 64 / last.seconds),
        "steps": last.steps,
        "rss_mib": [round(bound(one.rss for one in warm) / 2**20) for bound in (min, max)],
        "rss_grew_mib": round(grew / 2**20, 1),
        "rss_may_grow_mib": round(may / 2**20, 1),
        "rss_mib_per_hour": round(rss_slope(warm) * 3600 / 2**20, 1),
        "fds": [bound(one.fds for one in warm) for bound in (min, max)],
        "threads": [bound(one.threads for one in warm) for bound in (min, max)],
        "log_mib_most": round(max(one.log_bytes for one in done.samples) / 2**20),
        "seal_lag_most": max(one.seal_lag for one in done.samples),
        "ack_p50_ms": statistics.median(one.ack_p50 for one in warm),
        "ack_p99_ms": [
            bound(one.ack_p99 for one in warm) for bound in (min, statistics.median, max)
        ],
        "tail_behind_most": max(one.tail_behind for one in done.samples),
        **asdict(done.outcome),
        "broken": done.broken,
    }


def main() -> int:
    """Soaks for SOAK_MINUTES; returns the exit code."""
    seconds = float(os.environ.get("SOAK_MINUTES", "30")) * 60
    share = float(os.environ.get("SOAK_SHARE", "0.5"))
    config = SoakConfig(seconds=seconds, sample_every=min(10.0, seconds / ENOUGH), share=share)
    figures = os.environ.get("SOAK_FIGURES")

    def say(sample: Sample) -> None:
        line = json.dumps(asdict(sample))
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
        if figures:
            with Path(figures).open("a") as file:
                file.write(line + "\n")

    folder = Path(tempfile.mkdtemp(prefix="penstock-soak-"))
    try:
        done = soak(folder, config, say)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    sys.stdout.write(json.dumps(summary(done), indent=1) + "\n")
    return 1 if done.broken else 0


if __name__ == "__main__":
    sys.exit(main())
