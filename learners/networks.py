"""The networks that learners share: stacked MLPs and the policies on top of them.

Agents that train side by side (K of them, by seed) and the members of an ensemble (E) are stacked
along the first axis of each weight, so that one batched product serves all of them; a plain network
is one agent with an ensemble of one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from learners.noise import Noise
from learners.stacked import stacked_mlp

LOG_STD_MIN = -5.0
LOG_STD_MAX = 2.0

FIRST_BIAS = 0.1

Norm = bool | Literal["after"]
"""Whether hidden layers are normalised, with a learned scale: before their activation, or after."""

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "tanh": torch.tanh,
}


class MLP(nn.Module):
    """Stacked copies of one network, orthogonally initialised.

    Args:
        sizes: widths from input to output, such as (17, 256, 256, 1).
        generators: one per agent, draws its initial weights; nothing else does.
        members: E, networks of one agent that see the same inputs.
        activation: a key of `ACTIVATIONS`.
        layer_norm: normalise each hidden layer before its activation, or `after` it.
        dropout: share of hidden units dropped in training.
        noise: draws what is dropped; needed with `dropout`.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        generators: Sequence[torch.Generator],
        members: int = 1,
        *,
        activation: str = "relu",
        layer_norm: Norm = False,
        dropout: float = 0.0,
        noise: Noise | None = None,
    ) -> None:
        super().__init__()
        self.agents, self.members = len(generators), members
        self.dropout, self.noise = dropout, noise
        self.activation = ACTIVATIONS[activation]
        self._is_plain = activation == "relu" and not layer_norm
        self._norms_after = layer_norm == "after"
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        self.scales = nn.ParameterList()
        self.shifts = nn.ParameterList()
        stack = self.agents * members
        for fan_in, fan_out in pairwise(sizes):
            self.weights.append(nn.Parameter(torch.empty(stack, fan_in, fan_out)))
            self.biases.append(nn.Parameter(torch.zeros(stack, 1, fan_out)))
        for width in sizes[1:-1] if layer_norm else ():
            self.scales.append(nn.Parameter(torch.ones(stack, 1, width)))
            self.shifts.append(nn.Parameter(torch.zeros(stack, 1, width)))
        for agent, generator in enumerate(generators):
            for weight in self.weights:
                for member in range(members):
                    nn.init.orthogonal_(
                        weight.data[agent * members + member], math.sqrt(2.0), generator
                    )
        # Reading a ParameterList takes as long as a small product; these are the same parameters.
        self._layers = tuple(zip(self.weights, self.biases, strict=True))
        self._norms = tuple(zip(self.scales, self.shifts, strict=True))

    def forward(self, inputs: Tensor) -> Tensor:
        """Maps (K, B, I) to (K, E, B, O)."""
        hidden = self._stacked(inputs)
        if self._is_plain and not (self.dropout and self.training):
            hidden = stacked_mlp(hidden, self._layers)
        else:
            hidden = self._layer_by_layer(hidden)
        return hidden.view(self.agents, self.members, *hidden.shape[1:])

    def _layer_by_layer(self, hidden: Tensor) -> Tensor:
        last = len(self._layers) - 1
        for index, (weight, bias) in enumerate(self._layers):
            hidden = torch.baddbmm(bias, hidden, weight)
            if index < last:
                if self._norms and not self._norms_after:
                    hidden = self._normed(hidden, index)
                hidden = self.activation(hidden)
                if self._norms_after:
                    hidden = self._normed(hidden, index)
                if self.dropout and self.training:
                    hidden = self._drop(hidden)
        return hidden

    def _normed(self, hidden: Tensor, index: int) -> Tensor:
        scale, shift = self._norms[index]
        normed: Tensor = functional.layer_norm(hidden, hidden.shape[-1:]) * scale + shift
        return normed

    def _stacked(self, inputs: Tensor) -> Tensor:
        """The inputs of each network, (K E, B, I)."""
        if self.members == 1:
            return inputs
        if self.agents == 1:
            return inputs.expand(self.members, *inputs.shape[1:])
        return inputs.repeat_interleave(self.members, dim=0)

    def _drop(self, hidden: Tensor) -> Tensor:
        assert self.noise is not None
        keep = 1.0 - self.dropout
        drawn = self.noise.uniform(self.members, *hidden.shape[1:]).flatten(0, 1)
        return hidden * (drawn < keep) / keep


