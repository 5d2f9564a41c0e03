"""Policies over discrete actions: a probability of each.

Actions come as rows of 0 and 1 (`learners.inputs.one_hot`), so that losses read as for arrays.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from learners.networks import MLP, GaussianPolicy, mean_actions
from learners.noise import Noise


class CategoricalPolicy(nn.Module):
    """Softmax over n actions; arguments as for `MLP`, with n as the last size."""

    def __init__(
        self,
        sizes: Sequence[int],
        generators: Sequence[torch.Generator],
        dropout: float = 0.0,
        noise: Noise | None = None,
    ) -> None:
        super().__init__()
        self.trunk = MLP(sizes, generators, dropout=dropout, noise=noise)

    def forward(self, states: Tensor) -> Tensor:
        """Maps states (K, B, O) to logits (K, B, n)."""
        logits: Tensor = self.trunk(states)[:, 0]
        return logits


def categorical_log_prob(actions: Tensor, logits: Tensor) -> Tensor:
    """Returns log softmax(logits) of the actions done, (..., n) and (..., n) to (...)."""
    return (actions * torch.log_softmax(logits, dim=-1)).sum(dim=-1)


def acted(policy: GaussianPolicy | CategoricalPolicy, states: Tensor) -> Tensor:
    """Returns a policy's means, or its logits, without dropout."""
    if isinstance(policy, GaussianPolicy):
        return mean_actions(policy, states)
    policy.eval()
    logits: Tensor = policy(states)
    policy.train()
    return logits
