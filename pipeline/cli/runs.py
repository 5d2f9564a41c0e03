"""What runs read, both ways: `run`, `replay`, `seen`."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.output import Json, emit, say, table
from pipeline.cli.reaching import TlsCa

if TYPE_CHECKING:
    from pipeline.store.runs import RunReference

Store = Annotated[str, typer.Argument(metavar="STORE", help="A path or URL.")]
Run = Annotated[str, typer.Argument(metavar="RUN", help="As `penstock run list` names it.")]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    group = typer.Typer(
        help="What learner runs read.\n\nExample: penstock run list ./store",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    group.command("list", help="All runs of a store.\n\nExample: penstock run list ./store")(
        list_runs
    )
    group.command(
        "show",
        help="The versions of a run, from which step on.\n\n"
        "Example: penstock run show ./store iql-0123456789ab",
    )(show)
    group.command(
        "forget",
        help="Let go of what a run read; collection may delete it then.\n\n"
        "Example: penstock run forget ./store iql-0123456789ab",
    )(forget)
    app.add_typer(group, name="run")
    app.command(
        "replay",
        help="Make one batch of a run again.\n\n"
        "Example: penstock replay runs/iql --step 1200 --out batch.npz",
    )(replay)
    app.command(
        "seen",
        help="Which runs could draw an episode, or how often they did.\n\n"
        "Example: penstock seen ./store hopper/medium-v0/episode_3 --exact --until-step 20000",
    )(seen)


def list_runs(store: Store, tls_ca: TlsCa = None, json: Json = False) -> None:
    from pipeline.store import runs
    from pipeline.store.store import open_store

    catalog = open_store(store).catalog
    found = {name: runs.references(catalog, name) for name in runs.runs(catalog)}
    if json:
        emit({"runs": {name: _documents(references) for name, references in found.items()}})
        return
    rows = [
        (name, refs[0].created_at.isoformat(" ", "seconds"), _changes(refs), _named(refs[-1]))
        for name, refs in found.items()
    ]
    table(("run", "began", "versions read", "reads last"), rows)


def show(store: Store, run: Run, tls_ca: TlsCa = None, json: Json = False) -> None:
    from pipeline.store import runs
    from pipeline.store.store import open_store

    found = runs.references(open_store(store).catalog, run)
    if json:
        emit({"run": run, "references": _documents(found)})
        return
    rows = [(r.step, _named(r), "; ".join(map(_settings, r.streams)) + _weights(r)) for r in found]
    table(("from step", "versions", "drawn"), rows)


def forget(store: Store, run: Run, json: Json = False) -> None:
    from pipeline.store import runs
    from pipeline.store.store import open_store

    count = runs.forget(open_store(store).catalog, run)
    if json:
        emit({"run": run, "forgotten": count})
    else:
        say(f"{run}: {count} references forgotten")


def replay(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Folder of a run.")],
    step: Annotated[int, typer.Option("--step", min=0, help="Number of the batch, from 0.")],
    out: Annotated[str | None, typer.Option("--out", metavar="FILE", help="An .npz file.")] = None,
    tls_ca: TlsCa = None,
    json: Json = False,
) -> None:
    import numpy as np

    from learners.replay import replay as make_again

    made = make_again(run, step)
    ids = [str(name) for name in made.batch["episode_ids"]]
    if out is not None:
        texts = {"episode_ids": np.array(ids)}
        np.savez(out, allow_pickle=False, **{**made.batch, **texts})
    said: dict[str, Any] = {
        "run": run,
        "step": step,
        "versions": list(made.versions),
        "rows": made.rows,
        "indices": made.batch["indices"].tolist(),
        "episode_ids": ids,
    }
    if json:
        emit(said)
        return
    say(f"batch {step}: {len(ids)} rows of {len(set(ids))} episodes, rows {made.rows[:16]}")
    for version in made.versions:
        say(f"  {version}")
    if out is not None:
        say(f"written to {out}")


def seen(
    store: Store,
    episode: Annotated[str, typer.Argument(metavar="EPISODE", help="Its id.")],
    exact: Annotated[
        bool, typer.Option("--exact", help="Count the batches that drew it, by drawing again.")
    ] = False,
    until_step: Annotated[
        int | None,
        typer.Option("--until-step", min=0, metavar="N", help="Count the first N batches of runs."),
    ] = None,
    run: Annotated[
        str | None, typer.Option("--run", metavar="RUN", help="Count this run alone.")
    ] = None,
    tls_ca: TlsCa = None,
    json: Json = False,
) -> None:
    from pipeline.store.store import open_store
    from pipeline.stream.seen import could_draw, drew
    from schemas.errors import UsageError

    if not exact and (until_step is not None or run is not None):
        raise UsageError("Expected --exact beside --until-step and --run, came them alone.")
    opened = open_store(store)
    found = drew(opened, episode, until_step, run) if exact else could_draw(opened, episode)
    if json:
        emit({"episode": episode, "runs": found})
        return
    told = ("batches", "rows") if exact else ("steps_share",)
    columns = ("run", "from_step", "until_step", "version", *told)
    table(columns, [tuple(row[name] for name in columns) for row in found])
    if not found:
        drawn = "drew it" if exact else "could draw it"
        say(f"No run that this store knows of {drawn}.")


def _documents(references: list[RunReference]) -> list[dict[str, Any]]:
    return [reference.model_dump(mode="json") for reference in references]


def _named(reference: RunReference) -> str:
    return ", ".join(f"{v.branch}:{v.number} ({v.id[:8]})" for v in reference.versions)


def _changes(references: list[RunReference]) -> int:
    versions = [reference.versions for reference in references]
    return 1 + sum(one != two for one, two in itertools.pairwise(versions))


def _weights(reference: RunReference) -> str:
    mixture = reference.mixture
    return "" if mixture is None else f"; weights {', '.join(mixture.weights)}"


def _settings(stream: Any) -> str:
    return ", ".join(f"{name}={value}" for name, value in stream.items()) or "as by default"
