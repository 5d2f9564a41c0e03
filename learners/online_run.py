"""One online run: its settings, how it begins, what its checkpoints hold, how it goes on."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import Field

from learners.acting import patiently
from learners.base import Learner
from learners.checkpoint import (
    Checkpoint,
    load_checkpoint,
    restore,
    snapshot,
)
from learners.data import Pinned, Sampling, run_name
from learners.going_on import (
    GoingOnConfig,
    begun,
    check_beginning,
    folder_of,
    sampled_as,
    sampling_of,
)
from learners.growing import open_growing
from learners.run import check_same
from learners.successes import growing_at_first
from pipeline.service.client.connecting import SCHEMES
from pipeline.service.client.control import ControlClient
from pipeline.store.reader import Version
from pipeline.store.store import Store, open_store
from pipeline.stream.limiter import SampleToInsertRatio
from pipeline.stream.mixture import Mixture
from pipeline.stream.online import Freshness, OnlineSource
from schemas.errors import ConfigError, NotFoundError, PenstockError

FIXED = (
    *("run", "environment", "into", "offline_fraction", "updates_per_step", "warmup_steps"),
    *("follow_every", "settings", "seed", "max_policy_lag", "max_age"),
)
"""Settings that a resumed run must share with its beginning."""


class OnlineConfig(GoingOnConfig):
    """One online run beside a service, for which actors play, here or elsewhere."""

    service: str
    """Address of either port."""
    into: str | None = None
    """The service's STORE as it is reached from here; None looks among the offline run's, and then
    reads it through the service."""
    name: str | None = None
    """Under which policies are published and references kept; None makes one."""
    warmup_steps: int = Field(default=500, gt=0)
    """Steps of rollouts before the first update."""
    ahead_steps: int = Field(default=1000, gt=0)
    """How far updates and steps may be from keeping pace, in steps on either side."""
    follow_every: int = Field(default=250, gt=0)
    """Updates after which newer rollouts are drawn from."""
    publish_every: int = Field(default=250, gt=0)
    """Updates after which a policy is published."""
    checkpoint_every: int = Field(default=1000, gt=0)
    """Updates between checkpoints; the last update always makes one."""
    max_policy_lag: int | None = Field(default=None, ge=0)
    """Updates behind the newest policy beyond which rollouts are not drawn."""
    max_age: float | None = Field(default=None, gt=0)
    """Seconds after which rollouts are not drawn."""
    starve_seconds: float = Field(default=120.0, gt=0)
    """How long to wait for the service at the beginning, and without one more step of rollouts."""
    actors: int = Field(default=1, ge=0)
    """Processes that play on this machine, with this run's exploration; 0 where others do."""
    log_every: int = Field(default=200, gt=0)
    """Updates between rows of `metrics.csv`."""
    log_rows: bool = False
    """Keep in `rows.csv` which rows each batch had."""


@dataclass
class OnlineRun:
    """A run under way."""

    id: str
    name: str
    learner: Learner
    offline: tuple[Pinned, ...]
    sampling: Sampling
    source: OnlineSource
    ratio: SampleToInsertRatio
    first_step: int
    """Updates of the offline run."""
    step: int
    """Updates in all."""
    samples: int = 0
    """Rows of rollouts drawn so far."""
    batches: Mixture | None = None
    """None until there are rollouts enough."""
    read: Version | None = None
    """The head of the branch, as it was when it was decided what to read."""

    @property
    def taken(self) -> int:
        """Updates of this run: the number of its next batch."""
        return self.step - self.first_step


def online_folder(config: OnlineConfig) -> Path:
    """Returns the folder of an online run."""
    return folder_of(config, "online")


def begin(config: OnlineConfig, folder: Path, control: ControlClient) -> OnlineRun:
    """Returns a new run that begins where an offline run ended.

    Raises:
        NameTakenError: if the folder holds a run.
        ConfigError: for settings that do not fit.
        NotFoundError: if the store of the service is not within reach.
        OutOfTimeError: if the service does not answer.
    """
    check_beginning(config, folder)
    if config.env_steps <= config.warmup_steps:
        raise ConfigError(
            f"Expected more steps than the warm-up has, came env_steps {config.env_steps} and "
            f"warmup_steps {config.warmup_steps}."
        )
    base, learner = begun(config)
    run = uuid.uuid4().hex
    name = config.name or run_name(learner.name, run)
    return _open(config, control, learner, base.document, (run, name, base.step))


