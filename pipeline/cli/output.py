"""How commands speak: one JSON object for machines, tables for people, errors in one sentence.

With `--json` the object is alone on stdout; everything else goes to stderr.
"""

from __future__ import annotations

import datetime as dt
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import typer

from schemas.plain import plain

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
StoreRef = Annotated[
    str, typer.Argument(metavar="STORE[@REF]", help="A store, and a branch, tag, BRANCH:N or id.")
]
StoreArg = Annotated[str, typer.Argument(metavar="STORE", help="Path of the store.")]


Observations = Annotated[
    str | None, typer.Option("--observations", help="Fields that count as state, a,b.")
]


def comma_names(text: str | None) -> tuple[str, ...]:
    """Returns the names of an option such as `a,b`; none where it is not given."""
    return tuple(text.split(",")) if text else ()


def emit(value: Any) -> None:
    """Prints one JSON object on stdout."""
    print(json.dumps(plain(value), ensure_ascii=False))


def say(text: str) -> None:
    """Prints a line for people on stdout."""
    print(text)


def note(text: str) -> None:
    """Prints a line on stderr."""
    print(text, file=sys.stderr)


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str | None = None) -> None:
    """Prints a table on stdout: numbers to the right, texts to the left."""
    from rich.console import Console
    from rich.table import Table

    console = Console() if sys.stdout.isatty() else Console(width=180)
    grid = Table(title=title, box=None, pad_edge=False, header_style="bold")
    held = [tuple(row) for row in rows]
    for index, name in enumerate(columns):
        is_text = index == 0 or any(isinstance(row[index], str) for row in held)
        grid.add_column(name, justify="left" if is_text else "right", overflow="fold")
    for row in held:
        grid.add_row(*(cell(value) for value in row))
    console.print(grid)


def cell(value: Any) -> str:
    """Returns one value as a person would write it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dt.datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S")
    return str(value)


def size(count: int) -> str:
    """Returns a number of bytes as people say it."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return ""


def metric_table(metrics: Mapping[str, Any]) -> None:
    """Prints a version's metrics, `schemas.metrics.MetricValue` by name."""
    table(
        ("metric", "value", "standard error", "episodes", "coverage"),
        [(name, m.value, m.standard_error, m.episodes, m.coverage) for name, m in metrics.items()],
    )
