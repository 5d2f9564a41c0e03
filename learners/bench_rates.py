"""Updates per second of learners on one device: by how they are taken, by seeds, by where rows lie.

Learners of an algorithm take turns, on the same data set: one agent in each form of `engine`, then,
in the last of those, several agents side by side, and one whose rows are streamed from the cache in
the host's memory instead of lying where the networks are. Sampling counts, compiling does not.
Seconds are the wall's, with all of the device's work done at both ends of a turn; on the CPU, which
others may use meanwhile, they are the process's own.
"""

from __future__ import annotations

import functools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from learners.base import Batch, learner_class, make_learner
from learners.bench import DECAY, columns_of, machine_of, stored
from learners.data import Pinned, Sampling, fit, open_stream
from learners.engine import Compile, engine
from learners.memory import keep_freed_memory
from learners.run import threads
from learners.sampling import rows_of
from learners.settings import read_settings
from pipeline.stream.torch_adapter import torch_device

LARGER = {"arsq": 2}
"""By how much batches of some algorithms are larger, as published."""


@dataclass(frozen=True)
class RateBench:
    """How much is measured."""

    device: str = "cpu"
    """Where networks live, and rows that are resident."""
    algos: tuple[str, ...] = ("iql", "td3_bc", "cal_ql", "arsq")
    """Names of algorithms."""
    forms: tuple[Compile, ...] | None = None
    """How updates are taken; None: as written, and on a GPU compiled and captured, too."""
    seeds: int = 8
    """Agents side by side, beside one alone."""
    rows: int = 100_000
    """Steps of the data set."""
    batch_size: int = 256
    """Rows of a batch; `LARGER` ones of some algorithms."""
    rounds: int = 3
    """Turns of each."""
    seconds: float = 1.0
    """About how long a turn lasts."""
    updates: int = 100
    """Of one turn at least, of all agents together."""
    hidden: tuple[int, ...] | None = None
    """Widths of hidden layers; None: each algorithm's own."""


QUICK_RATES = RateBench(
    seeds=2, rows=2_000, batch_size=32, rounds=1, seconds=0.0, updates=3, hidden=(16, 16)
)


@dataclass(frozen=True)
class Case:
    """What takes turns with others."""

    compile: Compile
    agents: int
    residency: Literal["gpu", "ram", "mmap"]

    @property
    def data(self) -> str:
        """Where rows come from."""
        return "streamed" if self.residency == "mmap" else "resident"


def cases(config: RateBench, place: torch.device) -> list[Case]:
    """Returns what is measured of each algorithm."""
    is_gpu = place.type == "cuda"
    resident: Literal["gpu", "ram"] = "gpu" if is_gpu else "ram"
    all_forms: tuple[Compile, ...] = ("none", "step", "graph") if is_gpu else ("none",)
    forms = config.forms or all_forms
    alone = [Case(form, 1, resident) for form in forms]
    return [*alone, Case(forms[-1], config.seeds, resident), Case(forms[-1], 1, "mmap")]


