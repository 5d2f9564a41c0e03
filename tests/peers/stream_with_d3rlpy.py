"""d3rlpy's replay buffer, loaded from its own HDF5."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import d3rlpy
import numpy as np
import structlog
import torch
from d3rlpy.dataset import InfiniteBuffer, ReplayBuffer
from d3rlpy.torch_utility import TorchMiniBatch, TorchTrajectoryMiniBatch
from stream_source import BATCH, CLIPS, FRAMES, WINDOW, WINDOWS, arrays
from with_d3rlpy import dump

VERSION = f"d3rlpy {d3rlpy.__version__}"
structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))


def prepare_numbers(place: Path) -> None:
    dump(arrays(place), str(place / "d3rlpy.h5"))


prepare_pictures = prepare_numbers


def l1(place: Path) -> Callable[[], Any]:
    """sample_transition_batch, TorchMiniBatch."""
    buffer = load(place)
    return lambda: transition(buffer)


def l2(place: Path) -> Callable[[], Any]:
    """sample_trajectory_batch, TorchTrajectoryMiniBatch; padded in front."""
    buffer = load(place)

    def batch() -> Any:
        drawn = buffer.sample_trajectory_batch(WINDOWS, WINDOW)
        found = TorchTrajectoryMiniBatch.from_batch(drawn, device="cpu")
        return found.observations, found.actions, found.rewards, found.masks

    return batch


def l3(place: Path) -> Iterator[Any]:
    """Loaded, then as many random batches as an epoch has: there are no epochs."""
    buffer = load(place)
    for _ in range(buffer.transition_count // BATCH):
        yield transition(buffer)


def l4(place: Path) -> Callable[[], Any]:
    """sample_trajectory_batch of 3 pictures; padded in front."""
    buffer = load(place)

    def batch() -> Any:
        drawn = buffer.sample_trajectory_batch(CLIPS, FRAMES)
        return [torch.from_numpy(np.asarray(one)) for one in (drawn.observations, drawn.masks)]

    return batch


def transition(buffer: ReplayBuffer) -> Any:
    drawn = buffer.sample_transition_batch(BATCH)
    found = TorchMiniBatch.from_batch(drawn, gamma=0.99, compute_returns_to_go=False, device="cpu")
    return (
        found.observations,
        found.actions,
        found.rewards,
        found.next_observations,
        found.terminals,
    )


def load(place: Path) -> ReplayBuffer:
    with (place / "d3rlpy.h5").open("rb") as file:
        return ReplayBuffer.load(file, InfiniteBuffer())
