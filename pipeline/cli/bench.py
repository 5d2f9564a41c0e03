"""`penstock bench`: the project's own benchmarks, as anyone can run them."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pipeline.cli.output import Json, emit, table


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("bench", help="Measure this machine.\n\nExample: penstock bench stream")(bench)


def bench(
    what: Annotated[str, typer.Argument(help="stream or store")] = "stream",
    rows: Annotated[int, typer.Option("--rows", min=10_000)] = 1_000_000,
    commits: Annotated[int, typer.Option("--commits", min=10, help="Of the store.")] = 1_000,
    json: Json = False,
) -> None:
    from schemas.errors import UnknownNameError, suggest

    if what == "stream":
        from pipeline.stream.bench import bench_stream

        result = bench_stream(rows=rows)
        shown: list[tuple[Any, ...]] = [
            (r["name"], r["batches_per_cpu_second"], r["ratio"]) for r in result["results"]
        ]
        columns: tuple[str, ...] = ("what", "batches per CPU second", "of the ceiling")
    elif what == "store":
        from pipeline.store.bench import bench_store

        result = bench_store(commits=commits, rows=rows)
        shown = [*result.items()]
        columns = ("what", "value")
    else:
        known = ("stream", "store")
        raise UnknownNameError(f"Expected a benchmark, came {what!r}; {suggest(what, known)}")
    if json:
        emit(result)
    else:
        table(columns, shown)
