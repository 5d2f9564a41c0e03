"""What an offline run is, and how one is begun, or gone on with.

Runs that train side by side differ by their seed and their folder alone. They share the versions
that they read and how inputs are scaled; so those that begin beside others take over what these
began with.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field
from torch import Tensor

from learners.base import Learner, learner_class, make_learner
from learners.checkpoint import Checkpoint, last_checkpoint, load_checkpoint
from learners.data import (
    BatchStream,
    Pinned,
    Sampling,
    check_recorded,
    fit,
    open_stream,
    pin,
    run_name,
)
from learners.engine import Compile
from learners.normaliser import Normaliser
from learners.pixels import PixelSettings
from learners.ranks import Ranks
from learners.run import Progress, Report, check_same, check_same_stream
from learners.sampling import check_stream
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
    compile: Compile = "none"
    """How updates are taken: as written, compiled (`step`), or captured on a GPU (`graph`)."""
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
    tensorboard: bool = False
    """Whether rows of its tables go to TensorBoard, too."""
    resume: bool = False
    """Go on from the last checkpoint, if there is one."""


@dataclass(frozen=True)
class Run:
    """A run that was begun or loaded; what it learns with is the affair of all beside it."""

    config: TrainConfig
    id: str
    stream: BatchStream
    common: Common
    step: int
    """Updates taken before."""
    tensors: Mapping[str, Tensor] | None = None
    """Of its agent, where it goes on."""

    @property
    def folder(self) -> Path:
        """Where it is kept."""
        return Path(self.config.out)

    def document(self) -> dict[str, Any]:
        """As plain JSON."""
        return {
            "kind": "train",
            "run": self.id,
            "config": self.config.model_dump(mode="json"),
            "inputs": self.common.normaliser.document(),
            "data": [one.document() for one in self.common.pinned],
        }


@dataclass(frozen=True)
class Common:
    """What runs side by side have in common."""

    pinned: tuple[Pinned, ...]
    """The versions that they read."""
    settings: Mapping[str, Any]
    """Hyperparameters, all of them."""
    normaliser: Normaliser
    """How inputs are scaled."""


def steps_of(config: TrainConfig) -> int | None:
    """Returns the updates that a run's folder holds, None without a run.

    Raises:
        NameTakenError: if there is one, and it is not to be resumed.
    """
    path = last_checkpoint(Path(config.out))
    if path is None:
        return None
    if not config.resume:
        raise NameTakenError(
            "Expected a folder without a run, came one that holds a run; "
            "resume it or choose another folder.",
            where=config.out,
        )
    return int(path.stem)


def shared(configs: Sequence[TrainConfig]) -> Common:
    """Returns what runs have in common: what those that are there began with, else something new.

    Args:
        configs: that differ by seed and folder alone.

    Raises:
        ConfigError: if a resumed run is asked to change what it began with, or runs began with
            different versions or settings.
        UnknownNameError: for an unknown algorithm, setting or sampler.
        NotFoundError: if a store or version is not there.
    """
    check_stream(configs[0].stream, configs[0].sampler, needs_of(configs[0]))
    held = []
    for config in configs:
        if steps_of(config) is not None:
            checkpoint = load_checkpoint(Path(config.out))
            kept = checkpoint.document["config"]
            check_same(kept, config.model_dump(mode="json"), FIXED)
            check_same_stream(kept.get("stream", {}), config.stream)
            pinned = tuple(Pinned(**one) for one in checkpoint.document["data"])
            settings = {**checkpoint.settings, **_decay(config)}
            held.append(Common(pinned, settings, checkpoint.normaliser))
    if any(not _agree(one, held[0]) for one in held[1:]):
        raise ConfigError(
            "Expected runs that began on the same versions with the same settings, came others; "
            "resume each alone.",
            where=configs[0].out,
        )
    return held[0] if held else _new(configs[0])


def open_runs(
    configs: Sequence[TrainConfig], common: Common, ranks: Ranks, report: Report
) -> list[Run]:
    """Begins runs, or loads them where their folders hold one.

    Args:
        configs: that differ by seed and folder alone.
        common: as `shared` returned it.
        ranks: the processes that train together.
        report: told of the cache that is filled.
    """
    found = []
    for config in configs:
        kept = None if steps_of(config) is None else load_checkpoint(Path(config.out))
        found.append(_open(config, common, kept, ranks, report))
    ranks.wait()  # nobody writes before all have read
    return found


def learner_of(runs: Sequence[Run], ranks: Ranks) -> Learner:
    """Makes the learner of runs that stand at the same step, each an agent of it."""
    first, common = runs[0].config, runs[0].common
    learner = make_learner(
        first.algo,
        common.settings,
        common.normaliser,
        [run.config.seed for run in runs],
        ranks.device(first.device),
        ranks,
    )
    for agent, run in enumerate(runs):
        if run.tensors is not None:
            learner.load_state(run.tensors, agent)
    return learner


def needs_of(config: TrainConfig) -> StreamNeeds:
    """Returns what the algorithm asks of streams."""
    kind = learner_class(config.algo)
    return kind.needs(read_settings(kind.settings_kind, config.settings, config.algo))


def _open(
    config: TrainConfig,
    common: Common,
    checkpoint: Checkpoint | None,
    ranks: Ranks,
    report: Report,
) -> Run:
    kept = None if checkpoint is None else checkpoint.document
    run: str = ranks.told(uuid.uuid4().hex) if kept is None else kept["run"]
    name = run_name(config.algo, run)
    sampling = _sampling(config, ranks, common.normaliser)
    stream = open_stream(common.pinned, sampling, _packing(report), name)
    if checkpoint is None or kept is None:
        return Run(config, run, stream, common, 0)
    stream.load_state_dict(kept["stream"])
    return Run(config, run, stream, common, checkpoint.step, checkpoint.tensors)


def _new(config: TrainConfig) -> Common:
    settings = _with_the_runs(config)
    read = read_settings(learner_class(config.algo).settings_kind, settings, config.algo)
    pixels = isinstance(read, PixelSettings) and read.pixels
    pinned = pin(config.data)
    check_recorded(pinned, config.algo, learner_class(config.algo).reads)
    normaliser = fit(pinned, read.standardise, pixels=pixels, environment=config.environment)
    return Common(pinned, read.model_dump(mode="json"), normaliser)


def _agree(one: Common, two: Common) -> bool:
    """Whether runs began alike; the same versions give the same scales."""
    return one.pinned == two.pinned and dict(one.settings) == dict(two.settings)


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
    return {**_decay(config), **settings}


def _decay(config: TrainConfig) -> dict[str, int]:
    """A decay over the run's length, where the algorithm has one and nobody set it.

    A run that goes on for longer than it was begun for decays over its new length: its policy
    would stand still beyond the old one.
    """
    fields = learner_class(config.algo).settings_kind.model_fields
    is_set = "policy_decay" not in fields or "policy_decay" in config.settings
    return {} if is_set else {"policy_decay": config.steps}


def _sampling(config: TrainConfig, ranks: Ranks, normaliser: Normaliser) -> Sampling:
    return Sampling(
        batch_size=config.batch_size,
        seed=config.seed,
        discount=config.discount,
        device=ranks.device(config.device),
        sampler=config.sampler,
        stream=config.stream,
        needs=needs_of(config),
        ranks=ranks,
        reads=normaliser.reads,
    )
