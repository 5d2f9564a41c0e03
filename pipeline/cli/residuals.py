"""`penstock residuals`: scores by networks, of episodes that they have not seen."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.cli.output import (
    Json,
    Observations,
    StoreRef,
    comma_names,
    emit,
    metric_table,
    say,
)


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(
        "residuals",
        help="Score a version's episodes by networks trained on its other episodes.\n\n"
        "Example: penstock residuals ./store --folds 4 --epochs 60",
    )(residuals)


def residuals(
    store: StoreRef,
    folds: Annotated[int, typer.Option("--folds", min=2, help="Networks.")] = 4,
    epochs: Annotated[int, typer.Option("--epochs", min=1)] = 60,
    hidden: Annotated[str, typer.Option("--hidden", help="Widths of hidden layers.")] = "128,128",
    seed: Annotated[int, typer.Option("--seed")] = 0,
    observations: Observations = None,
    branch: Annotated[str | None, typer.Option("--branch", help="Where the scores go.")] = None,
    device: Annotated[str, typer.Option("--device", help="cpu or cuda.")] = "cpu",
    json: Json = False,
) -> None:
    from learners.residuals import measure_residuals
    from pipeline.store.store import open_version
    from schemas.errors import UsageError
    from schemas.metrics import FeatureSpec, NetworkConfig

    widths = hidden.split(",")
    if not all(width.strip().isdecimal() and int(width) for width in widths):
        raise UsageError(f"Expected --hidden as widths such as 128,128, came {hidden!r}.")
    outcome = measure_residuals(
        open_version(store),
        NetworkConfig(folds=folds, epochs=epochs, hidden=tuple(map(int, widths)), seed=seed),
        FeatureSpec(observations=comma_names(observations) or None),
        branch=branch,
        device=device,
    )
    if json:
        emit(
            {
                "version": outcome.version.id,
                "number": outcome.version.number,
                "score_set": outcome.score_set,
                "episodes_scored": outcome.episodes_scored,
                "metrics": outcome.metrics,
            }
        )
        return
    metric_table(outcome.metrics)
    place = f"{outcome.version.branch}:{outcome.version.number}"
    say(f"{place}: {outcome.episodes_scored:,} episodes scored by {folds} networks")
