"""The networks that learners share: an MLP with stacked members, and a Gaussian policy.

Members of an ensemble (twin critics) are stacked along the first axis of each weight, so that one
batched product serves all of them; a plain network is an ensemble of one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

LOG_STD_MIN = -5.0
LOG_STD_MAX = 2.0


class MLP(nn.Module):
    """ReLU network of `members` independent stacked copies, orthogonally initialised.

    Args:
        sizes: widths from input to output, such as (17, 256, 256, 1).
        generator: draws the initial weights; nothing else does.
        members: E, how many networks lie side by side.
        dropout: share of hidden units dropped in training, by this same generator.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        generator: torch.Generator,
        members: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.generator = generator
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for fan_in, fan_out in pairwise(sizes):
            stack = [_orthogonal(fan_in, fan_out, generator) for _ in range(members)]
            self.weights.append(nn.Parameter(torch.stack(stack)))  # (E, I, O)
            self.biases.append(nn.Parameter(torch.zeros(members, 1, fan_out)))
        # Reading a ParameterList takes as long as a small product; these are the same parameters.
        self._layers = tuple(zip(self.weights, self.biases, strict=True))
        self._members = members

    def forward(self, inputs: Tensor) -> Tensor:
        """Maps (B, I) to (E, B, O)."""
        last = len(self._layers) - 1
        hidden = inputs.expand(self._members, *inputs.shape)
        for index, (weight, bias) in enumerate(self._layers):
            hidden = torch.baddbmm(bias, hidden, weight)
            if index < last:
                hidden = torch.relu(hidden)
                if self.dropout and self.training:
                    hidden = self._drop(hidden)
        return hidden

    def _drop(self, hidden: Tensor) -> Tensor:
        keep = 1.0 - self.dropout
        # Drawn on the generator's own device (the CPU), so that a run resumes exactly anywhere.
        kept = torch.empty(hidden.shape).bernoulli_(keep, generator=self.generator)
        return hidden * kept.to(hidden.device) / keep


class GaussianPolicy(nn.Module):
    """Gaussian with a tanh-bounded mean and a state-independent spread, on the unit box.

    This is the policy of IQL: Normal(tanh(f(s)), exp(log_std)); samples may leave the box and are
    cut where they are acted out.
    """

    def __init__(
        self, sizes: Sequence[int], generator: torch.Generator, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.trunk = MLP(sizes, generator, dropout=dropout)
        self.log_std = nn.Parameter(torch.zeros(sizes[-1]))  # (A,)

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Maps states (B, O) to the means (B, A) and the log standard deviations (A,)."""
        return torch.tanh(self.trunk(states)[0]), self.log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)

    def std(self) -> Tensor:
        """Returns the standard deviations (A,)."""
        return self.log_std.clamp(LOG_STD_MIN, LOG_STD_MAX).exp()


def _orthogonal(fan_in: int, fan_out: int, generator: torch.Generator) -> Tensor:
    weight = torch.empty(fan_in, fan_out)
    return nn.init.orthogonal_(weight, gain=math.sqrt(2.0), generator=generator)
