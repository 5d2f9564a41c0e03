"""Random numbers of agents that train side by side, each from a generator of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from learners.eager import uncompiled
from learners.ranks import ALONE, Ranks

_APART = 1 << 32
"""Keeps the numbers of training apart from those that made the initial weights."""


class Noise:
    """One generator per agent, on the device where the numbers are used.

    An agent draws the same numbers whoever trains beside it.

    Args:
        seeds: one per agent.
        device: where the numbers are made.
        ranks: the processes that learn together; each takes those of its rows.
    """

    def __init__(self, seeds: Sequence[int], device: str, ranks: Ranks = ALONE) -> None:
        self.device = torch.device(device)
        self._ranks = ranks
        self._generators = [
            torch.Generator(self.device).manual_seed(seed + _APART) for seed in seeds
        ]

    @property
    def generators(self) -> list[torch.Generator]:
        """One per agent."""
        return self._generators

    def normal(self, *shape: int) -> Tensor:
        """Returns standard normal numbers, (K, *shape) float32; rows are the last axis but one."""
        return self._stacked(torch.randn, shape)

    def uniform(self, *shape: int) -> Tensor:
        """Returns numbers in [0, 1), (K, *shape) float32; rows are the last axis but one."""
        return self._stacked(torch.rand, shape)

    def get_state(self, agent: int) -> Tensor:
        """Returns where an agent's generator is, bytes on the CPU."""
        return self._generators[agent].get_state()

    def set_state(self, agent: int, state: Tensor) -> None:
        """Inverse of `get_state`; on a device of another kind, numbers that follow from it alone.

        Generators of other kinds have states of other sizes, and draw other numbers anyhow.
        """
        generator = self._generators[agent]
        if len(state) == len(generator.get_state()):
            generator.set_state(state)
        else:
            digest = hashlib.sha256(state.numpy().tobytes()).digest()
            generator.manual_seed(int.from_bytes(digest[:8], "little") >> 1)

    @uncompiled  # generators are unknown there
    def _stacked(self, draw: object, shape: tuple[int, ...]) -> Tensor:
        ranks = self._ranks
        if ranks.size > 1 and len(shape) > 1:
            rows = shape[-2] * ranks.size
            drawn = self._drawn(draw, (*shape[:-2], rows, shape[-1]))
            return drawn.narrow(-2, ranks.share(rows).start, shape[-2])
        return self._drawn(draw, shape)

    def _drawn(self, draw: object, shape: tuple[int, ...]) -> Tensor:
        drawn: list[Tensor] = [
            draw((1, *shape), generator=generator, device=self.device)  # type: ignore[operator]
            for generator in self._generators
        ]
        return drawn[0] if len(drawn) == 1 else torch.cat(drawn)
