"""`penstock measure`: scores a version and commits the overlay."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.cli.output import Json, StoreRef, emit, say, table


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(
        "measure",
        help="Score a version's episodes.\n\nExample: penstock measure ./store --metrics "
        "action_divergence,transition_diversity",
    )(measure)


def measure(
    store: StoreRef,
    metrics: Annotated[
        str | None, typer.Option("--metrics", help="Names, a,b; default all.")
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option("--reference", metavar="REF", help="Score against this version anew."),
    ] = None,
    observations: Annotated[
        str | None, typer.Option("--observations", help="Fields that count as state, a,b.")
    ] = None,
    branch: Annotated[str | None, typer.Option("--branch", help="Where the scores go.")] = None,
    json: Json = False,
) -> None:
    from pipeline.cli.progress import steps_bar
    from pipeline.jobs.measure import measure_version
    from pipeline.store.store import open_store, parse_ref
    from schemas.metrics import FeatureSpec, MeasureConfig

    url, ref = parse_ref(store)
    config = MeasureConfig(
        metrics=tuple(metrics.split(",")) if metrics else None,
        features=FeatureSpec(observations=tuple(observations.split(",")) if observations else None),
    )
    opened = open_store(url)
    with steps_bar("measure", quiet=json) as listener:
        outcome = measure_version(
            opened, ref, config, reference=reference, branch=branch, listener=listener
        )
    if json:
        emit(
            {
                "version": outcome.version.id,
                "number": outcome.version.number,
                "score_set": outcome.score_set,
                "episodes_scored": outcome.episodes_scored,
                "episodes_reused": outcome.episodes_reused,
                "metrics": outcome.metrics,
            }
        )
        return
    table(
        ("metric", "value", "standard error", "episodes", "coverage"),
        [
            (n, m.value, m.standard_error, m.episodes, m.coverage)
            for n, m in outcome.metrics.items()
        ],
    )
    say(
        f"{outcome.version.branch}:{outcome.version.number}: {outcome.episodes_scored:,} episodes "
        f"scored, {outcome.episodes_reused:,} scores kept"
    )
