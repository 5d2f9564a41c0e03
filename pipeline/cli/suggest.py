"""`penstock suggest`: filters with their evidence against as many episodes at random."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from typing import Annotated

import typer

from pipeline.cli.output import Json, StoreRef, emit, say, table
from pipeline.cli.reaching import TlsCa


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(
        "suggest",
        help="Propose a filter with its evidence; applies nothing.\n\n"
        "Example: penstock suggest ./store --target success",
    )(suggest)


def suggest(
    store: StoreRef,
    target: Annotated[
        str | None,
        typer.Option("--target", metavar="COLUMN", help="success, episode_return, a label."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the random subsets.")] = 0,
    most: Annotated[int, typer.Option("--most", min=1, help="Candidates to show.")] = 5,
    tls_ca: TlsCa = None,
    json: Json = False,
) -> None:
    from pipeline.curation.suggest import suggest as suggested
    from pipeline.store.store import open_version

    version = open_version(store)
    found = suggested(version, target, seed=seed, most=most)
    best = found.proposed
    command = None
    if best is not None:
        where = shlex.quote(best.where)
        command = (
            f"penstock curate {shlex.quote(store)} --where {where} --unscored drop --branch clean"
        )
    if json:
        emit(
            {
                "version": version.id,
                "target": found.target,
                "episodes": found.episodes,
                "tasks": found.tasks,
                "tried": found.tried,
                "candidates": [
                    {**asdict(one), "beats_random": one.beats_random} for one in found.candidates
                ],
                "proposed": best.where if best else None,
                "command": command,
                "sentence": found.sentence(),
            }
        )
        return
    table(
        ("filter", "kept", f"mean {found.target}", "at random", "gain", "95 %", "p", "verdict"),
        [
            (
                one.where,
                one.kept,
                one.kept_mean,
                one.random_mean,
                one.gain,
                f"{one.low:.3g}..{one.high:.3g}",
                one.p,
                "beats random" if one.beats_random else "no better than random",
            )
            for one in found.candidates
        ],
    )
    say(found.sentence())
    if command is not None:
        say(command)