def bench_rates(config: RateBench, say: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Measures learners on a device.

    Args:
        config: how much.
        say: told what is measured next.

    Returns:
        `machine`, `per` (`second` or `CPU second`), and in `rows` of each algorithm and case
        `best` and `median` agent-updates per second, and `first_seconds`, wall time of the first
        turn, compiling included; in `ratios` of each algorithm medians of ratios within rounds:
        `streamed` over resident, and agents `side_by_side` over one alone.

    Raises:
        UnknownNameError: for an unknown algorithm.
        ConfigError: if there is no such device, or it cannot take updates so.
    """
    load, place = os.getloadavg()[0], torch_device(config.device)
    keep_freed_memory()
    rows, ratios = [], {}
    with threads(1), tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder:
        pinned = stored(Path(folder), columns_of(config.rows))
        for algo in config.algos:
            if say is not None:
                say(f"{algo} on {place}")
            found = _in_turns(algo, config, pinned, f"{folder}/cache")
            rows += [_row(algo, config, case, *turns) for case, turns in found.items()]
            rates = [rates for _, rates in found.values()]
            *_, one, several, streamed = rates
            ratios[algo] = {"streamed": _over(streamed, one), "side_by_side": _over(several, one)}
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else str(place)
    return {
        "machine": {"device": name, **machine_of(load)},
        "per": "CPU second" if place.type == "cpu" else "second",
        "rows": rows,
        "ratios": ratios,
    }


def _in_turns(
    algo: str, config: RateBench, pinned: Pinned, cache: str
) -> dict[Case, tuple[float, list[float]]]:
    """Wall seconds of each case's first turn, and its agent-updates per second of each round."""
    place = torch_device(config.device)
    runs = {case: _Run(algo, config, case, pinned, cache) for case in cases(config, place)}
    first, counts = {}, {}
    for case, run in runs.items():
        least = max(1, config.updates // case.agents)
        began = time.perf_counter()
        _seconds(functools.partial(run.take, least), place)
        first[case] = time.perf_counter() - began
        rate = least / _seconds(functools.partial(run.take, least), place)
        counts[case] = max(least, int(rate * config.seconds))
    rates: dict[Case, list[float]] = {case: [] for case in runs}
    for _ in range(config.rounds):
        for case, run in runs.items():
            took = _seconds(functools.partial(run.take, counts[case]), place)
            rates[case].append(case.agents * counts[case] / took)
    for run in runs.values():
        run.close()
    return {case: (first[case], rates[case]) for case in runs}


class _Run:
    """A learner of some agents, each on a stream of its own."""

    def __init__(
        self, algo: str, config: RateBench, case: Case, pinned: Pinned, cache: str
    ) -> None:
        given: dict[str, Any] = {} if config.hidden is None else {"hidden": config.hidden}
        if algo == "iql":
            given["policy_decay"] = DECAY
        kind = learner_class(algo)
        settings = read_settings(kind.settings_kind, given, algo)
        needs, size = kind.needs(settings), config.batch_size * LARGER.get(algo, 1)
        stream = {"cache_dir": cache, "residency": case.residency}
        normaliser = fit([pinned], settings.standardise)
        learner = make_learner(algo, given, normaliser, range(case.agents), config.device)
        self._streams = [
            open_stream(
                [pinned], Sampling(size, seed, 0.99, config.device, stream=stream, needs=needs)
            )
            for seed in range(case.agents)
        ]
        self._batches: list[Iterator[Batch]] = [rows_of(iter(s), needs) for s in self._streams]
        self._engine = engine(learner, case.compile)

    def take(self, count: int) -> None:
        """Takes so many updates of each agent."""
        self._engine.take(self._batches, count)

    def close(self) -> None:
        """Ends the streams' threads."""
        for stream in self._streams:
            stream.close()


def _seconds(work: Callable[[], object], place: torch.device) -> float:
    """Seconds that a turn takes: of the wall, or on the CPU of the process."""
    if place.type == "cpu":
        began = time.process_time()
        work()
        return max(time.process_time() - began, 1e-9)
    torch.cuda.synchronize(place)
    began = time.perf_counter()
    work()
    torch.cuda.synchronize(place)
    return time.perf_counter() - began


def _row(
    algo: str, config: RateBench, case: Case, first: float, rates: list[float]
) -> dict[str, Any]:
    return {
        "algo": algo,
        "compile": case.compile,
        "agents": case.agents,
        "data": case.data,
        "batch_size": config.batch_size * LARGER.get(algo, 1),
        "best": round(max(rates), 1),
        "median": round(statistics.median(rates), 1),
        "first_seconds": round(first, 4),
    }


def _over(mine: list[float], theirs: list[float]) -> float:
    """The median of ratios within rounds."""
    return round(statistics.median(a / b for a, b in zip(mine, theirs, strict=True)), 3)