def resume(config: OnlineConfig, folder: Path, control: ControlClient) -> OnlineRun:
    """Returns a run as it was at its last checkpoint.

    Raises:
        ConfigError: if it is asked to change what it began with.
        NotFoundError: if the store of the service is not within reach.
        OutOfTimeError: if the service does not answer.
    """
    checkpoint = load_checkpoint(folder)
    document = checkpoint.document
    asked = {**config.model_dump(mode="json"), "into": config.into or document["config"]["into"]}
    check_same(document["config"], asked, FIXED)
    learner = restore(checkpoint, config.device)
    named = (document["run"], document["name"], document["first_step"])
    run = _open(
        config.model_copy(update={"into": asked["into"]}), control, learner, document, named
    )
    run.step, run.samples = checkpoint.step, document["samples"]
    if document["stream"] is not None:
        first = growing_at_first(run.source.store, document)
        run.batches = open_growing(run.offline, first, run.sampling, run.name)
        run.batches.load_state_dict(document["stream"])
    return run


def _open(
    config: OnlineConfig,
    control: ControlClient,
    learner: Learner,
    document: Mapping[str, Any],
    named: tuple[str, str, int],
) -> OnlineRun:
    pinned = tuple(Pinned(**one) for one in document["data"])
    sampling = sampling_of(config, document, learner, episode_ids=config.log_rows)
    run, name, first = named
    status = patiently(control.status, config.starve_seconds, threading.Event())
    assert status is not None, "nobody says to stop"
    freshness = Freshness(config.max_policy_lag, config.max_age)
    store = _store_of(status["store"], config, pinned, control)
    select = control.curate if is_behind_a_service(store) else None
    source = OnlineSource(store, status["log"]["branch"], name, freshness, select)
    ratio = _ratio(config, sampling.rows)
    return OnlineRun(run, name, learner, pinned, sampling, source, ratio, first, first)


def _ratio(config: OnlineConfig, rows: int) -> SampleToInsertRatio:
    online = rows * (1 - Fraction(str(config.offline_fraction)))
    ratio = online * Fraction(str(config.updates_per_step))
    found = SampleToInsertRatio.around(
        ratio, config.warmup_steps, ratio * config.ahead_steps + rows
    )
    found.check(rows)
    return found


def is_behind_a_service(store: Store) -> bool:
    """True if the store is reached through its service alone: to read."""
    return urlsplit(store.url).scheme in SCHEMES


def _store_of(
    wanted: str, config: OnlineConfig, pinned: tuple[Pinned, ...], control: ControlClient
) -> Store:
    """Returns the service's store: as it is reached from here, else through the service.

    Raises:
        NotFoundError: if it is none of those that this process can reach.
    """
    places = [config.into] if config.into is not None else [one.store for one in pinned]
    for place in dict.fromkeys(places):
        try:
            store = open_store(place)
        except PenstockError:
            if config.into is not None:
                raise
            continue
        if store.id == wanted:
            return store
    if config.into is None:
        return open_store(control.addresses().data, storage_options=control.store_options())
    raise NotFoundError(
        f"Expected the store {wanted[:12]} of the service among {', '.join(places)}, came others; "
        f"name it with --into as it is reached from here.",
        where=config.service,
    )


def checkpoint_of(run: OnlineRun, config: OnlineConfig) -> Checkpoint:
    """Returns all that the run needs to go on."""
    document = {
        **document_of(run, config),
        "first_step": run.first_step,
        "samples": run.samples,
        "stream": None if run.batches is None else run.batches.state_dict(),
    }
    return snapshot(run.learner, run.step, document)


def document_of(run: OnlineRun, config: OnlineConfig) -> dict[str, Any]:
    """Returns what the run is, as plain JSON."""
    return {
        "kind": "finetune",
        "run": run.id,
        "name": run.name,
        "config": {**config.model_dump(mode="json"), "into": run.source.store.url},
        "inputs": run.learner.normaliser.document(),
        "data": [one.document() for one in run.offline],
        "branch": run.source.branch,
        "sampling": sampled_as(run.sampling),
    }
