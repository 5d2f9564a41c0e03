"""How fast streams are, beside other projects' loaders and the physical ceiling, in one run.

Sources of known rows are made first (`bench_data`), and each contender writes its own format of
them. Then each runs in a process of its own (`bench_cases`), on one thread per library, and all
take many short turns, every second round backwards, so that a noisy moment hurts none of them more
than another. Figures are per second of CPU time, children's included; the best and the median of
the rounds are told. Afterwards everybody's batches are compared with the source (`bench_checks`):
a contender that delivers something else says so beside its figures.

An epoch (L3) is a process of its own each time, with all files dropped from the page cache.
"""

from __future__ import annotations

import contextlib
import os
import platform
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.stream.bench_cases import (
    CONTENDERS,
    SOURCES,
    Case,
    CaseFailedError,
    Contender,
    Process,
    choose,
)
from pipeline.stream.bench_checks import (
    Rows,
    check_pictures,
    check_transitions,
    check_windows,
    saved_batch,
)
from pipeline.stream.bench_data import NUMBERS, forget, make_source, read_source
from pipeline.stream.bench_results import ratios, shares, told, told_epochs
from schemas.errors import UnknownNameError, suggest

_ROOT = Path(__file__).parents[2]
Say = Callable[[str], None]
_ARRAYS = {"L1": 5, "L2": 4, "L4": 2}
"""Arrays of a batch, of which a contender may leave out the last."""


@dataclass(frozen=True)
class BenchConfig:
    """What is measured, and for how long."""

    workloads: tuple[str, ...] = tuple(SOURCES)
    rows: int = 1_000_000
    """Steps of numbers."""
    pictures: int = 20_000
    """Steps of pictures."""
    rounds: int = 8
    """How often contenders take turns."""
    seconds: float = 0.5
    """Of a turn."""
    epochs: int = 3
    """How often contenders take turns at an epoch."""
    longest_epoch: float = 8.0
    """Seconds after which an epoch is broken off."""
    check_batches: int = 400
    """Batches of transitions that are compared with the source; fewer of those that are larger."""
    check_seconds: float = 3.0
    """Of making those."""
    has_peers: bool = True
    """Whether other projects take part."""
    peers: Path | None = None
    """Folder of their environments; `PENSTOCK_PEERS`, else `.peers` here, by default."""


QUICK = BenchConfig(
    rows=100_000, pictures=2_000, rounds=3, seconds=0.2, epochs=1, longest_epoch=2.0
)


def bench_stream(
    config: BenchConfig | None = None,
    contenders: Sequence[Contender] = CONTENDERS,
    say: Say = lambda _: None,
) -> dict[str, Any]:
    """Measures all contenders at some workloads.

    Args:
        config: what to measure.
        contenders: who takes part.
        say: told of what is being done.

    Returns:
        `workloads`: per workload a list of what was measured of each contender, fastest first;
        `ratios`: ours over the ceiling and over others, by workload; `skipped` and `failed`: why
        some are not there; `machine`, `config`.

    Raises:
        UnknownNameError: for a workload that is none.
    """
    config = config or BenchConfig()
    for name in config.workloads:
        if name not in SOURCES:
            raise UnknownNameError(f"Expected a workload, came {name!r}; {suggest(name, SOURCES)}")
    asked = [one for one in contenders if config.has_peers or one.kind != "peer"]
    peers = config.peers or Path(os.environ.get("PENSTOCK_PEERS", _ROOT / ".peers"))
    cases, skipped = choose(asked, config.workloads, peers)
    machine = {**_machine(), "load_before": _load()}
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder:
        run = _Run(config, peers, Path(folder), say)
        measured = {
            name: run.workload([case for case in cases if case.workload == name])
            for name in config.workloads
        }
    found = {name: shares(rows) for name, rows in measured.items()}
    return {
        "rows": config.rows,
        "pictures": config.pictures,
        "rounds": config.rounds,
        "seconds": config.seconds,
        "machine": {**machine, "load_after": _load()},
        "workloads": found,
        "ratios": {name: ratios(name, rows) for name, rows in found.items()},
        "skipped": skipped,
        "failed": run.failed,
    }


