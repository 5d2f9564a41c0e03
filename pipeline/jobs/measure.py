"""Scoring a version: fit the reference or take the one there is, score what is new, commit.

Scores are relative to a frozen reference, by default the first version measured on the branch, so
that later episodes are judged by the same standard and only they are scored. An engine decides
who does the work; the numbers are the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import pyarrow.compute as pc

from pipeline.jobs import score_sets, scoring
from pipeline.jobs.engines import refuse_local_store
from pipeline.jobs.processes import Processes
from pipeline.jobs.progress import Listener
from pipeline.jobs.score_sets import Measured, Prepared
from pipeline.jobs.scoring import Work
from pipeline.quality.reference import ReferenceModel
from pipeline.quality.steps import STEP_METRICS, step_readings
from pipeline.store.reader import Version
from pipeline.store.store import Store
from schemas.errors import UnknownNameError, UnscoredError, missing_extra, suggest
from schemas.jobs import EngineConfig
from schemas.metrics import MeasureConfig

S = TypeVar("S")
R = TypeVar("R")

PIECES = 4
"""Works per worker, so that one slow piece does not hold up the others."""
UNKNOWN_WORKERS = 16
"""What is assumed of clusters whose size is not known beforehand."""


def measure_version(
    store: Store,
    ref: str,
    config: MeasureConfig,
    *,
    reference: str | None = None,
    branch: str | None = None,
    listener: Listener | None = None,
    engine: EngineConfig | None = None,
    shared_filesystem: bool = False,
) -> Measured:
    """Scores a version's episodes and commits the scores as an overlay.

    Args:
        store: where.
        ref: the version; where it is not a branch's head, `branch` says where the scores go.
        config: which metrics, of which features.
        reference: fit a new reference on this version; by default the branch's first one holds.
        branch: where the scores go; made at the version if there is none of that name.
        listener: hears of episodes and steps as they are scored.
        engine: what does the work; by default this process alone.
        shared_filesystem: workers on other hosts see a local store at the same path.

    Raises:
        UsageError: if the version is not a branch's head and no branch is named, or for a local
            store and workers on other hosts.
    """
    engine = engine or EngineConfig()
    workers = engine.workers or (1 if engine.engine == "in-process" else UNKNOWN_WORKERS)
    # A single worker gets unit by unit, which costs nothing and shows progress.
    pieces = PIECES * workers if workers > 1 else scoring.MOST_WORKS
    prepared = score_sets.prepare(
        store, ref, config, reference=reference, branch=branch, pieces=pieces
    )
    if not prepared.to_fit and not prepared.to_score:
        return score_sets.finish(prepared, score_sets.known_model(prepared), ())
    if engine.engine == "dask":
        return _on_dask(prepared, engine, listener, shared_filesystem)
    if engine.engine == "beam":
        return _on_beam(prepared, engine, listener, shared_filesystem)
    if min(workers, len(prepared.to_score)) < 2:
        return carry_out(prepared, _here, listener)
    with Processes(workers) as processes:
        return carry_out(prepared, _in(processes), listener)


def score_steps(version: Version, episode_id: str) -> dict[str, np.ndarray]:
    """Returns one episode's readings step by step, from the reference its scores are relative to.

    Returns:
        (T,) float64 arrays, as `quality.steps.step_readings` says.

    Raises:
        NotFoundError: if the version has no such episode.
        UnscoredError: if it was not measured against a reference.
    """
    episode = version.episode(episode_id)
    model = _shown_model(version)
    facts = version.episodes(columns=["episode_id", "spec"])
    at = pc.index(facts["episode_id"], episode_id).as_py()
    return step_readings(episode, model.of_spec(facts["spec"][at].as_py()))


def commit_step_scores(
    version: Version,
    names: Sequence[str],
    *,
    branch: str | None = None,
    listener: Listener | None = None,
) -> Version:
    """Commits readings step by step as arrays of steps, each under its metric's name.

    Args:
        version: a measured one.
        names: of `quality.steps.STEP_METRICS`.
        branch: where to; by default the version's own, whose head it must be.
        listener: hears of episodes and steps as they are read.

    Raises:
        UnknownNameError: for a metric that has no reading per step.
        UnscoredError: if the version was not measured against a reference.
    """
    for name in names:
        if name not in STEP_METRICS:
            raise UnknownNameError(
                f"Expected metrics out of {', '.join(STEP_METRICS)}, came {name!r}; "
                f"{suggest(name, STEP_METRICS)}"
            )
    model = _shown_model(version)
    found: dict[str, dict[str, np.ndarray]] = {name: {} for name in names}
    for spec in version.specs:
        own = model.of_spec(spec)
        for episode in version.iter_episodes(f"spec == '{spec}'"):
            read = step_readings(episode, own)
            for name in names:
                if name in read:
                    found[name][episode.episode_id] = read[name].astype(np.float32)
            if listener is not None:
                listener(1, episode.length)
    for name, values in found.items():
        if values:
            version = version.annotate_steps(name, values, branch=branch, how="measure --steps")
            branch = None
    return version


def _shown_model(version: Version) -> ReferenceModel:
    model = score_sets.shown_model(version)
    if model is None:
        raise UnscoredError(
            "Expected a version that was measured against a reference, came one that was not; "
            "run `penstock measure` first.",
            where=version.store.url,
        )
    return model


def carry_out(prepared: Prepared, mapper: scoring.Mapper, listener: Listener | None) -> Measured:
    """Carries out a metric run by a mapper and commits from this process."""
    model = score_sets.known_model(prepared)
    if prepared.to_fit:
        model = scoring.fit(mapper, prepared.to_fit, prepared.config)
    home = []
    for outcome in mapper(scoring.score, model, prepared.to_score):
        if listener is not None:
            listener(outcome.episodes, outcome.steps)
        home.append(outcome)
    return score_sets.finish(prepared, model, scoring.by_metrics(home))


def _here(function: Callable[[S, Work], R], frozen: S, works: Sequence[Work]) -> Iterator[R]:
    return map(functools.partial(function, frozen), works)


def _in(processes: Processes) -> scoring.Mapper:
    def spread(function: Callable[[S, Work], R], frozen: S, works: Sequence[Work]) -> Iterator[R]:
        return processes.map(functools.partial(function, frozen), works)

    return spread


def _on_dask(
    prepared: Prepared, engine: EngineConfig, listener: Listener | None, shared: bool
) -> Measured:
    try:
        from pipeline.jobs import on_dask  # noqa: PLC0415 (an optional extra)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "distributed":
            raise
        raise missing_extra("cluster", "distributed") from error
    if engine.address is not None and not shared:
        refuse_local_store(prepared.catalog.url, f"Dask workers of {engine.address}")
    with on_dask.cluster(engine.address, engine.workers) as client:
        return carry_out(prepared, on_dask.mapper(client), listener)


def _on_beam(
    prepared: Prepared, engine: EngineConfig, listener: Listener | None, shared: bool
) -> Measured:
    from pipeline.jobs import on_beam  # noqa: PLC0415 (0.6 s that the others need not spend)

    runner = engine.runner or on_beam.IN_PROCESS
    on_beam.refuse_dask(runner)
    options = on_beam.with_workers(runner, engine.options, engine.workers)
    if on_beam.is_elsewhere(runner, options) and not shared:
        refuse_local_store(prepared.catalog.url, f"workers of Beam's {runner}")
    return on_beam.run_measure(prepared, runner=runner, options=options, listener=listener)
