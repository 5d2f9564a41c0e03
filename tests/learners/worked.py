"""What tests of several algorithms share: batches of small numbers, and learners held to others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from learners.base import Learner, make_learner
from learners.normaliser import Normaliser
from tests.learners.slow_parts import Network

O, A, B = 4, 2, 32  # noqa: E741
SMALL: dict[str, Any] = {"hidden": (16, 16)}


def normaliser(action_scale: tuple[float, ...] = (1.0,) * A) -> Normaliser:
    zeros, ones = np.zeros(O, np.float32), np.ones(O, np.float32)
    return Normaliser(("observations",), zeros, ones, np.array(action_scale, np.float32))


def learner(algo: str, seed: int | Sequence[int] = 0, **settings: Any) -> Any:
    sizes = {} if algo == "dt" else SMALL
    return make_learner(algo, {**sizes, **settings}, normaliser(), seed)


def rows(seed: int, count: int = B) -> dict[str, Tensor]:
    """Transitions of which some are terminated, with what their episodes earned from there on."""
    generator = torch.Generator().manual_seed(seed)
    terminated = torch.rand(count, generator=generator) < 0.3
    return {
        "observations": torch.randn(count, O, generator=generator),
        "next_observations": torch.randn(count, O, generator=generator),
        "actions": 2 * torch.rand(count, A, generator=generator) - 1,
        "rewards": torch.randn(count, generator=generator),
        "terminated": terminated,
        "truncated": torch.zeros(count, dtype=torch.bool),
        "discounts": 0.99 * (~terminated).float(),
        "mask": torch.ones(count),
        "returns_to_go": torch.randn(count, generator=generator),
        "steps_to_go": torch.randint(1, 50, (count,), generator=generator),
        "timesteps": torch.randint(0, 20, (count,), generator=generator),
    }


def windows(seed: int, count: int = B) -> dict[str, Tensor]:
    """Windows of two steps; after some of the first the episode ended or was cut off."""
    now, following = rows(seed, count), rows(seed + 1000, count)
    both = {name: torch.stack([now[name], following[name]], dim=1) for name in now}
    generator = torch.Generator().manual_seed(seed)
    both["truncated"][:, 0] = torch.rand(count, generator=generator) < 0.3
    both["mask"][:, 1] = (~(both["terminated"] | both["truncated"])[:, 0]).float()
    return both


def doubles(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.double() for name, value in batch.items()}


def assert_near(fast: Learner, slow: Any) -> None:
    """Compares all networks of a learner with those of its slow version."""
    state = fast.state()
    for (prefix, member), expected in slow.networks.items():
        got = Network(state, prefix, member)
        for mine, theirs in zip(got.parameters, expected.parameters, strict=True):
            torch.testing.assert_close(mine.data, theirs.data, rtol=2e-5, atol=3e-6)
    for name, number in getattr(slow, "numbers", {}).items():
        torch.testing.assert_close(state[name][0].double(), number.data, rtol=1e-4, atol=1e-6)


def assert_same(one: Learner, two: Learner) -> None:
    left, right = one.state(), two.state()
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


def differ(one: Learner, two: Learner, part: str = "") -> bool:
    """True if the networks whose names begin so hold different numbers."""
    left, right = one.state(), two.state()
    names = [name for name in left if name.startswith(part)]
    return any(not torch.equal(left[name], right[name]) for name in names)
