"""What offline training and fine-tuning have in common: progress, threads, evaluations, results."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from learners.base import Learner
from learners.boards import FOLDER
from learners.data import Pinned
from learners.evaluate import Evaluation
from learners.files import write_whole
from learners.regret import Regret
from learners.sampling import order_of
from learners.settings import LearnerSettings
from schemas.errors import ConfigError, DivergedError


@dataclass(frozen=True)
class Progress:
    """Where a run is."""

    stage: str
    """`pack`, while what the run reads is cached; then `train` or `finetune`."""
    done: int
    """Blocks packed, updates taken, or environment steps made."""
    total: int
    values: Mapping[str, float] = field(default_factory=dict)
    """The latest losses."""


Report = Callable[[Progress], None]


def silent(_progress: Progress) -> None:
    """Reports to nobody."""


@dataclass(frozen=True)
class RunResult:
    """What a run leaves behind."""

    run: str
    """Its folder."""
    algo: str
    steps: int
    """Updates taken in all."""
    updates_per_second: float
    """Batches included, evaluation and collection left out; this process's part of the run."""
    data: tuple[Pinned, ...]
    """The versions it read."""
    evaluation: Evaluation | None = None
    """Of the last policy, where the run evaluates."""
    regret: Regret | None = None
    """Of the training episodes, where the run plays."""


class Timer:
    """Adds up the time spent within it."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._began = 0.0

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._began

    def rate(self, count: int) -> float:
        """Returns how many a second, 0 where nothing was timed."""
        return round(count / self.seconds, 1) if self.seconds else 0.0


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Bounds torch's threads in this process, and sets them back."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def as_numbers(values: Mapping[str, Tensor]) -> dict[str, float]:
    """Reads scalars off their device."""
    return {name: float(value) for name, value in values.items()}


def lost_in(losses: Mapping[str, float], learner: Learner) -> list[str]:
    """Returns the losses of a learner that are no numbers any more, by name."""
    found = [name for name, value in losses.items() if not math.isfinite(value)]
    return [name for name in found if name not in learner.now_and_then or len(losses) == len(found)]


def learned(losses: Mapping[str, Tensor], learner: Learner, step: int) -> dict[str, float]:
    """Reads an update's losses off their device.

    Raises:
        DivergedError: if some are no numbers any more.
    """
    found = as_numbers(losses)
    if lost_in(found, learner):
        raise diverged(found, learner, step)
    return found


def diverged(losses: Mapping[str, float], learner: Learner, step: int) -> DivergedError:
    """Returns the error that says which losses are no numbers any more."""
    return DivergedError(
        f"Expected finite losses, came {', '.join(lost_in(losses, learner))} that are not by "
        f"update {step:,}; lower the rates, scale rewards, or look for values of the data that "
        f"are not finite."
    )


def evaluation_row(evaluation: Evaluation) -> dict[str, Any]:
    """One row of a run's table of evaluations."""
    low, high = evaluation.interval
    return {
        "mean_return": evaluation.mean_return,
        "low": low,
        "high": high,
        "normalized_score": evaluation.normalized_score,
        "episodes": len(evaluation.returns),
        "success": evaluation.success,
    }


def regret_row(regret: Regret | None) -> dict[str, float]:
    """Columns of a row of metrics."""
    return {} if regret is None else {"regret": regret.value}


def write_config(folder: Path, document: Mapping[str, Any], settings: LearnerSettings) -> None:
    """Writes what a run is, for people: the checkpoint holds the same for machines.

    Its tables go to TensorBoard, too, if its configuration says so.

    Args:
        folder: of the run.
        document: what it is.
        settings: hyperparameters, those that nobody set included.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if document["config"].get("tensorboard"):
        (folder / FOLDER).mkdir(exist_ok=True)
    kept = {name: document[name] for name in ("kind", "run", "config", "data", "inputs")}
    kept["settings"] = settings.model_dump(mode="json")
    write_whole(folder / "run.json", (json.dumps(kept, indent=2) + "\n").encode())


def check_same_stream(kept: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Refuses to go on with batches of another order; where rows lie may change.

    Raises:
        ConfigError: naming the first setting of the stream that differs.
    """
    before, now = order_of(kept), order_of(asked)
    names = tuple(sorted(before.keys() | now.keys()))
    default = dict.fromkeys(names)
    check_same({**default, **before}, {**default, **now}, names)


def check_same(kept: Mapping[str, Any], asked: Mapping[str, Any], names: tuple[str, ...]) -> None:
    """Refuses to go on with a run under other settings.

    Raises:
        ConfigError: naming the first setting that differs.
    """
    for name in names:
        if kept[name] != asked[name]:
            raise ConfigError(
                f"Expected to resume with {name} = {kept[name]!r} as the run began, "
                f"came {asked[name]!r}; start another run for other settings.",
                where=name,
            )
