"""The parts of agents that train side by side: networks, optimisers, random numbers.

Agents differ by their seed alone and never touch: their losses are added up, and each parameter
belongs to one of them. So K runs cost little more than one while a device has cores to spare. The
state of one agent has the same names and shapes whoever trained beside it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from learners.noise import Noise
from learners.optimiser import FlatAdam, flatten
from learners.ranks import ALONE, Ranks

M = TypeVar("M", bound=nn.Module)


class Agents:
    """Networks, optimisers and random numbers of K agents, by name.

    Every parameter's first axis is a multiple of K: the part of agent k is its k-th slice.

    Args:
        seeds: one per agent, of its initial weights and its noise.
        device: where all of it lives.
        ranks: the processes that learn together.
    """

    def __init__(self, seeds: Sequence[int], device: str, ranks: Ranks = ALONE) -> None:
        self.seeds = tuple(seeds)
        self.ranks = ranks
        self.device = device
        self.initial = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.noise = Noise(seeds, device, ranks)
        self.updates = 0
        """How many updates were taken."""
        self._modules: dict[str, nn.Module] = {}
        self._adams: dict[str, tuple[FlatAdam, tuple[str, ...]]] = {}
        self.flat: dict[str, nn.Parameter] = {}
        """All parameters of a network end to end, by its name."""

    @property
    def count(self) -> int:
        """K."""
        return len(self.seeds)

    def add(self, name: str, module: M) -> M:
        """Takes a network in; returns it, on the device."""
        module = module.to(self.device)
        self._modules[name] = module
        self.flat[name] = flatten(module.parameters())
        return module

    def target(self, name: str, of: str) -> nn.Module:
        """Makes the slow copy of a network, which no gradient reaches."""
        twin = copy.deepcopy(self._modules[of])
        twin.requires_grad_(False)
        return self.add(name, twin)

    def adam(self, name: str, **rates: float) -> FlatAdam:
        """Makes an optimiser of some networks, by their names, each at a rate of its own."""
        groups = [(self.flat[network], rate) for network, rate in rates.items()]
        made = FlatAdam(groups, self.ranks)
        self._adams[name] = (made, tuple(rates))
        return made

    def split(self, rows: Tensor) -> Tensor:
        """Splits the rows of a batch among agents, (K B, ...) to (K, B, ...)."""
        return rows.reshape(self.count, len(rows) // self.count, *rows.shape[1:])

    # -- state ---------------------------------------------------------------------------------

    def state(self, agent: int = 0) -> dict[str, Tensor]:
        """Returns everything that an agent's later updates depend on, as flat named tensors."""
        found: dict[str, Tensor] = {}
        for name, module in self._modules.items():
            for inner, tensor in module.state_dict().items():
                found[f"{name}/{inner}"] = self._part(tensor, agent)
        for name, (adam, networks) in self._adams.items():
            for index, network in enumerate(networks):
                found[f"{name}/{index}/step"] = adam.steps[index]
                for moment, kept in _moments(adam, index):
                    parts = self._pieces(network, kept)
                    own = [self._part(part, agent).reshape(-1) for part in parts]
                    found[f"{name}/{index}/{moment}"] = torch.cat(own)
        found["noise"] = self.noise.get_state(agent)
        found["updates"] = torch.tensor(self.updates)
        return found

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor], agent: int = 0) -> None:
        """Inverse of `state`; learning rates stay as they are."""
        for name, module in self._modules.items():
            for inner, tensor in module.state_dict().items():
                self._part(tensor, agent).copy_(state[f"{name}/{inner}"])
        for name, (adam, networks) in self._adams.items():
            for index, network in enumerate(networks):
                adam.steps[index].copy_(state[f"{name}/{index}/step"])
                for moment, kept in _moments(adam, index):
                    given = state[f"{name}/{index}/{moment}"]
                    parts = self._pieces(network, kept)
                    own = [self._part(part, agent) for part in parts]
                    came = torch.split(given, [part.numel() for part in own])
                    for mine, new in zip(own, came, strict=True):
                        mine.copy_(new.view_as(mine))
        self.noise.set_state(agent, state["noise"])
        self.updates = int(state["updates"])

    def _part(self, tensor: Tensor, agent: int) -> Tensor:
        size = len(tensor) // self.count
        return tensor[agent * size : (agent + 1) * size]

    def _pieces(self, network: str, flat: Tensor) -> list[Tensor]:
        """Views of a flat tensor as the network's parameters lie in it."""
        shapes = [parameter.shape for parameter in self._modules[network].parameters()]
        parts = torch.split(flat, [shape.numel() for shape in shapes])
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def _moments(adam: FlatAdam, index: int) -> list[tuple[str, Tensor]]:
    """The moments of one parameter, by their names in states."""
    return [("exp_avg", adam.means[index]), ("exp_avg_sq", adam.squares[index])]
