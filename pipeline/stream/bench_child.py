"""One contender of `penstock bench stream` in a process of its own: `bench_child.py FILE PLACE`.

FILE is a Python file with a function per case: of `l1`, `l2` and `l4` it returns what makes one
batch, of `l3` it yields the batches of one epoch; `prepare_SOURCE` writes its own format. PLACE is
a folder: the source's arrays are in PLACE/source, and what a contender writes has a name of its own
beside them.

One JSON object per line comes in and one goes out; whatever libraries print goes to stderr. CPU
seconds are those of this process and of all its children, ended or not. Nothing but NumPy is used
here, because other projects' environments run it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

Batch = Sequence[Any]
"""Arrays or tensors, rows first; None for what a contender does not deliver."""
WARM = 0.05  # seconds of untimed batches before each turn, at least two batches


class Child:
    """What is asked of one contender, one method per question."""

    def __init__(self, module: ModuleType, place: Path) -> None:
        self._module, self._place = module, place
        self._make: Callable[[], Batch] | None = None

    def prepare(self, source: str) -> dict[str, Any]:
        """Writes a source in the contender's own format."""
        getattr(self._module, f"prepare_{source}")(self._place)
        return {}

    def open(self, case: str) -> dict[str, Any]:
        """Makes the first batch of a case."""
        before = cpu_seconds()
        function = getattr(self._module, case)
        self._make = function(self._place)
        self._make()
        return {"open_cpu_s": cpu_seconds() - before, **self._words(function)}

    def turn(self, seconds: float) -> dict[str, Any]:
        """Makes batches for some seconds."""
        make = self._made()
        warm, count = time.perf_counter(), 0
        while count < 2 or time.perf_counter() - warm < min(WARM, seconds):
            make()
            count += 1
        made, chunk = 0, 1
        before, began = cpu_seconds(), time.perf_counter()
        while True:
            for _ in range(chunk):
                make()
            made += chunk
            wall = time.perf_counter() - began
            if wall >= seconds:
                break
            if wall < seconds / 16:  # so that looking at the clock costs nothing
                chunk *= 2
        cpu = cpu_seconds() - before
        return {"batches": made, "cpu_s": max(cpu, 1e-6), "wall_s": wall, "peak_mb": peak_mb()}

    def save(self, file: str, seconds: float, batches: int) -> dict[str, Any]:
        """Writes further batches into an archive of arrays, joined along their rows."""
        make = self._made()
        kept: list[list[np.ndarray | None]] = []
        began = time.perf_counter()
        while len(kept) < batches and (not kept or time.perf_counter() - began < seconds):
            kept.append([None if one is None else np.array(one) for one in make()])
        columns = zip(*kept, strict=True)
        joined = {str(n): np.concatenate(c) for n, c in enumerate(columns) if c[0] is not None}
        np.savez(file, **joined)  # type: ignore[arg-type]  # the names are keywords
        return {"batches": len(kept)}

    def epoch(self, case: str, seconds: float) -> dict[str, Any]:
        """Goes through one epoch, or what of it some seconds allow."""
        function = getattr(self._module, case)
        held = reset_peak_mb()
        before, began = cpu_seconds(), time.perf_counter()
        first = wall = 0.0
        rows = 0
        is_whole = True
        for batch in function(self._place):
            wall = time.perf_counter() - began
            first = first or wall
            rows += len(batch[0])
            if wall > seconds:
                is_whole = False
                break
        cpu, wall = cpu_seconds() - before, time.perf_counter() - began
        return {
            "rows": rows,
            "is_whole": is_whole,
            "first_batch_s": first,
            "cpu_s": max(cpu, 1e-6),
            "wall_s": wall,
            "peak_mb": peak_mb(),
            "grown_mb": peak_mb() - held,
            **self._words(function),
        }

    def _made(self) -> Callable[[], Batch]:
        if self._make is None:
            raise ValueError("Expected open before a turn, came a turn.")
        return self._make

    def _words(self, function: Callable[..., Any]) -> dict[str, Any]:
        doc = " ".join((function.__doc__ or "").split())
        return {"what": doc, "version": getattr(self._module, "VERSION", "")}


def cpu_seconds() -> float:
    """CPU seconds of this process, of children that ended, and of those that live."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    ticks = os.sysconf("SC_CLK_TCK")
    living = sum(sum(map(int, stat[11:13])) for stat in _descendants().values())
    return time.process_time() + ended.ru_utime + ended.ru_stime + living / ticks


def peak_mb() -> float:
    """Most memory held at once by this process, and what its living children hold."""
    kilobytes = _status("VmHWM")
    for number in _descendants():
        with contextlib.suppress(OSError):
            rollup = Path(f"/proc/{number}/smaps_rollup").read_text(encoding="ascii")
            kilobytes += next(int(x.split()[1]) for x in rollup.splitlines() if x[:4] == "Pss:")
    return kilobytes / 1024


def reset_peak_mb() -> float:
    """Forgets the peak so far; returns what is held now."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _status("VmRSS") / 1024


def _status(name: str) -> int:
    """Kilobytes from /proc/self/status; where there is no such file, the largest resident set."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _descendants() -> dict[int, list[str]]:
    """Living processes that this one started, or that those did: what /proc says of each."""
    known: dict[int, list[str]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):
            # The name, in brackets, may hold anything; what follows are numbers.
            known[int(entry.parent.name)] = entry.read_text().rpartition(")")[2].split()
    found: dict[int, list[str]] = {}
    waiting = {os.getpid()}
    while waiting:
        waiting = {n for n, stat in known.items() if int(stat[1]) in waiting and n not in found}
        found |= {number: known[number] for number in waiting}
    return found


def load(file: str) -> ModuleType:
    """Loads a contender; the files beside it can be imported by it.

    Raises:
        ImportError: if the file cannot be loaded.
    """
    sys.path.insert(0, str(Path(file).parent))
    spec = importlib.util.spec_from_file_location("contender", file)
    if spec is None or spec.loader is None:
        raise ImportError(f"Expected a Python file, came {file}.")
    module = importlib.util.module_from_spec(spec)
    sys.modules["contender"] = module
    spec.loader.exec_module(module)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    return module


def _questions() -> Iterator[dict[str, Any]]:
    for line in sys.stdin:
        yield json.loads(line)


def main(file: str, place: str) -> None:
    """Answers until there are no more questions."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        child = Child(load(file), Path(place))
        for asked in _questions():
            answer = getattr(child, asked.pop("do"))(**asked)
            answers.write(json.dumps(answer) + "\n")
            answers.flush()
    os._exit(0)  # threads of libraries need not be waited for


if __name__ == "__main__":
    main(*sys.argv[1:3])
