"""`python -m benchmarks TASK ... --size small --seeds 5 --out DIR` runs tasks of the suite."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.report import load, table
from benchmarks.suite import run_task
from benchmarks.tasks import TASKS


def main() -> None:
    """Runs tasks; each leaves `results.json` in its folder, and a table is shown of all there."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("tasks", nargs="*", help=f"of {', '.join(TASKS)}; none only shows tables")
    parser.add_argument("--size", choices=("small", "full"), default="small")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", action="append", help="a row of the task, several times")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path(".suite"))
    given = parser.parse_args()
    unknown = sorted(set(given.tasks) - TASKS.keys())
    if unknown:
        parser.error(f"Expected tasks of {', '.join(TASKS)}, came {', '.join(unknown)}.")
    for name in given.tasks:
        rows = tuple(given.only or ())
        run_task(name, given.size, given.seeds, given.out, rows, given.device, _note)
    sys.stdout.write("\n".join(table(one) for one in load(given.out, given.size)) + "\n")


def _note(text: str) -> None:
    sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    main()
