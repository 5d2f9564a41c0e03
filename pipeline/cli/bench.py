"""`penstock bench`: the project's own benchmarks, as anyone can run them."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.cli.output import Json, emit, table


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("bench", help="Measure this machine.\n\nExample: penstock bench stream")(bench)


def bench(
    what: Annotated[str, typer.Argument(help="stream")] = "stream",
    rows: Annotated[int, typer.Option("--rows", min=10_000)] = 1_000_000,
    json: Json = False,
) -> None:
    from pipeline.stream.bench import bench_stream
    from schemas.errors import UnknownNameError, suggest

    if what != "stream":
        raise UnknownNameError(f"Expected a benchmark, came {what!r}; {suggest(what, ['stream'])}")
    result = bench_stream(rows=rows)
    if json:
        emit(result)
        return
    table(
        ("what", "batches per CPU second", "of the ceiling"),
        [(r["name"], r["batches_per_cpu_second"], r["ratio"]) for r in result["results"]],
    )