class _Run:
    """One run of the benchmark, in a folder that is deleted after it."""

    def __init__(self, config: BenchConfig, peers: Path, folder: Path, say: Say) -> None:
        self._config, self._peers, self._folder, self._say = config, peers, folder, say
        self._places: dict[str, Path] = {}
        self._prepared: dict[tuple[str, str], str] = {}
        self._rows: Rows | None = None
        self.failed: dict[str, str] = {}
        """Why, by name and workload."""

    def workload(self, cases: Sequence[Case]) -> list[dict[str, Any]]:
        """Measures the cases of one workload."""
        ready = [case for case in cases if self._is_prepared(case)]
        if not ready:
            return []
        return self._epochs(ready) if ready[0].workload == "L3" else self._turns(ready)

    def _turns(self, cases: Sequence[Case]) -> list[dict[str, Any]]:
        config, workload = self._config, cases[0].workload
        with contextlib.ExitStack() as stack:
            running: dict[Case, Process] = {}
            found: dict[Case, dict[str, Any]] = {}
            turns: dict[Case, list[dict[str, Any]]] = {case: [] for case in cases}
            for case in cases:
                self._say(f"{workload}: {case.name} opens")
                process = stack.enter_context(self._process(case))
                with self._failing(case):
                    found[case] = process.ask("open", case=case.function)
                    running[case] = process
            for number in range(config.rounds):
                self._say(f"{workload}: round {number + 1} of {config.rounds}")
                for case in [*running][:: 1 if number % 2 == 0 else -1]:
                    with self._failing(case, running):
                        turns[case].append(running[case].ask("turn", seconds=config.seconds))
            for case in [*running]:
                self._say(f"{workload}: {case.name} is compared with the source")
                with self._failing(case, running):
                    found[case]["checks"] = self._checks(case, running[case])
        return [
            {**told(case, found[case], turns[case]), "checks": found[case]["checks"]}
            for case in running
        ]

    def _epochs(self, cases: Sequence[Case]) -> list[dict[str, Any]]:
        config = self._config
        found: dict[Case, list[dict[str, Any]]] = {case: [] for case in cases}
        for number in range(config.epochs):
            for case in [*found][:: 1 if number % 2 == 0 else -1]:
                self._say(f"L3: {case.name}, epoch {number + 1} of {config.epochs}")
                forget(self._place(case))
                with self._failing(case, found), self._process(case) as process:
                    asked = {"case": case.function, "seconds": config.longest_epoch}
                    found[case].append(process.ask("epoch", **asked))
        return [told_epochs(case, epochs) for case, epochs in found.items()]

    def _checks(self, case: Case, process: Process) -> dict[str, Any]:
        config, place, workload = self._config, self._place(case), case.workload
        file = self._folder / "batches.npz"
        fewer = {"L1": 1, "L2": 8, "L4": 64}[workload]
        most = max(1, config.check_batches // fewer)
        process.ask("save", file=str(file), seconds=config.check_seconds, batches=most)
        with np.load(file, allow_pickle=False) as archive:
            batch = saved_batch({name: archive[name] for name in archive}, _ARRAYS[workload])
        if workload == "L4":
            return check_pictures(read_source(place), batch)
        if self._rows is None:
            self._rows = Rows(read_source(place))
        check = check_transitions if workload == "L1" else check_windows
        return check(self._rows, batch)

    def _is_prepared(self, case: Case) -> bool:
        """Makes the source of a case and its own format of it, once each; False if that failed."""
        source = SOURCES[case.workload]
        key = (case.contender.title, source)
        place = self._place(case)
        if source not in case.contender.writes:
            return True
        if key not in self._prepared:
            self._say(f"{case.contender.title} writes {source} in its own format")
            why = ""
            try:
                with Process(case.contender, place, self._peers) as process:
                    process.ask("prepare", source=source)
            except CaseFailedError as error:
                why = f"in writing its own format: {error}"
            self._prepared[key] = why
        if self._prepared[key]:
            self.failed[f"{case.name} at {case.workload}"] = self._prepared[key]
        return not self._prepared[key]

    def _place(self, case: Case) -> Path:
        source, config = SOURCES[case.workload], self._config
        if source not in self._places:
            self._say(f"{source} are made")
            steps = config.rows if source == NUMBERS else config.pictures
            self._places[source] = make_source(self._folder, source, steps)
        return self._places[source]

    def _process(self, case: Case) -> Process:
        return Process(case.contender, self._place(case), self._peers)

    @contextlib.contextmanager
    def _failing(self, case: Case, still: dict[Case, Any] | None = None) -> Any:
        """Leaves a case that fails out from then on, and says why."""
        try:
            yield
        except CaseFailedError as error:
            self.failed[f"{case.name} at {case.workload}"] = str(error)
            if still is not None:
                still.pop(case)


def _machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gb": round(memory / 2**30),
        "python": platform.python_version(),
    }


def _load() -> float:
    return round(os.getloadavg()[0], 2)
