"""Tables of a run: CSV files that grow row by row and can go back to an earlier step.

A resumed run first drops the rows beyond its checkpoint, so that a table reads as if the run had
never stopped. Where the run's folder has one for TensorBoard, the same rows go there, too.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from learners.boards import FOLDER, Board
from learners.files import write_whole

METRICS = "metrics.csv"
EVALUATIONS = "evaluations.csv"


class Table:
    """One CSV file whose first column is `step`; rows may bring further columns.

    Args:
        path: the file.
        step: rows up to and including this step are kept.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        kept = [row for row in read_table(path) if int(row["step"]) <= step]
        self.columns = tuple(kept[0]) if kept else ()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._write(kept)
        self._board: Board | None = None
        if (path.parent / FOLDER).is_dir():
            rows = [(int(row["step"]), _without_step(row)) for row in kept]
            self._board = Board(path.parent / FOLDER / path.stem, rows)

    def add(self, step: int, values: Mapping[str, object]) -> None:
        """Appends one row; absent values stay empty."""
        row = {"step": step, **values}
        if any(name not in self.columns for name in row):
            self._widen(tuple(row))
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns).writerow(row)
        if self._board is not None:
            self._board.add(step, values)

    def _widen(self, names: Sequence[str]) -> None:
        kept = read_table(self.path)
        self.columns = (*self.columns, *(name for name in names if name not in self.columns))
        self._write(kept)

    def _write(self, rows: Sequence[Mapping[str, object]]) -> None:
        text = io.StringIO(newline="")
        if self.columns:
            writer = csv.DictWriter(text, self.columns)
            writer.writeheader()
            writer.writerows(rows)
        write_whole(self.path, text.getvalue().encode())


def read_table(path: Path) -> list[dict[str, str]]:
    """Returns the rows of a table as texts by column; none where there is no file.

    The last row may have been cut off with its process; it is none then.
    """
    if not path.exists():
        return []
    text = path.read_bytes().decode()
    whole = text[: text.rfind("\n") + 1]
    return list(csv.DictReader(io.StringIO(whole, newline="")))


def _without_step(row: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in row.items() if name != "step"}
