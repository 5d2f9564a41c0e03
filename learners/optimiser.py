"""Adam over flat parameters, its learning rates, and the slow copy of a target network.

With small networks an update costs mostly calls. So the parameters of a network are laid end to end
in one tensor, of which the network's own are views: Adam, clearing gradients and moving a target
take one call each, however many layers there are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


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


def make_adam(*groups: tuple[nn.Parameter, float]) -> torch.optim.Adam:
    """Returns a fused Adam over pairs of a flat parameter and its learning rate.

    Its moments are there from the start, so that they can be loaded in place.
    """
    named = [{"params": [parameter], "lr": rate} for parameter, rate in groups]
    adam = torch.optim.Adam(named, fused=True)
    for parameter, _ in groups:
        adam.state[parameter] = {
            "step": torch.zeros((), device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return adam


def descend(optimiser: torch.optim.Adam, loss: Tensor) -> Tensor:
    """Takes one gradient step on the sum of the agents' losses (K,); returns them detached."""
    for group in optimiser.param_groups:
        group["params"][0].grad.zero_()
    torch.autograd.backward(loss.sum())
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


@torch.no_grad()
def move_target(target: Tensor, source: Tensor, tau: float) -> None:
    """Moves target parameters towards the source: target += tau (source - target)."""
    target.lerp_(source, tau)
