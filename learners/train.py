"""Offline training: streams of pinned versions, an algorithm, a folder for each run.

A folder holds `metrics.csv`, `evaluations.csv` where the run evaluates, and the last checkpoint. A
run that was stopped goes on from there bit for bit (on the CPU), on the same versions. Runs of
several seeds train side by side in one learner, each with a folder, an order of batches and
checkpoints of its own, as if alone. Several processes that `torchrun` started train as one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from learners.checkpoint import restore, save_checkpoint, snapshot
from learners.engine import engine
from learners.evaluate import Evaluation, evaluate
from learners.memory import keep_freed_memory
from learners.opening import FIXED as FIXED
from learners.opening import Run, TrainConfig, learner_of, needs_of, open_runs, shared, steps_of
from learners.ranks import Ranks, joined
from learners.run import (
    Progress,
    Report,
    RunResult,
    Timer,
    diverged,
    evaluation_row,
    lost_in,
    silent,
    threads,
    write_config,
)
from learners.runlog import EVALUATIONS, METRICS, Table
from learners.sampling import rows_of

__all__ = ["TrainConfig", "train", "train_seeds"]


def train(config: TrainConfig, report: Report = silent) -> RunResult:
    """Trains until `config.steps` updates have been taken in all.

    Raises:
        NameTakenError: if the folder holds a run and `resume` is off.
        ConfigError: if a resumed run is asked to change what it began with.
        UnknownNameError: for an unknown algorithm, setting, sampler or environment.
        NotFoundError: if a store or version is not there.
    """
    return _train([config], report)[0]


def train_seeds(config: TrainConfig, seeds: int, report: Report = silent) -> list[RunResult]:
    """Trains independent runs side by side: seeds `config.seed` on, in folders `OUT/seed-N`.

    Each is what `train` makes of that seed and folder, up to rounding where processors do several
    products at once in another order; each may be resumed alone or together with others.

    Args:
        config: of all of them.
        seeds: how many, at least 1.
        report: told of progress.

    Raises:
        ConfigError, NameTakenError, UnknownNameError, NotFoundError: as `train`.
    """
    numbers = range(config.seed, config.seed + seeds)
    changes = [{"seed": number, "out": f"{config.out}/seed-{number}"} for number in numbers]
    return _train([config.model_copy(update=change) for change in changes], report)


def _train(configs: Sequence[TrainConfig], report: Report) -> list[RunResult]:
    first = configs[0]
    keep_freed_memory()
    results: dict[int, RunResult] = {}
    with threads(first.threads), joined(first.device, first.batch_size) as ranks:
        taken = ranks.told([steps_of(config) or 0 for config in configs])
        common = ranks.told(shared(configs) if ranks.is_first else None)
        assert common is not None, "told by the first rank"
        for group, until in _stages(taken, first.steps):
            # What was begun in a stage before goes on.
            goes_on = {"resume": first.resume or bool(results.keys() & set(group))}
            changed = [configs[k].model_copy(update=goes_on) for k in group]
            side = _Side(open_runs(changed, common, ranks, report), ranks, report)
            results |= zip(group, side.train(until), strict=True)
    return [results[number] for number in range(len(configs))]


def _stages(taken: Sequence[int], steps: int) -> Iterator[tuple[list[int], int]]:
    """Yields which runs train together, and up to which step.

    All agents of a learner are at one step: so runs that are behind catch up with the others first.
    Those that are done stand aside.

    Args:
        taken: updates of each run.
        steps: updates that each is to have in all.
    """
    behind = sorted({step for step in taken if step < steps})
    for low, high in pairwise([*behind, steps]):
        yield [number for number, step in enumerate(taken) if step <= low], high
    for number, step in enumerate(taken):
        if step >= steps:
            yield [number], steps


class _Side:
    """Runs that train side by side, one agent of a learner each.

    Args:
        runs: at the same step.
        ranks: the processes that train together; the first writes.
        report: told of progress.
    """

    def __init__(self, runs: Sequence[Run], ranks: Ranks, report: Report) -> None:
        self.runs, self.ranks, self.report = runs, ranks, report
        self.config, self.step = runs[0].config, runs[0].step
        self.learner = learner_of(runs, ranks)
        self.evaluations: list[Evaluation | None] = [None] * len(runs)

    def train(self, until: int) -> list[RunResult]:
        """Takes updates up to a step; returns what the runs are then."""
        config, first, timer = self.config, self.step, Timer()
        self._begin()
        takes = engine(self.learner, config.compile)
        needs = needs_of(config)
        streams = [rows_of(iter(run.stream), needs) for run in self.runs]
        while self.step < until:
            stop = min(until, _next_stop(self.step, config))
            with timer:
                losses = self._as_rows(takes.take(streams, stop - self.step))
            self.step = stop
            self._tell(losses, is_end=stop == until)
        rate = timer.rate(self.step - first)
        told = [
            (run.config.out, config.algo, self.step, rate, run.common.pinned) for run in self.runs
        ]
        return [RunResult(*one, found) for one, found in zip(told, self.evaluations, strict=True)]

    def _begin(self) -> None:
        if not self.ranks.is_first:
            return
        for run in self.runs:
            write_config(run.folder, run.document(), self.learner.settings)
        if self.step == 0:  # so that a run that dies early goes on with the versions it began with
            self._save()
        self.metrics, self.judged = (
            [Table(run.folder / name, self.step) for run in self.runs]
            for name in (METRICS, EVALUATIONS)
        )

    def _as_rows(self, losses: Mapping[str, Tensor]) -> list[dict[str, float]]:
        """Reads values (K,) off their device at once: those of each agent, of all ranks' rows."""
        if not losses:
            return [{} for _ in self.runs]
        values = self.ranks.average(torch.stack([value.float() for value in losses.values()]))
        agents = values.T.tolist()
        return [dict(zip(losses, agent, strict=True)) for agent in agents]

    def _tell(self, losses: Sequence[Mapping[str, float]], *, is_end: bool) -> None:
        """Logs, judges and keeps what is due at this step."""
        config, step = self.config, self.step
        if not self.ranks.is_first:
            return
        is_last = step == config.steps
        if is_last or step % config.log_every == 0:
            self._check(losses)
            for table, values in zip(self.metrics, losses, strict=True):
                table.add(step, values)
            self.report(Progress("train", step, config.steps, losses[0]))
        if config.environment and (is_last or _is_due(step, config.evaluate_every)):
            self._judge(config.environment)
        if is_last or is_end or step % config.checkpoint_every == 0:
            self._save()

    def _check(self, losses: Sequence[Mapping[str, float]]) -> None:
        """Stops where no run is left that learns; one of several may be lost alone."""
        if all(lost_in(values, self.learner) for values in losses):
            raise diverged(losses[0], self.learner, self.step)

    def _judge(self, environment: str) -> None:
        for agent, table in enumerate(self.judged):
            alone = self.learner
            if len(self.runs) > 1:
                alone = restore(snapshot(self.learner, self.step, {}, agent), self.config.device)
            found = evaluate(alone, environment, self.config.evaluate_episodes)
            self.evaluations[agent] = found
            table.add(self.step, evaluation_row(found))

    def _save(self) -> None:
        for agent, run in enumerate(self.runs):
            document = {**run.document(), "stream": run.stream.state_dict()}
            save_checkpoint(run.folder, snapshot(self.learner, self.step, document, agent))


def _next_stop(step: int, config: TrainConfig) -> int:
    """The next step at which something is logged, judged or kept."""
    every = [config.log_every, config.checkpoint_every, config.evaluate_every]
    return min(config.steps, *(step - step % n + n for n in every if n))


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
