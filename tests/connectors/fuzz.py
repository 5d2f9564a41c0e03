"""Reads mutated datasets in child processes that may crash, hang or take too much memory.

`run` starts a child (this file as a program) per parser; the child makes one valid dataset, and for
each seed a mutation of it, which it identifies, discovers, reads, validates and decodes, and every
so often ingests with the real command. It says a line per seed. One that stays silent is killed and
counted as a hang, one that dies as a crash; either way a new child goes on with the next seed.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import select
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

SILENCE = 60.0
"""Seconds; the guard of HDF5 files, inside, takes 20 of them."""
ABOVE_BASELINE = 400
"""MB of memory that reading a small file may take."""
ADDRESS_SPACE = 3 << 30
"""Bytes beyond what a child has mapped at its start."""


@dataclass
class Tally:
    """What became of a parser's mutants."""

    parser: str
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    """`seed: what`, for each that is none of refused, quarantined, accepted."""
    seconds: float = 0.0
    peak: int = 0
    """MB above the baseline, the most of any."""

    @property
    def count(self) -> int:
        """Mutants that were read."""
        return sum(self.outcomes.values())


def run(parser: str, count: int, first: int = 0, commands: int = 25) -> Tally:
    """Reads `count` mutants of one parser; every so many (`commands`) with the real command."""
    tally = Tally(parser)
    began = time.monotonic()
    seed = first
    with tempfile.TemporaryDirectory(prefix="penstock-fuzz-") as folder:
        while seed < first + count:
            seed = _serve(tally, seed, first + count, commands, folder)
    tally.seconds = time.monotonic() - began
    return tally


def _serve(tally: Tally, first: int, stop: int, commands: int, folder: str) -> int:
    """Runs one child as far as it gets, its files in a folder; returns the next seed."""
    root = Path(__file__).parents[2]
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.connectors.fuzz", tally.parser]
        + [str(n) for n in (first, stop, commands)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=root,
        env={**os.environ, "TMPDIR": folder},
    )
    assert child.stdout is not None
    pending, seed = b"", first
    try:
        while seed < stop:
            if not select.select([child.stdout], [], [], SILENCE)[0]:
                return _failed(tally, seed, f"hang: nothing for {SILENCE:g} s")
            said = os.read(child.stdout.fileno(), 65536)
            if not said:
                child.wait()
                assert child.stderr is not None
                last = child.stderr.read().decode(errors="replace").strip().splitlines()[-1:]
                return _failed(tally, seed, f"crash: {child.returncode} {last}")
            *lines, pending = (pending + said).split(b"\n")
            for line in lines:
                _count(tally, json.loads(line))
                seed += 1
        return seed
    finally:
        child.kill()
        child.communicate()


def _failed(tally: Tally, seed: int, what: str) -> int:
    tally.outcomes[what.partition(":")[0]] += 1
    tally.failures.append(f"{seed}: {what}")
    return seed + 1


def _count(tally: Tally, said: dict[str, Any]) -> None:
    kind = said["outcome"].partition(":")[0]
    tally.outcomes[kind] += 1
    tally.peak = max(tally.peak, said["peak"])
    if kind == "bug":
        tally.failures.append(f"{said['seed']}: {said['outcome']}")
    elif said["peak"] > ABOVE_BASELINE:
        tally.outcomes["memory"] += 1
        tally.failures.append(f"{said['seed']}: memory: {said['peak']} MB above the baseline")


# -- in the child --------------------------------------------------------------------------------


def serve(parser: str, first: int, stop: int, commands: int) -> None:
    """Reads mutants and says what became of each."""
    from tests.connectors.mutate import mutate
    from tests.connectors.small import SMALL

    output = os.dup(1)
    os.dup2(2, 1)
    small = next(one for one in SMALL if one.name == parser)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "work")
        place.mkdir()
        where = small.make(place)
        files = {
            path.relative_to(place).as_posix(): path.read_bytes()
            for path in sorted(place.rglob("*"))
            if path.is_file()
        }
        store = str(Path(folder, "store"))
        read(where, small.format)  # imports and first allocations are no mutant's
        baseline = _peak()
        _limit()
        here = files
        for seed in range(first, stop):
            changed = mutate(files, np.random.default_rng([seed, len(parser)]))
            _write(place, here, changed)
            here = changed
            if seed % commands == commands - 1:
                outcome = command(where, small.format, store)
            else:
                outcome = attempt(where, small.format)
            peak = max(0, _peak() - baseline) // 1024
            line = json.dumps({"seed": seed, "outcome": outcome, "peak": peak})
            os.write(output, line.encode() + b"\n")


def attempt(where: str, format: str) -> str:
    """Reads one dataset; returns `refused`, `quarantined`, `accepted` or `bug: ...`."""
    from schemas.errors import PenstockError

    try:
        return read(where, format)
    except PenstockError as error:
        is_sentence = error.message and "\n" not in error.message
        return "refused" if is_sentence else f"bug: no sentence: {error.message!r}"
    except Exception:
        last = traceback.format_exc().strip().splitlines()
        place = [line.strip() for line in last if line.strip().startswith("File")][-1]
        return f"bug: {last[-1][:200]} {place}"


def read(where: str, format: str) -> str:
    """Identifies, discovers, reads, validates, decodes and digests a dataset."""
    from connectors import registry
    from pipeline.steps.validate import fault_of
    from schemas.packed import plain
    from schemas.table import episode_row

    registry.identify(where, format)
    source = registry.source(registry.detect(where))
    source = registry.source(format)
    listing = source.discover(where)
    json.dumps(listing.metadata).encode()
    faults = 0
    for unit in listing.units:
        for found in source.read(unit):
            if found.episode is None or fault_of(found.episode) is not None:
                faults += 1
                continue
            row = episode_row(found.episode)
            str(row).encode()
            for rows in found.episode.arrays.values():
                if not isinstance(rows, np.ndarray):
                    with contextlib.suppress(*_damage()):
                        plain(rows)
    return "quarantined" if faults or not listing.episodes else "accepted"


def _damage() -> tuple[type[Exception], ...]:
    from schemas.errors import PenstockError

    return (PenstockError,)


def command(where: str, format: str, store: str) -> str:
    """Ingests one dataset with the real command; what it refuses must leave the log unchanged."""
    from pipeline.cli.main import main

    before = versions(store)
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = main(["ingest", f"{format}:{where}", "--into", store, "--log-format", "text"])
    text = said.getvalue()
    grown = versions(store) - before
    if "Traceback" in text:
        last = text.strip().splitlines()
        places = [line.strip() for line in last if line.strip().startswith("File")]
        return f"bug: {last[-2][:200]} {places[-1:]}"
    if code not in (0, 2, 3, 6) or grown > (code in (0, 3)):
        return f"bug: exit code {code} with {grown} new versions: {text[:300]}"
    return {0: "accepted", 3: "quarantined"}.get(code, "refused")


def versions(store: str) -> int:
    """Commits of all branches of a store."""
    return len(list(Path(store, "refs", "branches").rglob("*.json")))


def _write(place: Path, old: dict[str, bytes], new: dict[str, bytes]) -> None:
    for name in old.keys() - new.keys():
        (place / name).unlink()
    for name, data in new.items():
        if old.get(name) is not data:
            (place / name).write_bytes(data)


def _peak() -> int:
    """Peak of resident memory in kB, since the last call where the kernel can forget it."""
    status = Path("/proc/self/status").read_text()
    found = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return int(found.split()[1])


def _limit() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


if __name__ == "__main__":
    name, *numbers = sys.argv[1:]
    serve(name, *map(int, numbers))
