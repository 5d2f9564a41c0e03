"""Online fine-tuning beside a service: actors push rollouts, the learner draws from what came.

The learner publishes its policy every so many updates; actors, here or elsewhere, play by the
newest one. What it reads is decided every so many updates by a reference of the run in the store,
so its batches can be drawn again. How far updates may run ahead of the steps that came, and steps
ahead of updates, is bounded; who waits too long says so. It reads the store itself, so the store
must be within its reach, on the same disk or in a bucket.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from learners.actors import Actors
from learners.base import Batch, Learner
from learners.checkpoint import (
    Checkpoint,
    last_checkpoint,
    load_checkpoint,
    restore,
    save_checkpoint,
    snapshot,
)
from learners.data import Growing, Pinned, Sampling, open_growing, run_name
from learners.evaluate import evaluate
from learners.finetune import SAMPLED_AS_BEFORE, growing_at_first
from learners.policy import encode_policy
from learners.replay import Replayed
from learners.run import (
    Progress,
    Report,
    RunResult,
    Timer,
    as_numbers,
    check_same,
    evaluation_row,
    silent,
    threads,
    write_config,
)
from learners.runlog import EVALUATIONS, METRICS, Table
from learners.sampling import PLACES, check_stream, rows_of
from learners.settings import Settings
from pipeline.service.client.control import ControlClient
from pipeline.store import policies
from pipeline.store.reader import Version
from pipeline.store.store import Store, open_store
from pipeline.stream.limiter import Limiter, SampleToInsertRatio
from pipeline.stream.mixture import Mixture
from pipeline.stream.online import Freshness, OnlineSource
from schemas.errors import (
    ConfigError,
    NameTakenError,
    NotFoundError,
    OutOfTimeError,
    PenstockError,
    TransientError,
)
from schemas.nesting import flatten
from schemas.online import Heartbeat
from schemas.packed import plain

logger = logging.getLogger(__name__)
ROWS = "rows.csv"
"""Which rows each batch had, as a digest."""
BEAT_SECONDS = 1.0
FIXED = (
    *("run", "environment", "into", "offline_fraction", "updates_per_step", "warmup_steps"),
    *("follow_every", "settings", "seed", "max_policy_lag", "max_age"),
)
"""Settings that a resumed run must share with its beginning."""


class OnlineConfig(Settings):
    """One online run that begins where an offline run ended."""

    run: str
    """Folder of the offline run, or one of its checkpoint files."""
    environment: str
    """A registered Gymnasium name, for the actors and to judge the policy."""
    service: str
    """Address of either port."""
    into: str | None = None
    """The service's STORE as it is reached from here; None looks among the offline run's."""
    out: str | None = None
    """Folder of this run; None takes `online` within the offline run's."""
    name: str | None = None
    """Under which policies are published and references kept; None makes one."""
    env_steps: int = Field(default=10_000, gt=0)
    """Steps of rollouts, those of the warm-up included."""
    offline_fraction: float = Field(default=0.5, ge=0, lt=1)
    """Share of each batch that is drawn from the offline versions."""
    updates_per_step: float = Field(default=1.0, gt=0)
    """Updates for each step of rollouts beyond the warm-up."""
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
    """How long to wait without one more step of rollouts."""
    actors: int = Field(default=1, ge=0)
    """Processes that play on this machine; 0 where others do."""
    exploration: Literal["none", "gaussian", "policy"] = "policy"
    """Of these actors."""
    noise: float = Field(default=1.0, ge=0)
    """Standard deviation in the environment's units, or the factor on the policy's spread."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Hyperparameters that differ from the offline run's. The policy's rate stays constant."""
    stream: dict[str, Any] = Field(default_factory=dict)
    """Settings of the streams that differ from the offline run's: where rows lie."""
    seed: int = Field(default=0, ge=0)
    """Of the order of batches, and of the actors here."""
    device: str = "cpu"
    """Where networks and batches live."""
    threads: int = Field(default=1, gt=0)
    """Torch's threads."""
    log_every: int = Field(default=200, gt=0)
    """Updates between rows of `metrics.csv`."""
    log_rows: bool = False
    """Keep in `rows.csv` which rows each batch had."""
    evaluate_episodes: int = Field(default=10, gt=0)
    """Episodes of the evaluation at the end."""
    resume: bool = False
    """Go on from the last checkpoint, if there is one."""


