"""`penstock bench`: the project's own benchmarks, as anyone can run them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.cli.output import Json, emit, note, say, table


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("bench", help="Measure this machine.\n\nExample: penstock bench stream")(bench)


def bench(
    what: Annotated[
        str, typer.Argument(help="stream, store, ingest, measure, service or learner")
    ] = "stream",
    rows: Annotated[
        int | None, typer.Option("--rows", min=1_000, help="1,000,000; of measure 100,000.")
    ] = None,
    commits: Annotated[int, typer.Option("--commits", min=10, help="Of the store.")] = 1_000,
    rounds: Annotated[
        int | None,
        typer.Option("--rounds", min=1, help="Of stream (8), ingest, service (3), learner (9)."),
    ] = None,
    formats: Annotated[
        list[str] | None, typer.Option("--format", help="Of ingest; all by default.")
    ] = None,
    workloads: Annotated[
        list[str] | None, typer.Option("--workload", help="Of stream: L1 to L4; all by default.")
    ] = None,
    peers: Annotated[
        bool, typer.Option(help="Of stream and service: whether other projects take part.")
    ] = True,
    quick: Annotated[
        bool, typer.Option("--quick", help="Of stream, service and learner: less, few turns.")
    ] = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Of stream: shares of the ceiling, .png or .svg.")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            "--device",
            help="Of stream: batches that end up there, such as cuda. Of learner: rates there, "
            "of each form of updates, of seeds side by side, of streamed batches.",
        ),
    ] = None,
    compile: Annotated[
        str | None,
        typer.Option(
            "--compile",
            help="Of learner: how ours take updates: none, step, or graph on a GPU; with --device "
            "all of them by default.",
        ),
    ] = None,
    algos: Annotated[
        list[str] | None,
        typer.Option("--algo", help="Of learner, several times; by default those compared."),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option("--seeds", min=2, help="Of learner: agents side by side.")
    ] = None,
    json: Json = False,
) -> None:
    from schemas.errors import UnknownNameError, suggest

    if what == "stream" and device is not None:
        result = _on_device(device, rows or 1_000_000)
    elif what == "stream":
        result = _stream(rows, rounds, tuple(workloads or ()), has_peers=peers, is_quick=quick)
        if plot is not None:
            from pipeline.stream.bench_plot import plot_stream

            plot_stream(result, plot)
    elif what == "store":
        from pipeline.store.bench import bench_store

        result = bench_store(commits=commits, rows=rows or 1_000_000)
    elif what == "ingest":
        from pipeline.jobs.bench import bench_ingest

        result = bench_ingest(rows=rows or 1_000_000, rounds=rounds or 3, datasets=formats or ())
    elif what == "measure":
        from pipeline.jobs.bench_measure import bench_measure

        result = bench_measure(rows or 100_000, say=note)
    elif what == "service":
        from pipeline.service.bench import ServiceBench, bench_service
        from pipeline.service.extra import check_installed

        check_installed()
        config = ServiceBench(seconds=0.5, rounds=1) if quick else ServiceBench()
        config = dataclasses.replace(config, rounds=rounds or config.rounds)
        result = bench_service(config, say=note)
        if peers:
            from pipeline.service.bench_peers import killed, reverb

            note("a kill -9, and Reverb")
            result |= {"kill_9": killed(), "reverb": reverb(config.seconds)}
    elif what == "learner":
        asked = {"rows": rows, "rounds": rounds, "algos": tuple(algos or ()), "seeds": seeds}
        result = _learner(asked, compile, device, is_quick=quick)
    else:
        known = ("stream", "store", "ingest", "measure", "service", "learner")
        raise UnknownNameError(f"Expected a benchmark, came {what!r}; {suggest(what, known)}")
    if json:
        emit(result)
    elif what in ("stream", "learner") and device is not None:
        (_show_device if what == "stream" else _show_rates)(result)
    else:
        shows = {"stream": show_stream, "store": _show_store, "ingest": _show_ingest}
        shows |= {"measure": _show_measure, "service": _show_service, "learner": _show_learner}
        shows[what](result)


def _stream(
    rows: int | None,
    rounds: int | None,
    workloads: tuple[str, ...],
    *,
    has_peers: bool,
    is_quick: bool,
) -> dict[str, Any]:
    from pipeline.stream.bench import QUICK, BenchConfig, bench_stream

    given = {"rows": rows, "rounds": rounds, "workloads": workloads}
    asked = {name: value for name, value in given.items() if value}
    config = QUICK if is_quick else BenchConfig()
    config = dataclasses.replace(config, has_peers=has_peers, **asked)  # type: ignore[arg-type]
    return bench_stream(config, say=note)


def show_stream(result: dict[str, Any]) -> None:
    """Prints a table per workload."""
    from pipeline.stream.bench_cases import TITLES

    machine = result["machine"]
    say(
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gb']} GiB, load "
        f"{machine['load_before']} before and {machine['load_after']} after"
    )
    columns = ("who", "best", "median", "of the ceiling", "wall", "first batch, s", "peak MB")
    for name, rows in result["workloads"].items():
        shown = [
            (
                *(row["name"], _rate(row["best"]), _rate(row["median"])),
                *(row["best_of_ceiling"], _rate(row["wall"]), row.get("first_batch_s")),
                *(row["peak_mb"], _verdict(row)),
            )
            for row in rows
        ]
        unit = rows[0]["unit"] if rows else ""
        table((*columns, "compared with the source"), shown, f"{name}: {TITLES[name]}; {unit}")
        ratios = result["ratios"][name]
        told = [f"{who} {value:.3g}" for who, value in ratios.items() if isinstance(value, float)]
        say("Penstock over: " + ", ".join(told) if told else "")
    for title, why in {**result["skipped"], **result["failed"]}.items():
        note(f"{title}: {why}")


def _rate(value: float) -> float | int:
    return value if value < 100 else round(value)


def _verdict(row: dict[str, Any]) -> str:
    if "is_whole" in row:
        return "" if row["is_whole"] else f"broken off after {row['rows']:,} rows"
    return "; ".join(row["checks"]["failing"]) or "right"


def _show_store(result: dict[str, Any]) -> None:
    table(("what", "value"), [*result.items()])


def _show_measure(result: dict[str, Any]) -> None:
    say(f"{result['rows']:,} steps")
    cases = [(one["name"], one["cpu_seconds"], f"{one['per_second']:,}") for one in result["cases"]]
    table(("metrics", "CPU s", "steps per CPU s"), cases)
    divergence = result["divergence"]
    say(f"action_divergence {divergence['found']:.4f}, in truth {divergence['true']:.4f}")


def _show_service(result: dict[str, Any]) -> None:
    rows = [tuple(row.values()) for row in result["pushes"]]
    rates = ("durable pushes", "pushed", "puts/s", "steps/s")
    columns = (*rates, "ack p50, ms", "p99, ms", "p50 of fdatasync")
    table(columns, rows)
    others = {name: value for name, value in result.items() if name not in ("pushes", "machine")}
    table(("what", "value"), [*others.items()])


def _show_ingest(result: dict[str, Any]) -> None:
    shown: list[tuple[Any, ...]] = [
        (r["dataset"], r["name"], r["cpu_s"], r["steps_per_cpu_second"], r["over_reading"])
        for r in result["results"]
    ]
    shown += [(name, "failed", why, "", "") for name, why in result["failed"].items()]
    columns = ("dataset", "who", "CPU s", "steps per CPU second", "over reading alone")
    table(columns, shown)


def _learner(
    asked: dict[str, Any], compile: str | None, device: str | None, *, is_quick: bool
) -> dict[str, Any]:
    from schemas.errors import UnknownNameError, suggest

    ways = ("none", "step", "graph")
    if compile is not None and compile not in ways:
        raise UnknownNameError(
            f"Expected a way to take updates, came {compile!r}; {suggest(compile, ways)}"
        )
    from learners.bench import QUICK, LearnerBench, bench_learner
    from learners.bench_rates import QUICK_RATES, RateBench, bench_rates

    asked = {name: value for name, value in asked.items() if value}
    if device is None:
        config = QUICK if is_quick else LearnerBench()
        asked |= {} if compile is None else {"compile": compile}
        return bench_learner(dataclasses.replace(config, **asked), note)
    asked |= {"device": device} if compile is None else {"device": device, "forms": (compile,)}
    return bench_rates(dataclasses.replace(QUICK_RATES if is_quick else RateBench(), **asked), note)


def _show_learner(result: dict[str, Any]) -> None:
    machine = result["machine"]
    say(
        f"{machine['processor']}, one thread of {machine['cores']} cores, "
        f"torch {machine['torch']}, "
        f"load {machine['load_before']} before and {machine['load_after']} after"
    )
    columns = ("who", "best", "median", "of the products' bound", "over the plain script")
    for algo, found in result["results"].items():
        ratios = found["over_plain"]
        shown = [
            (row["name"], row["best"], row["median"], row["of_bound"], ratios.get(row["name"]))
            for row in found["rows"]
        ]
        shown.append(("products alone", found["bound"], "", 1, ""))
        shown.append(("products alone, of the plain script", found["bound of plain"], "", 1, ""))
        title = f"{algo}, batches of {result['batch_size']}; agent-updates per CPU second"
        table(columns, shown, title)


def _show_rates(result: dict[str, Any]) -> None:
    machine = result["machine"]
    say(
        f"{machine['device']}, torch {machine['torch']}, load {machine['load_before']} before and "
        f"{machine['load_after']} after; agent-updates per {result['per']}"
    )
    columns = ("algorithm", "compile", "agents", "batches", "rows", "best", "median", "first, s")
    names = ("algo", "compile", "agents", "data", "batch_size", "best", "median", "first_seconds")
    table(columns, [tuple(row[name] for name in names) for row in result["rows"]])
    ratios = [
        (algo, one["streamed"], one["side_by_side"]) for algo, one in result["ratios"].items()
    ]
    table(("algorithm", "streamed over resident", "side by side over one"), ratios)


def _on_device(device: str, rows: int) -> dict[str, Any]:
    from pipeline.stream.bench_device import bench_device

    return bench_device(rows=rows, device=device)


def _show_device(result: dict[str, Any]) -> None:
    shown = [
        (r["name"], r["batches_per_second"], r["trained_per_second"], r["of_training_alone"])
        for r in result["results"]
    ]
    shown.append(("training on one batch that stays", "", result["training_alone_per_second"], 1))
    table(("what", "batches per second", "trained per second", "of training alone"), shown)
