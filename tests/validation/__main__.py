"""Runs the experiments and prints their table: `python -m tests.validation [--seeds 5]`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.validation import real
from tests.validation.experiments import Row, cloning, filtering, ranking, specificity


def table(rows: Sequence[Row]) -> str:
    """Returns the rows as Markdown, one table per experiment."""
    lines = []
    for experiment in dict.fromkeys(row.experiment for row in rows):
        own = [row for row in rows if row.experiment == experiment]
        whats = list(dict.fromkeys(row.what for row in own))
        lines += ["", f"### {experiment}", "", "| | " + " | ".join(whats) + " |"]
        lines.append("|-|" + "-:|" * len(whats))
        for score in dict.fromkeys(row.score for row in own):
            cells = {row.what: row for row in own if row.score == score}
            said = [
                f"{c.mean:.3f} ({c.low:.3f} to {c.high:.3f})" if (c := cells.get(w)) else ""
                for w in whats
            ]
            lines.append(f"| {score} | " + " | ".join(said) + " |")
    return "\n".join(lines).strip()


def main(arguments: Sequence[str]) -> None:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.validation")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--data", type=Path, help="Folder of the labelled datasets.")
    chosen = parser.parse_args(arguments)
    seeds = range(chosen.seeds)
    rows: list[Row] = []
    for experiment in (ranking, specificity, cloning, filtering):
        rows += experiment(seeds)
        print(f"{experiment.__name__}: done", file=sys.stderr)
    data = chosen.data or Path(os.environ.get("PENSTOCK_TEST_DATA", "../shared/data"))
    if data.is_dir():
        rows += [*real.labelled(data), real.copies(data)]
    print(table(rows))


if __name__ == "__main__":
    main(sys.argv[1:])