@dataclass
class _Run:
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


@dataclass
class _Pulse:
    """Heartbeats: sent every second while the learner learns or waits."""

    control: ControlClient
    run: _Run
    limiter: Limiter
    env_steps: int
    actors: Actors
    is_away: bool = False
    _due: float = 0.0
    _told: float = 0.0
    _kept: dict[str, Any] = field(default_factory=dict)

    def beat(self) -> None:
        """Looks after the actors, and tells the service where the learner is, if it is time.

        A service that is away stops nobody here: no rollouts come then, and the limiter says so.
        """
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + BEAT_SECONDS
        self.actors.look()
        try:
            self.control.beat(self.run.name, self._heartbeat())
            self._told, self.is_away = self.limiter.waited, False
        except TransientError as error:
            if not self.is_away:
                logger.warning("the service does not hear: %s", error)
            self.is_away = True

    def leave(self) -> None:
        """Lets actors go on that wait because of this learner."""
        last = {"insert_room": None, "valid_seconds": 1.0}
        try:
            self.control.beat(self.run.name, self._heartbeat().model_copy(update=last))
        except PenstockError as error:
            logger.warning("the service does not hear: %s", error)

    def _heartbeat(self) -> Heartbeat:
        run, found = self.run, self.run.source.look()
        inserted = 0 if found is None else found.steps
        room = min(run.ratio.inserts_left(inserted, run.samples), self.env_steps - inserted)
        head = None if found is None else found.head
        behind = 0 if head is None or run.read is None else head.number - run.read.number
        read = run.read or head
        return Heartbeat(
            step=run.step,
            version="0" * 32 if read is None else read.id,
            versions_behind=max(behind, 0),
            samples=run.samples,
            inserted=inserted,
            insert_room=max(room, 0),
            room_since=0 if head is None else head.number,
            pull_wait_seconds=self.limiter.waited - self._told,
        )


def learn_online(
    config: OnlineConfig, token: str | None = None, report: Report = silent
) -> RunResult:
    """Learns until all updates that `config.env_steps` steps of rollouts earn are taken.

    Args:
        config: what, from where, how much.
        token: of the service, with the scopes `push` (for the actors) and `pull`; by default the
            environment's.
        report: told the progress.

    Raises:
        NameTakenError: if the folder holds a run and `resume` is off.
        ConfigError: if a resumed run is asked to change what it began with.
        NotFoundError: if the store of the service is not within reach.
        OutOfTimeError: if no rollouts came for `starve_seconds`.
        TransientError: if the service is away at the beginning.
    """
    folder = online_folder(config)
    control = ControlClient(config.service, token)
    with threads(config.threads), ExitStack() as held:
        is_old = config.resume and last_checkpoint(folder) is not None
        run = _resume(config, folder, control) if is_old else _begin(config, folder, control)
        write_config(folder, _document(run, config))
        if not is_old:  # so that a run that dies early goes on under its name
            save_checkpoint(folder, _checkpoint(run, config))
        _publish(run)
        limiter = Limiter(run.ratio, run.source.inserted, config.starve_seconds)
        actors = held.enter_context(
            Actors(_arguments(run, config), config.actors, token, _seed(config))
        )
        pulse = _Pulse(control, run, limiter, config.env_steps, actors)
        held.callback(pulse.leave)
        timer = Timer()
        _learn(run, config, folder, (limiter, pulse, timer), report)
    rate = timer.rate(run.taken)
    evaluation = evaluate(run.learner, config.environment, config.evaluate_episodes)
    judged = Table(folder / EVALUATIONS, run.step)
    judged.add(run.step, {"env_steps": run.source.inserted(), **evaluation_row(evaluation)})
    assert run.batches is not None
    read = run.batches.members[len(run.offline)][0]
    data = (*run.offline, Pinned(run.source.store.url, read.id))
    return RunResult(str(folder), run.learner.name, run.step, rate, data, evaluation)