@torch.no_grad()
def draw_uniformly(network: MLP, generators: Sequence[torch.Generator], last: float) -> None:
    """Draws the weights of a network anew, in place, so that what it says begins near 0.

    Hidden weights are uniform within 1 / sqrt(inputs), their biases `FIRST_BIAS`; those of the last
    layer are uniform within a bound. The authors of EDAC begin so, and those of ReBRAC after them.

    Args:
        network: what to draw.
        generators: one per agent.
        last: the bound.
    """
    *hidden, end = zip(network.weights, network.biases, strict=True)
    for agent, generator in enumerate(generators):
        mine = slice(agent * network.members, (agent + 1) * network.members)
        for weight, bias in hidden:
            bound = weight.shape[1] ** -0.5
            weight[mine].uniform_(-bound, bound, generator=generator)
            bias[mine].fill_(FIRST_BIAS)
        for parameter in end:
            parameter[mine].uniform_(-last, last, generator=generator)


class GaussianPolicy(nn.Module):
    """Gaussian with a tanh-bounded mean and a state-independent spread, on the unit box.

    This is the policy of IQL: Normal(tanh(f(s)), exp(log_std)); samples may leave the box and are
    cut where they are acted out. Arguments as for `MLP`.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        generators: Sequence[torch.Generator],
        dropout: float = 0.0,
        noise: Noise | None = None,
    ) -> None:
        super().__init__()
        self.trunk = MLP(sizes, generators, dropout=dropout, noise=noise)
        self.log_std = nn.Parameter(torch.zeros(len(generators), sizes[-1]))  # (K, A)

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Maps states (K, B, O) to means (K, B, A) and log standard deviations (K, 1, A)."""
        log_std = self.log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)
        return torch.tanh(self.trunk(states)[:, 0]), log_std[:, None]

    def std(self) -> Tensor:
        """Returns the standard deviations (K, A)."""
        return self.log_std.clamp(LOG_STD_MIN, LOG_STD_MAX).exp()


def mean_actions(policy: GaussianPolicy, states: Tensor) -> Tensor:
    """Returns the means of a policy, without dropout."""
    policy.eval()
    means: Tensor = policy(states)[0]
    policy.train()
    return means


class TanhPolicy(nn.Module):
    """Deterministic policy tanh(f(s)) on the unit box; arguments as for `MLP`."""

    def __init__(
        self,
        sizes: Sequence[int],
        generators: Sequence[torch.Generator],
        activation: str = "relu",
        layer_norm: Norm = False,
    ) -> None:
        super().__init__()
        self.trunk = MLP(sizes, generators, activation=activation, layer_norm=layer_norm)

    def forward(self, states: Tensor) -> Tensor:
        """Maps states (K, B, O) to actions (K, B, A)."""
        return torch.tanh(self.trunk(states)[:, 0])


class SquashedGaussianPolicy(nn.Module):
    """Gaussian pushed through tanh, with a spread that depends on the state: the policy of SAC.

    Arguments as for `MLP`.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        generators: Sequence[torch.Generator],
        activation: str = "relu",
        layer_norm: Norm = False,
    ) -> None:
        super().__init__()
        *hidden, actions = sizes
        widths = (*hidden, 2 * actions)
        self.trunk = MLP(widths, generators, activation=activation, layer_norm=layer_norm)

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Maps states (K, B, O) to means and log standard deviations before tanh, (K, B, A)."""
        means, log_std = self.trunk(states)[:, 0].chunk(2, dim=-1)
        return means, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)

    def sample(self, states: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Returns actions and their log densities for standard normal numbers.

        Args:
            states: (K, B, O).
            noise: (K, B, A), or (n, K, B, A) for several actions of each state.

        Returns:
            Actions on the unit box, as `noise`, and log pi of them without the last axis.
        """
        means, log_std = self(states)
        drawn = means + noise * log_std.exp()
        return torch.tanh(drawn), squashed_log_prob(drawn, noise, log_std)


def squashed_log_prob(drawn: Tensor, noise: Tensor, log_std: Tensor) -> Tensor:
    """Returns log pi(tanh(u)) of u = mean + noise exp(log_std), summed over action dims.

    log N(noise; 0, 1) - log_std - log(1 - tanh(u)^2); the last is 2 (log 2 - u - softplus(-2u)),
    which does not overflow.
    """
    gaussian = -0.5 * (noise.square() + math.log(2 * math.pi)) - log_std
    return (gaussian - 2.0 * (math.log(2.0) - drawn - functional.softplus(-2.0 * drawn))).sum(-1)
