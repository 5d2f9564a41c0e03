"""Offline training: a stream of a pinned version, an algorithm, a folder for the run.

The folder holds `metrics.csv`, `evaluations.csv` where the run evaluates, and the last checkpoint.
A run that was stopped goes on from there bit for bit (on the CPU), on the same versions.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field
from torch import Tensor

from learners.base import Batch, Learner, learner_class, make_learner
from learners.checkpoint import (
    Checkpoint,
    last_checkpoint,
    load_checkpoint,
    restore,
    save_checkpoint,
    snapshot,
)
from learners.data import BatchStream, Pinned, Sampling, fit, open_stream, pin, run_name
from learners.evaluate import evaluate
from learners.pixels import PixelSettings
from learners.run import (
    Progress,
    Report,
    RunResult,
    Timer,
    as_numbers,
    check_same,
    check_same_stream,
    evaluation_row,
    silent,
    threads,
    write_config,
)
from learners.runlog import EVALUATIONS, METRICS, Table
from learners.sampling import check_stream, rows_of
from learners.settings import Settings, StreamNeeds, read_settings
from schemas.errors import ConfigError, NameTakenError

FIXED = ("algo", "data", "settings", "batch_size", "seed", "discount", "sampler")
"""Settings that a resumed run must share with its beginning."""


class TrainConfig(Settings):
    """One offline run."""

    algo: str
    """Name of an algorithm."""
    data: tuple[str, ...]
    """`STORE[@REF][=WEIGHT]`, one or more."""
    out: str
    """Folder of the run."""
    steps: int = Field(default=100_000, gt=0)
    """Updates in all."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Hyperparameters that differ from the algorithm's defaults."""
    batch_size: int = Field(default=256, gt=0)
    """Rows of one batch."""
    seed: int = Field(default=0, ge=0)
    """Of initial weights and of the order of batches."""
    discount: float = Field(default=0.99, gt=0, le=1)
    """Gamma, applied by the stream."""
    sampler: str = "transition"
    """How the stream draws."""
    stream: dict[str, Any] = Field(default_factory=dict)
    """Further settings of the stream, of `learners.sampling.TAKEN`."""
    device: str = "cpu"
    """Where networks and batches live."""
    threads: int = Field(default=1, gt=0)
    """Torch's threads; small networks gain nothing from more."""
    log_every: int = Field(default=200, gt=0)
    """Updates between rows of `metrics.csv`."""
    checkpoint_every: int = Field(default=10_000, gt=0)
    """Updates between checkpoints; the last update always makes one."""
    environment: str | None = None
    """Where to evaluate; None never does."""
    evaluate_every: int = Field(default=0, ge=0)
    """Updates between evaluations; 0 evaluates the last policy only."""
    evaluate_episodes: int = Field(default=10, gt=0)
    """Episodes of one evaluation."""
    resume: bool = False
    """Go on from the last checkpoint, if there is one."""


@dataclass
class _Run:
    """A run under way."""

    id: str
    learner: Learner
    stream: BatchStream
    pinned: tuple[Pinned, ...]
    step: int


def train(config: TrainConfig, report: Report = silent) -> RunResult:
    """Trains until `config.steps` updates have been taken in all.

    Raises:
        NameTakenError: if the folder holds a run and `resume` is off.
        ConfigError: if a resumed run is asked to change what it began with.
        UnknownNameError: for an unknown algorithm, setting, sampler or environment.
        NotFoundError: if a store or version is not there.
    """
    with threads(config.threads):
        run = (
            _resume(config, report)
            if config.resume and _has_run(config)
            else _begin(config, report)
        )
        first, timer, evaluation = run.step, Timer(), None
        folder = Path(config.out)
        write_config(folder, _document(run, config))
        if run.step == 0:  # so that a run that dies early goes on with the versions it began with
            save_checkpoint(folder, _checkpoint(run, config))
        metrics, judged = (Table(folder / name, run.step) for name in (METRICS, EVALUATIONS))
        batches = rows_of(iter(run.stream), _needs(config))
        while run.step < config.steps:
            until = _next_stop(run.step, config)
            with timer:
                losses = as_numbers(_updates(run, batches, until))
            is_last = run.step == config.steps
            if is_last or run.step % config.log_every == 0:
                metrics.add(run.step, losses)
                report(Progress("train", run.step, config.steps, losses))
            if config.environment and (is_last or _is_due(run.step, config.evaluate_every)):
                evaluation = evaluate(run.learner, config.environment, config.evaluate_episodes)
                judged.add(run.step, evaluation_row(evaluation))
            if is_last or run.step % config.checkpoint_every == 0:
                save_checkpoint(folder, _checkpoint(run, config))
        rate = timer.rate(run.step - first)
        return RunResult(config.out, config.algo, run.step, rate, run.pinned, evaluation)


