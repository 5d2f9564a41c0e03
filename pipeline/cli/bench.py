"""`penstock bench`: the project's own benchmarks, as anyone can run them."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pipeline.cli.output import Json, emit, table


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("bench", help="Measure this machine.\n\nExample: penstock bench stream")(bench)


def bench(
    what: Annotated[str, typer.Argument(help="stream, store or ingest")] = "stream",
    rows: Annotated[int, typer.Option("--rows", min=1_000)] = 1_000_000,
    commits: Annotated[int, typer.Option("--commits", min=10, help="Of the store.")] = 1_000,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Of ingest.")] = 3,
    formats: Annotated[
        list[str] | None, typer.Option("--format", help="Of ingest; all by default.")
    ] = None,
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
    elif what == "ingest":
        from pipeline.jobs.bench import bench_ingest

        result = bench_ingest(rows=rows, rounds=rounds, datasets=formats or ())
        shown = [
            (r["dataset"], r["name"], r["cpu_s"], r["steps_per_cpu_second"], r["over_reading"])
            for r in result["results"]
        ]
        shown += [(name, "failed", why, "", "") for name, why in result["failed"].items()]
        columns = ("dataset", "who", "CPU s", "steps per CPU second", "over reading alone")
    else:
        known = ("stream", "store", "ingest")
        raise UnknownNameError(f"Expected a benchmark, came {what!r}; {suggest(what, known)}")
    if json:
        emit(result)
    else:
        table(columns, shown)
