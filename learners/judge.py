"""Runs judged by their last checkpoints: one, several seeds, folders of seeds; recorded with each.

Runs that differ by nothing but their seed are one group, whose score is the mean over the seeds
with an interval over seeds and episodes. All face the same starts. No run is left out, and no
checkpoint but the last is looked at.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from learners.checkpoint import Checkpoint, last_checkpoint, load_checkpoint, restore
from learners.data import Pinned
from learners.evaluate import EVALUATION_SEED, Evaluation, evaluate
from learners.files import write_whole
from learners.rollout import SLOTS
from learners.scores import Spread, normalized_score, spread
from schemas.errors import NotFoundError, UntrustedError

RECORD = "evaluation.json"
NOT_OF_A_GROUP = (
    *("seed", "out", "run", "branch", "name"),
    *("resume", "threads", "device", "tensorboard", "log_every", "checkpoint_every"),
    *("evaluate_every", "evaluate_episodes"),
)
"""What runs of one group may differ in, and what changes no result."""


@dataclass(frozen=True)
class Judging:
    """How runs are judged."""

    environment: str
    """A registered Gymnasium name."""
    episodes: int = 10
    seed: int = EVALUATION_SEED
    """Episode k of each run starts from seed `seed + k`."""
    copies: int = SLOTS
    """Of the environment, moving together; they change no return."""
    device: str = "cpu"
    """Where the policies act."""


@dataclass(frozen=True)
class Judged:
    """One run, as its last checkpoint did."""

    run: str
    """Its folder."""
    algo: str
    step: int
    """Updates of that checkpoint."""
    data: tuple[Pinned, ...]
    """The versions it read offline."""
    group: str
    """Equal for runs that differ by their seed alone."""
    evaluation: Evaluation


@dataclass(frozen=True)
class GroupScore:
    """What several runs of one group did."""

    runs: tuple[str, ...]
    algo: str
    returns: Spread
    normalized: Spread | None
    """D4RL's normalised scores, where references are known."""
    success: Spread | None
    """Rates, where the episodes say whether they succeeded."""


def find_runs(places: Iterable[str | Path]) -> tuple[Path, ...]:
    """Returns the runs at some places: a run's folder or checkpoint, or a folder of runs.

    Raises:
        NotFoundError: if there is no run at one of them.
    """
    found: dict[Path, None] = {}
    for place in map(Path, places):
        here = [place] if place.is_file() or _is_run(place) else _runs_within(place)
        if not here:
            raise NotFoundError(
                "Expected a run with a checkpoint, or a folder of such runs, came none; train one "
                "first.",
                where=str(place),
            )
        found.update(dict.fromkeys(here))
    return tuple(found)


def judge(
    run: Path, how: Judging, report: Callable[[int], None] | None = None, reuse: bool = False
) -> Judged:
    """Judges the last checkpoint of a run, and records it in the run's `evaluation.json`.

    Args:
        run: its folder, or a checkpoint file, beside which nothing is recorded.
        how: where and how long.
        report: told how many episodes are done.
        reuse: take over what was recorded of the same checkpoint, judged in the same way.

    Raises:
        NotFoundError: if there is no checkpoint.
        UnknownNameError: if the environment is not registered.
        UntrustedError: if the checkpoint or what was recorded is damaged.
    """
    checkpoint = load_checkpoint(run)
    document = checkpoint.document
    record = run / RECORD
    kept = [] if run.is_file() else _recorded(record)
    key = {
        **{name: getattr(how, name) for name in ("environment", "episodes", "seed")},
        "step": checkpoint.step,
        "run": document.get("run"),
    }
    same = next((one for one in kept if key.items() <= one.items()), None)
    if reuse and same is not None:
        evaluation = _evaluation(same)
        if report is not None:
            report(how.episodes)
    else:
        learner = restore(checkpoint, how.device)
        evaluation = evaluate(learner, how.environment, how.episodes, how.seed, how.copies, report)
        if not run.is_file():
            others = [one for one in kept if one is not same]
            told = {"evaluations": [*others, {**key, **_facts(evaluation)}]}
            write_whole(record, (json.dumps(told, indent=1) + "\n").encode())
    data = tuple(Pinned(**one) for one in document.get("data", ()))
    group = group_of(checkpoint)
    return Judged(str(run), checkpoint.algo, checkpoint.step, data, group, evaluation)


def group_of(checkpoint: Checkpoint) -> str:
    """Returns what a run is besides its seed, as one text."""
    document = checkpoint.document
    config = document.get("config", {})
    kept = {name: config[name] for name in config if name not in NOT_OF_A_GROUP}
    # Updates of fine-tuning hang on how long the last episode was.
    step = checkpoint.step if document.get("kind") == "train" else None
    parts = [checkpoint.algo, dict(checkpoint.settings), step, kept, document.get("data", ())]
    return json.dumps(parts, sort_keys=True)


def summarise(judged: Sequence[Judged]) -> list[GroupScore]:
    """Returns the score of each group, in the order in which they were first met."""
    groups: dict[str, list[Judged]] = {}
    for one in judged:
        groups.setdefault(one.group, []).append(one)
    return [group_score(runs) for runs in groups.values()]


def group_score(runs: Sequence[Judged]) -> GroupScore:
    """Returns the score of runs that count as seeds of one, judged in the same way."""
    first = runs[0].evaluation
    returns = np.array([one.evaluation.returns for one in runs])
    scored = normalized(returns, first.environment)
    said = [one.evaluation.successes for one in runs]
    wins = None if any(one is None for one in said) else np.array(said, np.float64)
    return GroupScore(
        runs=tuple(one.run for one in runs),
        algo=runs[0].algo,
        returns=spread(returns, first.seed),
        normalized=None if scored is None else spread(scored, first.seed),
        success=None if wins is None else spread(wins, first.seed),
    )


def normalized(returns: np.ndarray, environment: str) -> np.ndarray | None:
    """Returns D4RL's normalised scores of single episodes; None without references."""
    low, high = (normalized_score(environment, at) for at in (0.0, 1.0))
    return None if low is None or high is None else low + (high - low) * returns


def _facts(evaluation: Evaluation) -> dict[str, Any]:
    derived = ("mean_return", "normalized_score", "success_interval")
    told = {name: getattr(evaluation, name) for name in derived}
    return {**asdict(evaluation), **told}


def _evaluation(told: Mapping[str, Any]) -> Evaluation:
    given = {field.name: told[field.name] for field in fields(Evaluation)}
    return Evaluation(**{name: _tuples(value) for name, value in given.items()})


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _recorded(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        found: list[dict[str, Any]] = json.loads(path.read_bytes())["evaluations"]
    except (ValueError, KeyError, TypeError) as error:
        raise UntrustedError(
            f"Expected evaluations of a run, came: {error}; remove the file to judge again.",
            where=str(path),
        ) from error
    return found


def _is_run(place: Path) -> bool:
    return last_checkpoint(place) is not None


def _runs_within(place: Path) -> list[Path]:
    """Runs right within a folder, seeds in the order of their numbers."""
    if not place.is_dir():
        return []
    return sorted(filter(_is_run, place.iterdir()), key=_by_number)


def _by_number(path: Path) -> tuple[str, int]:
    start, _, end = path.name.rpartition("-")
    return (start, int(end)) if end.isdecimal() else (path.name, -1)