def _updates(run: _Run, batches: Iterator[Batch], until: int) -> Mapping[str, Tensor]:
    """Takes updates up to a step; nothing is read off the device before the last."""
    losses: Mapping[str, Tensor] = {}
    for _ in range(until - run.step):
        losses = run.learner.update(next(batches))
    run.step = until
    return losses


def _next_stop(step: int, config: TrainConfig) -> int:
    """The next step at which something is logged, judged or kept."""
    every = [config.log_every, config.checkpoint_every, config.evaluate_every]
    return min(config.steps, *(step - step % n + n for n in every if n))


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _has_run(config: TrainConfig) -> bool:
    return last_checkpoint(Path(config.out)) is not None


def _begin(config: TrainConfig, report: Report) -> _Run:
    if _has_run(config):
        raise NameTakenError(
            "Expected a folder without a run, came one that holds a run; "
            "resume it or choose another folder.",
            where=config.out,
        )
    check_stream(config.stream, config.sampler, _needs(config))
    settings = _with_the_runs(config)
    kind = learner_class(config.algo).settings_kind
    read = read_settings(kind, settings, config.algo)
    pixels = isinstance(read, PixelSettings) and read.pixels
    pinned = pin(config.data)
    normaliser = fit(pinned, read.standardise, pixels=pixels, environment=config.environment)
    learner = make_learner(config.algo, settings, normaliser, config.seed, config.device)
    run = uuid.uuid4().hex
    name = run_name(config.algo, run)
    stream = open_stream(pinned, _sampling(config), _packing(report), name)
    return _Run(run, learner, stream, pinned, 0)


def _resume(config: TrainConfig, report: Report) -> _Run:
    checkpoint = load_checkpoint(Path(config.out))
    document = checkpoint.document
    check_same(document["config"], config.model_dump(mode="json"), FIXED)
    check_stream(config.stream, config.sampler, _needs(config))
    check_same_stream(document["config"].get("stream", {}), config.stream)
    pinned = tuple(Pinned(**one) for one in document["data"])
    name = run_name(config.algo, document["run"])
    stream = open_stream(pinned, _sampling(config), _packing(report), name)
    stream.load_state_dict(document["stream"])
    learner = restore(checkpoint, config.device)
    return _Run(document["run"], learner, stream, pinned, checkpoint.step)


def _packing(report: Report) -> Callable[[int, int], None]:
    return lambda done, of: report(Progress("pack", done, of))


def _with_the_runs(config: TrainConfig) -> dict[str, Any]:
    """The settings, with those that depend on the run: its discount, its length for a decay."""
    fields = learner_class(config.algo).settings_kind.model_fields
    settings = dict(config.settings)
    if "discount" in settings:
        raise ConfigError(
            f"Expected the discount from the run, came a setting of {config.algo}; use --discount.",
            where="discount",
        )
    if "discount" in fields:
        settings["discount"] = config.discount
    if "policy_decay" in fields:
        settings.setdefault("policy_decay", config.steps)
    return settings


def _sampling(config: TrainConfig) -> Sampling:
    return Sampling(
        batch_size=config.batch_size,
        seed=config.seed,
        discount=config.discount,
        device=config.device,
        sampler=config.sampler,
        stream=config.stream,
        needs=_needs(config),
    )


def _needs(config: TrainConfig) -> StreamNeeds:
    kind = learner_class(config.algo)
    return kind.needs(read_settings(kind.settings_kind, config.settings, config.algo))


def _checkpoint(run: _Run, config: TrainConfig) -> Checkpoint:
    document = {**_document(run, config), "stream": run.stream.state_dict()}
    return snapshot(run.learner, run.step, document)


def _document(run: _Run, config: TrainConfig) -> dict[str, Any]:
    return {
        "kind": "train",
        "run": run.id,
        "config": config.model_dump(mode="json"),
        "data": [one.document() for one in run.pinned],
    }