def online_folder(config: OnlineConfig) -> Path:
    """Returns the folder of an online run."""
    if config.out is not None:
        return Path(config.out)
    run = Path(config.run)
    return (run.parent.parent if run.is_file() else run) / "online"


def _learn(
    run: _Run,
    config: OnlineConfig,
    folder: Path,
    parts: tuple[Limiter, _Pulse, Timer],
    report: Report,
) -> None:
    limiter, pulse, timer = parts
    metrics = Table(folder / METRICS, run.step)
    rows = Table(folder / ROWS, run.taken - 1) if config.log_rows else None
    updates = int((config.env_steps - config.warmup_steps) * config.updates_per_step)
    last = run.first_step + max(updates, 1)
    while run.step < last:
        more = (
            run.sampling.rows
            if run.batches is None
            else run.batches.counts(run.taken)[len(run.offline)]
        )
        limiter.acquire(run.samples, more, pulse.beat)
        if run.batches is None or (run.taken and run.taken % config.follow_every == 0):
            _follow(run, config, pulse)
        with timer:
            losses = _update(run, rows)
        pulse.beat()
        is_last = run.step == last
        if is_last or run.taken % config.publish_every == 0:
            _publish(run)
        if is_last or run.taken % config.log_every == 0:
            values = {**_figures(run, limiter), **as_numbers(losses)}
            metrics.add(run.step, values)
            report(Progress("finetune", limiter.known, config.env_steps, values))
        if is_last or run.taken % config.checkpoint_every == 0:
            save_checkpoint(folder, _checkpoint(run, config))


def _update(run: _Run, rows: Table | None) -> Mapping[str, Tensor]:
    assert run.batches is not None
    more = run.batches.counts(run.taken)[len(run.offline)]
    batch = next(run.batches)
    if rows is not None:
        rows.add(run.taken, {"rows": _digest(batch)})
    (given,) = rows_of(_only(batch), run.sampling.needs)
    losses = run.learner.update(given)
    run.samples += more
    run.step += 1
    return losses


def _only(batch: Batch) -> Iterator[Batch]:
    yield batch


def _digest(batch: Batch) -> str:
    flat = {
        name: plain(rows)
        for root, value in batch.items()
        for name, rows in flatten(root, value).items()
        if name in ("indices", "episode_ids")
    }
    return Replayed("", 0, (), flat).rows


def _figures(run: _Run, limiter: Limiter) -> dict[str, float]:
    return {
        "env_steps": limiter.known,
        "samples_per_insert": run.samples / limiter.known if limiter.known else 0.0,
        "waited_seconds": round(limiter.waited, 3),
    }


def _follow(run: _Run, config: OnlineConfig, pulse: _Pulse) -> None:
    """Draws from what is fresh now, from the next batch on."""
    online = _fresh(run, config, pulse)
    growing = Growing(online, config.offline_fraction)
    if run.batches is None:
        run.batches = open_growing(run.offline, growing, run.sampling, run.name)
    else:
        run.batches.follow(online, source=len(run.offline))
    found = run.source.look()
    run.read = None if found is None else found.head


def _fresh(run: _Run, config: OnlineConfig, pulse: _Pulse) -> Version:
    until = time.monotonic() + config.starve_seconds
    while True:
        newest = policies.steps(run.source.store.catalog, run.name)[-1]
        found = run.source.fresh(min(newest, run.step))
        if found is not None:
            return found
        if time.monotonic() > until:
            raise OutOfTimeError(
                f"Expected rollouts that are fresh enough (max_policy_lag {config.max_policy_lag}, "
                f"max_age {config.max_age}), none came for {config.starve_seconds:g} s; look "
                f"whether actors run, or widen the bounds.",
                where=run.source.store.url,
            )
        pulse.beat()
        time.sleep(0.2)


def _publish(run: _Run) -> None:
    """Publishes the policy as it is, unless a part of this run that died has done so."""
    catalog = run.source.store.catalog
    if run.step not in policies.steps(catalog, run.name):
        policies.publish(
            catalog, run.name, run.step, encode_policy(run.learner, run.name, run.step)
        )


