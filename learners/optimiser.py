"""Adam, its learning rates, and the slow copy of a target network.

Fused Adam updates all parameters in one call and the target network moves in one `foreach` call:
with small networks an update costs mostly calls.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn


def make_adam(*groups: tuple[Iterable[nn.Parameter], float]) -> torch.optim.Adam:
    """Returns a fused Adam over groups of (parameters, learning rate)."""
    named = [{"params": list(parameters), "lr": rate} for parameters, rate in groups]
    return torch.optim.Adam(named, fused=True)


def descend(optimiser: torch.optim.Optimizer, loss: Tensor) -> Tensor:
    """Takes one gradient step; returns the loss as a number on its device."""
    optimiser.zero_grad()
    torch.autograd.backward(loss)
    optimiser.step()
    return loss.detach()


def cosine_rate(rate: float, step: int, steps: int) -> float:
    """Returns the rate of update `step` (from 0) under cosine decay to 0 over `steps` updates."""
    return rate * 0.5 * (1.0 + math.cos(math.pi * min(step, steps) / steps))


@torch.no_grad()
def move_target(target: Sequence[Tensor], source: Sequence[Tensor], tau: float) -> None:
    """Moves target parameters towards the source: target += tau (source - target)."""
    torch._foreach_lerp_(list(target), list(source), tau)
