"""Runs one task of the suite: data, a store, learners by seeds, their last checkpoints judged.

What is there already stays: data that were made, runs that ended, rows of `results.json`. So a
suite that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.data import ingest, make
from benchmarks.noise_grid import add_mixed, correlate, grid_entries
from benchmarks.remote import register
from benchmarks.replays import make_replay, return_scale
from benchmarks.tasks import TASKS, Entry, Scale, Size, Task
from learners.checkpoint import last_checkpoint, load_checkpoint, restore
from learners.evaluate import Evaluation, evaluate
from learners.files import write_whole
from learners.finetune import FinetuneConfig, finetune
from learners.train import TrainConfig, train_seeds

RESULTS = "results.json"
Note = Callable[[str], None]


@dataclass(frozen=True)
class Place:
    """Where a task is run, and how much of it."""

    name: str
    task: Task
    size: Size
    folder: Path
    device: str
    note: Note

    @property
    def scale(self) -> Scale:
        """Of this size."""
        return self.task.sizes[self.size]


def run_task(
    name: str,
    size: Size,
    seeds: int,
    out: Path,
    only: Sequence[str] = (),
    device: str = "cpu",
    note: Note = lambda text: None,
) -> Path:
    """Runs a task; returns its `results.json`.

    Args:
        name: of a task.
        size: `small` or `full`.
        seeds: how many runs of each row.
        out: folder of the suite; the task's is `SIZE/NAME` in it.
        only: rows to run; all by default.
        device: where networks live.
        note: told what is being done.
    """
    place = Place(name, TASKS[name], size, out / size / name, device, note)
    file = place.folder / RESULTS
    document: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"rows": {}}
    note(f"{name} ({size}): data")
    references = _data(place)
    document |= {"task": name, "size": size, "data": references, "world": place.task.world}
    document["orders"] = [list(pair) for pair in place.task.orders]
    entries = grid_entries(place.task) if place.task.grid else place.task.entries
    for row, entry in entries.items():
        if only and row not in only:
            continue
        done = document["rows"].setdefault(row, {"seeds": {}})
        reference = references[entry.data or "main"]
        done |= {"algo": entry.algo, "settings": _settings(place, entry, reference)}
        done |= {"published": entry.published_online or entry.published}
        missing = [seed for seed in range(seeds) if str(seed) not in done["seeds"]]
        for seed, found in _judged(place, row, entry, reference, missing):
            done["seeds"][str(seed)] = found
            write_whole(file, (json.dumps(document, indent=1) + "\n").encode())
            note(f"{name}: {row}, seed {seed}: {found['score']:.1f}")
    if place.task.grid:
        document["correlation"] = correlate(document)
    write_whole(file, (json.dumps(document, indent=1) + "\n").encode())
    return file


# -- data ----------------------------------------------------------------------------------------


def _data(place: Place) -> dict[str, str]:
    """Makes the data and takes them in; returns pinned references by their names."""
    file = place.folder / "data.json"
    if file.exists():
        kept: dict[str, str] = json.loads(file.read_text())
        return kept
    made = dict(_made(place))
    write_whole(file, (json.dumps(made, indent=1) + "\n").encode())
    return made


def _made(place: Place) -> Iterator[tuple[str, str]]:
    task, store, world = place.task, place.folder / "store", place.task.world
    if not task.maker:
        yield "main", make_replay(world, place.scale, place.folder, place.device)
    elif not task.grid:
        count = ["--episodes", str(place.scale.episodes)]
        file = make(world, task.maker, place.folder / "data" / "main.npz", count)
        yield "main", ingest(file, store, "main")
    else:
        for name in grid_entries(task):
            if "/" in name:
                policy, system = name.removeprefix("bc ").split("/")
                levels = ["--policy_noise", policy, "--system_noise", system]
                levels += ["--episodes", str(place.scale.episodes)]
                data = place.folder / "data" / f"p{policy}-s{system}.npz"
                file = make(world, task.maker, data, levels)
                yield name, ingest(file, store, f"p{policy}-s{system}")
        yield from add_mixed(place.folder, store)


# -- learning ------------------------------------------------------------------------------------


def _settings(place: Place, entry: Entry, reference: str) -> dict[str, Any]:
    """Returns a row's hyperparameters: published ones, or those of short runs."""
    settings: dict[str, Any] = {"hidden": place.scale.hidden, **entry.settings}
    if place.size == "small":
        settings |= {**entry.small, "hidden": place.scale.hidden}
    if place.task.is_return and entry.algo == "iql":
        settings["reward_scale"] = return_scale(reference)
    return settings


def _judged(
    place: Place, row: str, entry: Entry, reference: str, seeds: Sequence[int]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Trains seeds of a row, judges their last checkpoints, and says what came of each."""
    if not seeds:
        return
    before = time.process_time()
    runs = _offline(place, row, entry, reference, seeds)
    offline = (time.process_time() - before) / len(runs)
    for seed in seeds:
        before = time.process_time()
        run = runs[seed]
        if entry.online is not None:
            run = _online(place, run, entry.online, row, seed)
        seconds = offline + time.process_time() - before
        learner = restore(load_checkpoint(run), place.device)
        judged = evaluate(learner, register(place.task.world), place.scale.evaluation_episodes)
        yield (
            seed,
            {
                "score": _score(place.task, judged),
                "mean_return": judged.mean_return,
                "success": judged.success,
                "returns": list(judged.returns),
                "learning_cpu_seconds": round(seconds, 1),
            },
        )


def _offline(
    place: Place, row: str, entry: Entry, reference: str, seeds: Sequence[int]
) -> dict[int, Path]:
    """Trains seeds side by side; a row that goes on online shares its beginning with the other."""
    out = place.folder / "runs" / _slug(row.removesuffix(" online"))
    first, count = min(seeds), max(seeds) - min(seeds) + 1
    train_seeds(
        TrainConfig(
            algo=entry.algo,
            data=(reference,),
            out=str(out),
            steps=1 if entry.algo == "rlpd" else place.scale.steps,
            settings=_settings(place, entry, reference),
            batch_size=place.scale.batch_size,
            seed=first,
            discount=place.task.discount,
            device=place.device,
            checkpoint_every=max(place.scale.steps // 4, 1),
            log_every=max(place.scale.steps // 100, 1),
            resume=True,
        ),
        count,
    )
    return {seed: out / f"seed-{seed}" for seed in range(first, first + count)}


def _online(place: Place, run: Path, online: Mapping[str, Any], row: str, seed: int) -> Path:
    out = place.folder / "runs" / f"{_slug(row)}-{seed}"
    finetune(
        FinetuneConfig(
            run=str(run),
            environment=register(place.task.world),
            into=str(place.folder / "rollouts" / f"{_slug(row)}-{seed}"),
            out=str(out),
            env_steps=place.scale.env_steps,
            round_steps=max(place.scale.env_steps // 100, 500),
            seed=seed,
            device=place.device,
            evaluate_episodes=1,  # of its own; what counts is judged after it, as the others are
            resume=last_checkpoint(out) is not None,
            **online,
        )
    )
    return out


def _score(task: Task, judged: Evaluation) -> float:
    """Success in percent, or D4RL's score."""
    if not task.is_return:
        return 100.0 * (judged.success or 0.0)
    score = judged.normalized_score
    return judged.mean_return if score is None else score


def _slug(row: str) -> str:
    return row.replace(" ", "-").replace("/", "-")
