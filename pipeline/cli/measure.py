"""`penstock measure`: scores a version and commits the overlay."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

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

if TYPE_CHECKING:
    from schemas.jobs import EngineConfig


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
    steps: Annotated[
        str | None,
        typer.Option("--steps", help="Metrics to keep step by step, too, a,b."),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option("--reference", metavar="REF", help="Score against this version anew."),
    ] = None,
    observations: Observations = None,
    relative_actions: Annotated[
        bool, typer.Option("--relative-actions", help="Score differences of actions.")
    ] = False,
    angles: Annotated[
        str | None, typer.Option("--angles", help="Fields or FIELD:DIM in radians, a,b.")
    ] = None,
    grippers: Annotated[
        str | None, typer.Option("--grippers", help="Actions or FIELD:DIM that open and close.")
    ] = None,
    embedding: Annotated[
        str | None, typer.Option("--embedding", help="Field that holds embedded pictures.")
    ] = None,
    encoder: Annotated[
        str | None, typer.Option("--encoder", help="Id of the encoder that made --embedding.")
    ] = None,
    return_random: Annotated[
        float | None, typer.Option("--return-random", help="Of a random policy.")
    ] = None,
    return_expert: Annotated[
        float | None, typer.Option("--return-expert", help="Of a reference policy.")
    ] = None,
    branch: Annotated[str | None, typer.Option("--branch", help="Where the scores go.")] = None,
    engine: Annotated[
        str, typer.Option(metavar="in-process|dask|beam", help="What does the work.")
    ] = "in-process",
    workers: Annotated[
        int | None, typer.Option(metavar="N", help="Processes that work at once.")
    ] = None,
    dask: Annotated[str | None, typer.Option(metavar="ADDRESS", help="A Dask scheduler.")] = None,
    runner: Annotated[str | None, typer.Option(help="A Beam runner, with --engine beam.")] = None,
    shared_filesystem: Annotated[
        bool, typer.Option("--shared-filesystem", help="Workers elsewhere see the same paths.")
    ] = False,
    json: Json = False,
) -> None:
    from pipeline.cli.progress import steps_bar
    from pipeline.jobs.measure import commit_step_scores, measure_version
    from pipeline.store.store import open_store, parse_ref
    from schemas.errors import UsageError
    from schemas.metrics import FeatureSpec, MeasureConfig

    work = _engine(engine, workers, dask, runner)
    url, ref = parse_ref(store)
    if (embedding is None) != (encoder is None):
        raise UsageError("Expected --embedding FIELD and --encoder ID together, came one of them.")
    config = MeasureConfig(
        metrics=comma_names(metrics) or None,
        features=FeatureSpec(
            observations=comma_names(observations) or None,
            relative_actions=relative_actions,
            angles=comma_names(angles),
            grippers=comma_names(grippers),
            embedding=embedding,
            encoder=encoder,
        ),
        return_random=return_random,
        return_expert=return_expert,
    )
    opened = open_store(url)
    with steps_bar("measure", quiet=json) as listener:
        outcome = measure_version(
            opened,
            ref,
            config,
            reference=reference,
            branch=branch,
            listener=listener,
            engine=work,
            shared_filesystem=shared_filesystem,
        )
    version = outcome.version
    if steps:
        with steps_bar("steps", quiet=json) as listener:
            version = commit_step_scores(version, comma_names(steps), listener=listener)
    if json:
        emit(
            {
                "version": version.id,
                "number": version.number,
                "score_set": outcome.score_set,
                "reference": outcome.reference,
                "fitted": outcome.fitted,
                "episodes_scored": outcome.episodes_scored,
                "episodes_reused": outcome.episodes_reused,
                "metrics": outcome.metrics,
            }
        )
        return
    metric_table(outcome.metrics)
    say(
        f"{version.branch}:{version.number}: {outcome.episodes_scored:,} episodes "
        f"scored, {outcome.episodes_reused:,} scores kept; relative to version "
        f"{outcome.reference[:8]}{', fitted now' if outcome.fitted else ''}"
    )


def _engine(engine: str, workers: int | None, dask: str | None, runner: str | None) -> EngineConfig:
    from pydantic import ValidationError

    from schemas.errors import UsageError
    from schemas.jobs import EngineConfig

    for option, value, belongs in (("--dask", dask, "dask"), ("--runner", runner, "beam")):
        if value is not None and engine != belongs:
            raise UsageError(f"Expected {option} with --engine {belongs} only, came {engine}.")
    try:
        return EngineConfig.model_validate(
            {"engine": engine, "address": dask, "workers": workers, "runner": runner}
        )
    except ValidationError as error:
        found = error.errors()[0]
        raise UsageError(
            f"Expected --{found['loc'][0]} to be right ({found['msg']}), came {found['input']!r}."
        ) from error
