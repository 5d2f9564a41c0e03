"""Adam over flat parameters, its learning rates, and the slow copy of a target network.

With small networks an update costs mostly calls. So the parameters of a network are laid end to end
in one tensor, of which the network's own are views: Adam, clearing gradients and moving a target
take one call each, however many layers there are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from learners.eager import uncompiled
from learners.ranks import ALONE, Ranks


def flatten(parameters: Iterable[nn.Parameter]) -> nn.Parameter:
    """Lays parameters end to end; they and their gradients become views of the one returned.

    Networks must be on their device before, and stay there.
    """
    parts = list(parameters)
    flat = nn.Parameter(torch.cat([part.detach().reshape(-1) for part in parts]))
    flat.grad = torch.zeros_like(flat)
    start = 0
    for part in parts:
        stop = start + part.numel()
        part.data = flat.data[start:stop].view_as(part)
        # Backward passes add to a gradient that is there in place, so it stays a view.
        part.grad = flat.grad[start:stop].view_as(part)
        start = stop
    return flat


class FlatAdam:
    """Adam over flat parameters, each at a rate of its own.

    Its moments are there from the start, so that they can be loaded in place. On a GPU rates are
    tensors there, so that what was captured of a step follows them.

    Args:
        groups: pairs of a flat parameter and its learning rate.
        ranks: the processes whose gradients are averaged.
    """

    def __init__(
        self,
        groups: Sequence[tuple[nn.Parameter, float]],
        ranks: Ranks = ALONE,
    ) -> None:
        self.parameters = [parameter for parameter, _ in groups]
        self.ranks = ranks
        self.rates: list[float | Tensor] = [
            torch.tensor(rate, device=parameter.device) if parameter.is_cuda else rate
            for parameter, rate in groups
        ]
        self.steps = [torch.zeros((), device=one.device) for one in self.parameters]
        self.means = [torch.zeros_like(one.data) for one in self.parameters]
        self.squares = [torch.zeros_like(one.data) for one in self.parameters]

    def set_rate(self, group: int, rate: float) -> None:
        """Sets the learning rate of one parameter."""
        held = self.rates[group]
        if isinstance(held, Tensor):
            held.fill_(rate)
        else:
            self.rates[group] = rate

    @uncompiled
    def weighed(self, loss: Tensor, mask: Tensor) -> Tensor:
        """Returns losses (K,), means over the rows of a mask, as they count among other ranks'.

        Args:
            loss: of each agent.
            mask: 1 where a row counts, (K, ...).
        """
        if self.ranks.size == 1:
            return loss
        return loss * self.ranks.weight(mask.flatten(1).sum(dim=1))

    @uncompiled
    def gradients(self, loss: Tensor) -> None:
        """Computes the parameters' gradients of the sum of the agents' losses (K,)."""
        for parameter in self.parameters:
            assert parameter.grad is not None, "flat parameters have theirs from the start"
            parameter.grad.zero_()
        torch.autograd.backward(loss.sum())
        for parameter in self.parameters:
            assert parameter.grad is not None, "as above"
            self.ranks.average(parameter.grad)

    @uncompiled
    @torch.no_grad()
    def step(self) -> None:
        """Moves the parameters against their gradients."""
        for index, parameter in enumerate(self.parameters):
            assert parameter.grad is not None, "flat parameters have theirs from the start"
            adam(
                [parameter.data],
                [parameter.grad],
                [self.means[index]],
                [self.squares[index]],
                [],
                [self.steps[index]],
                fused=True,
                capturable=parameter.is_cuda,
                amsgrad=False,
                beta1=0.9,
                beta2=0.999,
                lr=self.rates[index],
                weight_decay=0.0,
                eps=1e-8,
                maximize=False,
            )


def make_adam(*groups: tuple[nn.Parameter, float]) -> FlatAdam:
    """Returns an Adam over pairs of a flat parameter and its learning rate."""
    return FlatAdam(groups)


@uncompiled
def descend(optimiser: FlatAdam, loss: Tensor, mask: Tensor | None = None) -> Tensor:
    """Takes one gradient step on the sum of the agents' losses (K,); returns them detached.

    Args:
        optimiser: of the parameters to move.
        loss: means over rows.
        mask: 1 where a row counts, (K, ...); None where all do.
    """
    if mask is not None:
        loss = optimiser.weighed(loss, mask)
    optimiser.gradients(loss)
    optimiser.step()
    return loss.detach()


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Lets gradients pass through a network without reaching its own parameters."""
    parameters = list(module.parameters())
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def cosine_rate(rate: float, step: int, steps: int) -> float:
    """Returns the rate of update `step` (from 0) under cosine decay to 0 over `steps` updates."""
    return rate * 0.5 * (1.0 + math.cos(math.pi * min(step, steps) / steps))


@uncompiled
@torch.no_grad()
def move_target(target: Tensor, source: Tensor, tau: float) -> None:
    """Moves target parameters towards the source: target += tau (source - target)."""
    target.lerp_(source, tau)
