"""LeRobot's dataset, written by itself, with torch's DataLoader in the same process.

Its writer takes 0.4 ms per step, so the dataset is the first 30,000 steps or 1,000 pictures; what
an item costs does not depend on that. Reward and flags are one vector, because its writer cannot
take single numbers with NumPy 2.4.
"""

import os
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
from stream_source import (
    BATCH,
    CLIPS,
    FRAMES,
    SIDE,
    WINDOW,
    WINDOWS,
    arrays,
    episodes,
)

# LeRobot imports torchvision, whose operators do not load beside a torch without CUDA.
_register = torch.library.register_fake


def _register_others(name: Any, *args: Any, **options: Any) -> Any:
    if str(name).startswith("torchvision::"):
        return lambda function: function
    return _register(name, *args, **options)


torch.library.register_fake = _register_others

from lerobot.datasets.lerobot_dataset import LeRobotDataset  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

VERSION = f"LeRobot {version('lerobot')}"
FPS = 50
STEPS, PICTURES = 30_000, 1_000
STATE, IMAGE, NEXT = "observation.state", "observation.image", "next"


def prepare_numbers(place: Path) -> None:
    write(place, {STATE: ("float32", (11,))}, STEPS)


def prepare_pictures(place: Path) -> None:
    write(place, {IMAGE: ("image", (SIDE, SIDE, 3))}, PICTURES)


def l1(place: Path) -> Callable[[], Any]:
    """delta_timestamps of two states, DataLoader(shuffle=True); 30,000 steps."""
    drawn = endless(load(place, {STATE: 2}), BATCH)
    return lambda: transition(next(drawn))


def l2(place: Path) -> Callable[[], Any]:
    """delta_timestamps of 64 steps, with its mask of padding; 30,000 steps."""
    drawn = endless(load(place, dict.fromkeys((STATE, "action", NEXT), WINDOW)), WINDOWS)

    def batch() -> Any:
        found = next(drawn)
        is_valid = ~found[f"{STATE}_is_pad"]
        return found[STATE], found["action"], found[NEXT][..., 0], is_valid

    return batch


def l3(place: Path) -> Iterator[Any]:
    """DataLoader(shuffle=True), two states; 30,000 steps are its whole epoch."""
    for found in DataLoader(load(place, {STATE: 2}), batch_size=BATCH, shuffle=True):
        yield transition(found)


def l4(place: Path) -> Callable[[], Any]:
    """delta_timestamps of 3 pictures, PNG, float32 and channels first; padded; 1,000 pictures."""
    drawn = endless(load(place, {IMAGE: FRAMES}), CLIPS)

    def batch() -> Any:
        found = next(drawn)
        return found[IMAGE], ~found[f"{IMAGE}_is_pad"]

    return batch


def transition(found: Any) -> Any:
    seen, following = found[STATE], found[NEXT]
    return seen[:, 0], found["action"], following[:, 0], seen[:, 1], following[:, 1]


def load(place: Path, steps: dict[str, int]) -> LeRobotDataset:
    deltas = {name: [step / FPS for step in range(count)] for name, count in steps.items()}
    return LeRobotDataset("bench/bench", root=place / "lerobot", delta_timestamps=deltas)


def endless(dataset: LeRobotDataset, rows: int) -> Iterator[Any]:
    while True:
        yield from DataLoader(dataset, batch_size=rows, shuffle=True, drop_last=True)


def write(place: Path, seen: dict[str, tuple[str, tuple[int, ...]]], most: int) -> None:
    d = arrays(place)
    kinds = {
        **seen,
        "action": ("float32", (3,)),
        NEXT: ("float32", (3,)),
    }
    axes = ["height", "width", "channels"]
    dataset = LeRobotDataset.create(
        "bench/bench",
        fps=FPS,
        features={
            name: {"dtype": dtype, "shape": shape, "names": axes if len(shape) > 1 else None}
            for name, (dtype, shape) in kinds.items()
        },
        root=place / "lerobot",
        use_videos=False,
    )
    following = np.stack([d["rewards"], d["terminals"], d["timeouts"]], axis=1).astype(np.float32)
    for start, stop in episodes(d):
        if stop > most and start:
            break
        for step in range(start, stop):
            frame = {
                next(iter(seen)): d["observations"][step],
                "action": d["actions"][step],
                NEXT: following[step],
                "task": "bench",
            }
            dataset.add_frame(frame)
        dataset.save_episode()
    dataset.finalize()