def _arguments(run: _Run, config: OnlineConfig) -> list[str]:
    return [
        *("--env", config.environment, "--policy", run.name, "--service", config.service),
        *("--exploration", config.exploration, "--noise", str(config.noise)),
    ]


def _seed(config: OnlineConfig) -> int:
    return 1000 * config.seed


# -- beginning and going on ----------------------------------------------------------------------


def _begin(config: OnlineConfig, folder: Path, control: ControlClient) -> _Run:
    if last_checkpoint(folder) is not None:
        raise NameTakenError(
            "Expected a folder without a run, came one that holds a run; resume it or choose "
            "another folder.",
            where=str(folder),
        )
    for name in config.stream:
        if name not in PLACES:
            raise ConfigError(
                f"Expected settings that say where rows lie ({', '.join(PLACES)}), came {name!r}; "
                f"which rows are drawn is taken over from the offline run.",
                where=name,
            )
    if config.env_steps <= config.warmup_steps:
        raise ConfigError(
            f"Expected more steps than the warm-up has, came env_steps {config.env_steps} and "
            f"warmup_steps {config.warmup_steps}."
        )
    base = load_checkpoint(Path(config.run))
    rate = {"policy_decay": 0} if "policy_decay" in base.settings else {}
    learner = restore(base, config.device, {**rate, **config.settings})
    run = uuid.uuid4().hex
    name = config.name or run_name(learner.name, run)
    return _open(config, control, learner, base.document, (run, name, base.step))


def _resume(config: OnlineConfig, folder: Path, control: ControlClient) -> _Run:
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
    begun: Mapping[str, Any],
    named: tuple[str, str, int],
) -> _Run:
    pinned = tuple(Pinned(**one) for one in begun["data"])
    said = begun.get("sampling", begun["config"])
    kept = {name: said[name] for name in SAMPLED_AS_BEFORE if name in said}
    stream = {**kept.pop("stream", {}), **config.stream}
    needs = learner.needs(learner.settings)
    check_stream(stream, kept["sampler"], needs)
    sampling = Sampling(
        **kept,
        stream=stream,
        needs=needs,
        seed=config.seed,
        device=config.device,
        episode_ids=config.log_rows,
    )
    run, name, first = named
    status = control.status()
    freshness = Freshness(config.max_policy_lag, config.max_age)
    store = _store_of(status["store"], config, pinned)
    source = OnlineSource(store, status["log"]["branch"], name, freshness)
    ratio = _ratio(config, sampling.rows)
    return _Run(run, name, learner, pinned, sampling, source, ratio, first, first)


def _ratio(config: OnlineConfig, rows: int) -> SampleToInsertRatio:
    online = rows * (1 - Fraction(str(config.offline_fraction)))
    ratio = online * Fraction(str(config.updates_per_step))
    found = SampleToInsertRatio.around(
        ratio, config.warmup_steps, ratio * config.ahead_steps + rows
    )
    found.check(rows)
    return found


def _store_of(wanted: str, config: OnlineConfig, pinned: tuple[Pinned, ...]) -> Store:
    """Returns the service's store.

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
    raise NotFoundError(
        f"Expected the store {wanted[:12]} of the service among {', '.join(places)}, came others; "
        f"name it with --into as it is reached from here.",
        where=config.service,
    )


def _checkpoint(run: _Run, config: OnlineConfig) -> Checkpoint:
    document = {
        **_document(run, config),
        "first_step": run.first_step,
        "samples": run.samples,
        "stream": None if run.batches is None else run.batches.state_dict(),
    }
    return snapshot(run.learner, run.step, document)


def _document(run: _Run, config: OnlineConfig) -> dict[str, Any]:
    return {
        "kind": "finetune",
        "run": run.id,
        "name": run.name,
        "config": {**config.model_dump(mode="json"), "into": run.source.store.url},
        "data": [one.document() for one in run.offline],
        "branch": run.source.branch,
        "sampling": {name: getattr(run.sampling, name) for name in SAMPLED_AS_BEFORE},
    }
