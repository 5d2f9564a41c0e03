"""Online fine-tuning through the store: act, commit the rollouts, learn from old and new data.

Rounds alternate: the policy plays whole episodes, they become one commit on a branch, and then the
learner takes its updates on batches mixed from the offline versions and from that growing branch,
by exact counts. A checkpoint ends every round. Each episode is a function of its number and the
policy, and the store takes it once: a run that died goes on from its last round with the same
rollouts and the same updates.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from learners.base import Learner
from learners.checkpoint import (
    Checkpoint,
    last_checkpoint,
    load_checkpoint,
    restore,
    save_checkpoint,
    snapshot,
)
from learners.data import Pinned, Sampling, only_spec, run_name
from learners.evaluate import evaluate
from learners.going_on import (
    GoingOnConfig,
    begun,
    check_beginning,
    folder_of,
    sampled_as,
    sampling_of,
)
from learners.growing import Growing, follow_growing, open_growing
from learners.layout import laid_out
from learners.regret import Tally, tally_of
from learners.rollout import Collection, Exploration, Facts, collect
from learners.run import (
    Progress,
    Report,
    RunResult,
    Timer,
    check_same,
    evaluation_row,
    learned,
    regret_row,
    silent,
    threads,
    write_config,
)
from learners.runlog import EVALUATIONS, METRICS, Table
from learners.sampling import rows_of
from learners.successes import growing_at_first, succeeded
from pipeline.store.reader import Version
from pipeline.store.store import Store, open_store
from pipeline.stream.mixture import Mixture
from schemas.episode import Episode
from schemas.errors import SpecMismatchError
from schemas.packed import Rows, plain
from schemas.spec import DatasetSpec, differences

ROLLOUT_SEED = 2_000_000
"""Seeds of rollouts start here, and a million further on for every seed of a run."""

FIXED = (
    "run",
    "environment",
    "into",
    "branch",
    "offline_fraction",
    "updates_per_step",
    "warmup_steps",
    "round_steps",
    "exploration",
    "noise",
    "settings",
    "seed",
    "join_successes",
)
"""Settings that a resumed run must share with its beginning."""


class FinetuneConfig(GoingOnConfig):
    """One online run that plays its rollouts itself, round after round."""

    into: str
    """STORE that takes the rollouts."""
    branch: str | None = None
    """Branch for the rollouts; None makes one named after this run."""
    join_successes: bool = False
    """Let episodes that succeeded join the demonstrations: they are drawn among these, too."""
    warmup_steps: int = Field(default=0, ge=0)
    """Environment steps before the first update; they earn no updates."""
    round_steps: int = Field(default=250, gt=0)
    """Steps after which whole episodes are committed, learned from and checkpointed."""
    evaluate_every: int = Field(default=0, ge=0)
    """Environment steps between evaluations; 0 judges the last policy only."""


@dataclass
class _Run:
    """A run under way."""

    id: str
    learner: Learner
    offline: tuple[Pinned, ...]
    spec: DatasetSpec
    sampling: Sampling
    store: Store
    branch: str
    step: int
    """Updates in all, the offline ones included."""
    first_step: int
    """Updates of the offline run."""
    tally: Tally
    """Its training episodes."""
    env_steps: int = 0
    episodes: int = 0
    growing: Growing | None = None
    """None until there are rollouts."""
    batches: Mixture | None = None
    """None until there are updates to take."""


def finetune(config: FinetuneConfig, report: Report = silent) -> RunResult:
    """Plays and learns until `config.env_steps` steps have been made in all.

    Raises:
        NameTakenError: if the folder holds a run and `resume` is off.
        ConfigError: if a resumed run is asked to change what it began with.
        NotFoundError: if there is no run, store or version to start from.
        SpecMismatchError: if the environment's fields differ from what the policy was trained on.
    """
    folder = out_folder(config)
    with threads(config.threads):
        is_old = config.resume and last_checkpoint(folder) is not None
        run = _resume(config, folder) if is_old else _begin(config, folder)
        first, timer, evaluation = run.step, Timer(), None
        write_config(folder, _document(run, config), run.learner.settings)
        if not is_old:  # so that a run that dies early goes on under its name
            save_checkpoint(folder, _checkpoint(run, config))
        metrics, judged = (Table(folder / name, run.step) for name in (METRICS, EVALUATIONS))
        while run.env_steps < config.env_steps:
            before = run.env_steps
            returns = _play(run, config)
            with timer:
                losses = _learn(run, config)
            is_last = run.env_steps >= config.env_steps
            values = {
                "env_steps": run.env_steps,
                "rollout_return": returns,
                **regret_row(run.tally.regret()),
                **losses,
            }
            if losses or is_last:
                metrics.add(run.step, values)
            report(Progress("finetune", run.env_steps, config.env_steps, values))
            if is_last or _crossed(before, run.env_steps, config.evaluate_every):
                evaluation = evaluate(run.learner, config.environment, config.evaluate_episodes)
                judged.add(run.step, {"env_steps": run.env_steps, **evaluation_row(evaluation)})
            save_checkpoint(folder, _checkpoint(run, config))
        data = (*run.offline, Pinned(run.store.url, _grown(run).online.id))
        rate = timer.rate(run.step - first)
        name, regret = run.learner.name, run.tally.regret()
        return RunResult(str(folder), name, run.step, rate, data, evaluation, regret)


def out_folder(config: FinetuneConfig) -> Path:
    """Returns the folder of a fine-tuning run."""
    return folder_of(config, "finetune")


def _play(run: _Run, config: FinetuneConfig) -> float:
    """Plays one round and commits it; returns the mean return of its episodes."""
    version = f"{run.id}:{run.step}"
    plan = Collection(
        environment=config.environment,
        steps=_steps_of_round(run.env_steps, config),
        seed=ROLLOUT_SEED * (config.seed + 1),
        first=run.episodes,
        exploration=Exploration(config.exploration, config.noise),
        slots=1,
    )
    facts = Facts(namespace=run.id, policy=run.learner.name, policy_version=version)
    played = [cast(episode, run.spec) for episode in collect(run.learner, plan, facts)]
    message = f"rollouts {run.episodes} to {run.episodes + len(played) - 1} of {run.id[:8]}"
    _grow(run, config, run.store.append(played, message, branch=run.branch))
    run.episodes += len(played)
    run.env_steps += sum(episode.length for episode in played)
    run.tally.add((episode.episode_return, episode.success) for episode in played)
    return float(np.mean([episode.episode_return for episode in played]))


def _steps_of_round(env_steps: int, config: FinetuneConfig) -> int:
    """Up to the next multiple of a round, so that rounds do not depend on where a run ended."""
    end = (env_steps // config.round_steps + 1) * config.round_steps
    return min(end, config.env_steps) - env_steps


def _grow(run: _Run, config: FinetuneConfig, online: Version) -> None:
    """Makes the next batches draw from the newest rollouts, too."""
    successes = succeeded(online, run.branch) if config.join_successes else None
    run.growing = Growing(online, config.offline_fraction, config.join_successes, successes)
    if run.batches is not None:
        follow_growing(run.batches, run.offline, run.growing)


def _grown(run: _Run) -> Growing:
    assert run.growing is not None, "a round has been played"
    return run.growing


def _learn(run: _Run, config: FinetuneConfig) -> dict[str, float]:
    """Takes the updates that the environment steps so far have earned; returns the last losses."""
    earned = int(max(run.env_steps - config.warmup_steps, 0) * config.updates_per_step)
    due = run.first_step + earned - run.step
    if due <= 0:
        return {}
    if run.batches is None:
        name = run_name(run.learner.name, run.id)
        run.batches = open_growing(run.offline, _grown(run), run.sampling, name)
    batches = rows_of(iter(run.batches), run.sampling.needs)
    for _ in range(due):
        losses = run.learner.update(next(batches))
    run.step += due
    return learned(losses, run.learner, run.step)


def cast(episode: Episode, spec: DatasetSpec) -> Episode:
    """Returns a rollout in the names, shapes and dtypes of the data its policy was trained on.

    Raises:
        SpecMismatchError: if names or shapes differ in more than how the same thing is kept.
    """
    episode = laid_out(episode, spec)
    shapes = {name: field.shape for name, field in spec.fields.items()}
    came = {name: field.shape for name, field in episode.spec.fields.items()}
    if shapes != came:
        raise SpecMismatchError(
            f"Expected rollouts with the fields of the offline data [{spec}], came "
            f"[{episode.spec}] ({differences(spec, episode.spec)}); curate or transform the data "
            f"to what the environment gives."
        )

    def as_spec(name: str, rows: Rows) -> np.ndarray:
        return plain(rows).astype(spec.fields[name].numpy_dtype, copy=False)

    return episode.replace(
        observations={name: as_spec(name, array) for name, array in episode.observations.items()},
        actions={n: as_spec(n, a) for n, a in episode.flat_actions.items()}["actions"],
        rewards=None if episode.rewards is None else as_spec("rewards", episode.rewards),
    )


def _begin(config: FinetuneConfig, folder: Path) -> _Run:
    check_beginning(config, folder)
    base, learner = begun(config)
    return _open(config, base.document, learner, uuid.uuid4().hex, base.step)


def _resume(config: FinetuneConfig, folder: Path) -> _Run:
    checkpoint = load_checkpoint(folder)
    document = checkpoint.document
    check_same(document["config"], config.model_dump(mode="json"), FIXED)
    learner = restore(checkpoint, config.device)
    run = _open(config, document, learner, document["run"], document["first_step"])
    run.step, run.env_steps = checkpoint.step, document["env_steps"]
    run.episodes = document["episodes"]
    if document["stream"] is not None:
        name = run_name(learner.name, run.id)
        first = growing_at_first(run.store, document)
        run.batches = open_growing(run.offline, first, run.sampling, name)
        run.batches.load_state_dict(document["stream"])
    if document["online"] is not None:
        online = run.store.version(document["online"])
        run.tally = tally_of(online, config.environment, "episode_id", f"{run.id}/")
        successes = succeeded(online, run.branch) if config.join_successes else None
        run.growing = Growing(online, config.offline_fraction, config.join_successes, successes)
    return run


def _open(
    config: FinetuneConfig, document: Mapping[str, Any], learner: Learner, run_id: str, first: int
) -> _Run:
    """Opens the data of a run that goes on from a checkpoint's document, offline or online."""
    pinned = tuple(Pinned(**one) for one in document["data"])
    return _Run(
        id=run_id,
        learner=learner,
        offline=pinned,
        spec=only_spec([one.open() for one in pinned]),
        sampling=sampling_of(config, document, learner, episode_ids=False),
        store=open_store(config.into, create=True),
        branch=config.branch or f"rollouts-{run_id[:8]}",
        step=first,
        first_step=first,
        tally=Tally(config.environment),
    )


def _crossed(before: int, after: int, every: int) -> bool:
    return every > 0 and before // every != after // every


def _checkpoint(run: _Run, config: FinetuneConfig) -> Checkpoint:
    document = {
        **_document(run, config),
        "online": None if run.growing is None else run.growing.online.id,
        "first_step": run.first_step,
        "env_steps": run.env_steps,
        "episodes": run.episodes,
        "stream": None if run.batches is None else run.batches.state_dict(),
    }
    return snapshot(run.learner, run.step, document)


def _document(run: _Run, config: FinetuneConfig) -> dict[str, Any]:
    return {
        "kind": "finetune",
        "run": run.id,
        "config": config.model_dump(mode="json"),
        "inputs": run.learner.normaliser.document(),
        "data": [one.document() for one in run.offline],
        "branch": run.branch,
        "sampling": sampled_as(run.sampling),
    }
