"""Online fine-tuning beside a service: actors push rollouts, the learner draws from what came.

The learner publishes its policy every so many updates; actors, here or elsewhere, play by the
newest one. What it reads is decided every so many updates by a reference of the run in the store,
so its batches can be drawn again. How far updates may run ahead of the steps that came, and steps
ahead of updates, is bounded; who waits too long says so. It reads the store itself where that is
within its reach, on the same disk or in a bucket, and else through the service.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

from torch import Tensor

from learners.actors import Actors
from learners.base import Batch
from learners.checkpoint import last_checkpoint, save_checkpoint
from learners.data import Pinned
from learners.evaluate import evaluate
from learners.growing import Growing, open_growing
from learners.online_run import (
    OnlineConfig,
    OnlineRun,
    begin,
    checkpoint_of,
    document_of,
    is_behind_a_service,
    online_folder,
    resume,
)
from learners.policy import encode_policy
from learners.pulse import Pulse
from learners.regret import Regret, tally_of
from learners.replay import Replayed
from learners.run import (
    Progress,
    Report,
    RunResult,
    Timer,
    evaluation_row,
    learned,
    regret_row,
    silent,
    threads,
    write_config,
)
from learners.runlog import EVALUATIONS, METRICS, Table
from learners.sampling import rows_of
from pipeline.service.client.control import ControlClient
from pipeline.store import policies
from pipeline.store.reader import Version
from pipeline.stream.limiter import Limiter
from schemas.errors import OutOfTimeError
from schemas.nesting import flatten
from schemas.packed import plain

ROWS = "rows.csv"
"""Which rows each batch had, as a digest."""


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
        OutOfTimeError: if the service, or more rollouts, did not come for `starve_seconds`.
    """
    folder = online_folder(config)
    control = ControlClient(config.service, token)
    with threads(config.threads), ExitStack() as held:
        is_old = config.resume and last_checkpoint(folder) is not None
        run = resume(config, folder, control) if is_old else begin(config, folder, control)
        write_config(folder, document_of(run, config), run.learner.settings)
        if not is_old:  # so that a run that dies early goes on under its name
            save_checkpoint(folder, checkpoint_of(run, config))
        _publish(run, control)
        limiter = Limiter(run.ratio, run.source.inserted, config.starve_seconds)
        actors = held.enter_context(
            Actors(_arguments(run, config), config.actors, token, _seed(config))
        )
        pulse = Pulse(control, run, limiter, config.env_steps, actors)
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
    name, regret = run.learner.name, _regret(run, config)
    return RunResult(str(folder), name, run.step, rate, data, evaluation, regret)


def _learn(
    run: OnlineRun,
    config: OnlineConfig,
    folder: Path,
    parts: tuple[Limiter, Pulse, Timer],
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
            _publish(run, pulse.control)
        if is_last or run.taken % config.log_every == 0:
            regret = regret_row(_regret(run, config))
            found = learned(losses, run.learner, run.step)
            values = {**_figures(run, limiter), **regret, **found}
            metrics.add(run.step, values)
            report(Progress("finetune", limiter.known, config.env_steps, values))
        if is_last or run.taken % config.checkpoint_every == 0:
            save_checkpoint(folder, checkpoint_of(run, config))


def _update(run: OnlineRun, rows: Table | None) -> Mapping[str, Tensor]:
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


def _figures(run: OnlineRun, limiter: Limiter) -> dict[str, float]:
    return {
        "env_steps": limiter.known,
        "samples_per_insert": run.samples / limiter.known if limiter.known else 0.0,
        "waited_seconds": round(limiter.waited, 3),
    }


def _regret(run: OnlineRun, config: OnlineConfig) -> Regret | None:
    """Of all rollouts that came so far, whether they were fresh enough to be drawn or not."""
    found = run.source.look()
    if found is None:
        return None
    return tally_of(found.head, config.environment, "policy_version", f"{run.name}:").regret()


def _follow(run: OnlineRun, config: OnlineConfig, pulse: Pulse) -> None:
    """Draws from what is fresh now, from the next batch on."""
    online = _fresh(run, config, pulse)
    growing = Growing(online, config.offline_fraction)
    if run.batches is None:
        run.batches = open_growing(run.offline, growing, run.sampling, run.name)
    else:
        run.batches.follow(online, source=len(run.offline))
    found = run.source.look()
    run.read = None if found is None else found.head


def _fresh(run: OnlineRun, config: OnlineConfig, pulse: Pulse) -> Version:
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


def _publish(run: OnlineRun, control: ControlClient) -> None:
    """Publishes the policy as it is, unless a part of this run that died has done so."""
    store = run.source.store
    if run.step in policies.steps(store.catalog, run.name):
        return
    data = encode_policy(run.learner, run.name, run.step)
    if is_behind_a_service(store):
        control.publish(run.name, run.step, data)
    else:
        policies.publish(store.catalog, run.name, run.step, data)


def _arguments(run: OnlineRun, config: OnlineConfig) -> list[str]:
    return [
        *("--env", config.environment, "--policy", run.name, "--service", config.service),
        *("--exploration", config.exploration, "--noise", str(config.noise)),
    ]


def _seed(config: OnlineConfig) -> int:
    return 1000 * config.seed
