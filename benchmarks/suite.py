"""Runs one task of the suite: data, a store, learners by seeds, their last checkpoints judged.

What is there already stays: data that were made, runs that ended, rows of `results.json`. So a
suite that was stopped goes on where it was. Data and runs lie in folders named after the settings
they were made with, and rows hold theirs: under other settings all of it is made anew.
"""

from __future__ import annotations

import hashlib
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
from learners.rollout import SLOTS
from learners.run import threads
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
        reference = references[entry.data or "main"]
        made_with = _made_with(place, entry, reference)
        if document["rows"].get(row, {}).get("made_with") != made_with:
            document["rows"][row] = {"made_with": made_with, "seeds": {}}
        done = document["rows"][row]
        done["published"] = entry.published_online or entry.published
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
    task = place.task
    made_with = {"world": task.world, "maker": task.maker, "episodes": place.scale.episodes}
    more = {"grid": task.grid} if task.maker else {"hidden": place.scale.hidden}
    folder = place.folder / f"data-{_digest(made_with | more)}"
    file = folder / "data.json"
    if file.exists():
        kept: dict[str, str] = json.loads(file.read_text())
        return kept
    made = dict(_made(place, folder))
    write_whole(file, (json.dumps(made, indent=1) + "\n").encode())
    return made


def _made(place: Place, folder: Path) -> Iterator[tuple[str, str]]:
    task, store, world = place.task, folder / "store", place.task.world
    if not task.maker:
        yield "main", make_replay(world, place.scale, folder, place.device)
    elif not task.grid:
        count = ["--episodes", str(place.scale.episodes)]
        file = make(world, task.maker, folder / "data" / "main.npz", count)
        yield "main", ingest(file, store, "main")
    else:
        for name in grid_entries(task):
            if "/" in name:
                policy, system = name.removeprefix("bc ").split("/")
                levels = ["--policy_noise", policy, "--system_noise", system]
                levels += ["--episodes", str(place.scale.episodes)]
                data = folder / "data" / f"p{policy}-s{system}.npz"
                file = make(world, task.maker, data, levels)
                yield name, ingest(file, store, f"p{policy}-s{system}")
        yield from add_mixed(folder, store)


# -- settings ------------------------------------------------------------------------------------


def _made_with(place: Place, entry: Entry, reference: str) -> dict[str, Any]:
    """Returns all that decides what a row's seeds reach, as JSON reads it back."""
    judged = {"world": place.task.world, "evaluation_episodes": place.scale.evaluation_episodes}
    asked = _run_with(place, entry, reference) | judged
    made_with: dict[str, Any] = json.loads(json.dumps(asked))
    return made_with


def _run_with(place: Place, entry: Entry, reference: str) -> dict[str, Any]:
    """Returns what a row's runs are made with, to their end."""
    made_with = _offline_with(place, entry, reference)
    if entry.online is None:
        return made_with
    return made_with | {"online": entry.online, "env_steps": place.scale.env_steps}


def _offline_with(place: Place, entry: Entry, reference: str) -> dict[str, Any]:
    """Returns what a run offline is made with; rows that go on online share it."""
    return {
        "algo": entry.algo,
        "data": reference,
        "settings": _settings(place, entry, reference),
        "steps": 1 if entry.algo == "rlpd" else place.scale.steps,
        "batch_size": place.scale.batch_size,
        "discount": place.task.discount,
    }


def _settings(place: Place, entry: Entry, reference: str) -> dict[str, Any]:
    """Returns a row's hyperparameters: published ones, or those of short runs."""
    settings: dict[str, Any] = {"hidden": place.scale.hidden, **entry.settings}
    if place.size == "small":
        settings |= {**entry.small, "hidden": place.scale.hidden}
    if place.task.is_return and entry.algo == "iql":
        settings["reward_scale"] = return_scale(reference)
    return settings


def _digest(made_with: Mapping[str, Any]) -> str:
    """Returns a name for settings: others, another name."""
    return hashlib.sha256(json.dumps(made_with, sort_keys=True).encode()).hexdigest()[:10]


# -- learning ------------------------------------------------------------------------------------


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
            name = f"{_slug(row)}-{_digest(_run_with(place, entry, reference))}-{seed}"
            run = _online(place, run, entry.online, name, seed)
        seconds = offline + time.process_time() - before
        judged = _evaluated(place, run)
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
    made_with = _offline_with(place, entry, reference)
    name = f"{_slug(row.removesuffix(' online'))}-{_digest(made_with)}"
    out = place.folder / "runs" / name
    first, count = min(seeds), max(seeds) - min(seeds) + 1
    train_seeds(
        TrainConfig(
            **{**made_with, "data": (reference,)},
            out=str(out),
            seed=first,
            device=place.device,
            checkpoint_every=max(place.scale.steps // 4, 1),
            log_every=max(place.scale.steps // 100, 1),
            resume=True,
        ),
        count,
    )
    return {seed: out / f"seed-{seed}" for seed in range(first, first + count)}


def _online(place: Place, run: Path, online: Mapping[str, Any], name: str, seed: int) -> Path:
    out = place.folder / "runs" / name
    finetune(
        FinetuneConfig(
            run=str(run),
            environment=register(place.task.world),
            into=str(place.folder / "rollouts" / name),
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


def _evaluated(place: Place, run: Path) -> Evaluation:
    """Judges a run's last checkpoint.

    A simulator elsewhere takes longer to start than its episodes do, and copies of it do not move
    at the same time: so there is one.
    """
    world = place.task.world
    copies = 1 if "/" in world else SLOTS
    learner = restore(load_checkpoint(run), place.device)
    with threads(1):
        return evaluate(learner, register(world), place.scale.evaluation_episodes, copies=copies)


def _score(task: Task, judged: Evaluation) -> float:
    """Success in percent, or D4RL's score."""
    if not task.is_return:
        return 100.0 * (judged.success or 0.0)
    score = judged.normalized_score
    return judged.mean_return if score is None else score


def _slug(row: str) -> str:
    return row.replace(" ", "-").replace("/", "-")
