"""Tables of a run: CSV files that grow row by row and can go back to an earlier step.

A resumed run first drops the rows beyond its checkpoint, so that a table reads as if the run had
never stopped.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from learners.files import write_whole

METRICS = "metrics.csv"
EVALUATIONS = "evaluations.csv"


class Table:
    """One CSV file whose first column is `step`; the first row added names the others.

    Args:
        path: the file.
        step: rows up to and including this step are kept.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        kept = [row for row in read_table(path) if int(row["step"]) <= step]
        self.columns = tuple(kept[0]) if kept else ()
        path.parent.mkdir(parents=True, exist_ok=True)
        text = io.StringIO(newline="")
        if kept:
            writer = csv.DictWriter(text, self.columns)
            writer.writeheader()
            writer.writerows(kept)
        write_whole(path, text.getvalue().encode())

    def add(self, step: int, values: Mapping[str, object]) -> None:
        """Appends one row; absent values stay empty."""
        row = {"step": step, **values}
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, self.columns or tuple(row))
            if not self.columns:
                self.columns = tuple(row)
                writer.writeheader()
            writer.writerow(row)


def read_table(path: Path) -> list[dict[str, str]]:
    """Returns the rows of a table as texts by column; none where there is no file.

    The last row may have been cut off with its process; it is none then.
    """
    if not path.exists():
        return []
    text = path.read_bytes().decode()
    whole = text[: text.rfind("\n") + 1]
    return list(csv.DictReader(io.StringIO(whole, newline="")))
