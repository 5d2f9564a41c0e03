"""What the slow versions of learners are made of: plain float64 networks, one at a time, and Adam.

Shares no code with `learners`: no stacking, no flat parameters, no fused optimiser. Gradients are
autograd's, taken for one loss and one list of parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class Network:
    """One multi-layer perceptron, with ReLU, and layer norm where its numbers hold scales."""

    norms_after = False
    """Whether layer norm comes after ReLU."""

    def __init__(self, state: Mapping[str, Tensor], prefix: str, member: int = 0) -> None:
        def taken(kind: str) -> list[Tensor]:
            found: list[Tensor] = []
            while (name := f"{prefix}{kind}.{len(found)}") in state:
                found.append(state[name][member].double().clone().requires_grad_())
            return found

        self.weights, self.biases = taken("weights"), taken("biases")
        self.scales, self.shifts = taken("scales"), taken("shifts")

    def __call__(self, x: Tensor) -> Tensor:
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = x @ weight + bias
            if index == len(self.weights) - 1:
                break
            if self.scales and not self.norms_after:
                x = self.normed(x, index)
            x = self.bent(x)
            if self.scales and self.norms_after:
                x = self.normed(x, index)
        return x

    def normed(self, x: Tensor, index: int) -> Tensor:
        mean = x.mean(dim=-1, keepdim=True)
        variance = ((x - mean) ** 2).mean(dim=-1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + 1e-5)
        return x * self.scales[index] + self.shifts[index]

    def bent(self, x: Tensor) -> Tensor:
        return x.clamp(min=0)

    @property
    def parameters(self) -> list[Tensor]:
        return [*self.weights, *self.biases, *self.scales, *self.shifts]

    def follow(self, other: Network, tau: float) -> None:
        for mine, theirs in zip(self.parameters, other.parameters, strict=True):
            mine.data = (1 - tau) * mine.data + tau * theirs.data


class Adam:
    def __init__(self, parameters: Sequence[Tensor], rate: float) -> None:
        self.parameters, self.rate, self.t = list(parameters), rate, 0
        self.m = [torch.zeros_like(p) for p in self.parameters]
        self.v = [torch.zeros_like(p) for p in self.parameters]

    def step(self, loss: Tensor) -> None:
        self.apply(torch.autograd.grad(loss, self.parameters))

    def apply(self, gradients: Sequence[Tensor]) -> None:
        self.t += 1
        for i, (p, g) in enumerate(zip(self.parameters, gradients, strict=True)):
            self.m[i] = 0.9 * self.m[i] + 0.1 * g
            self.v[i] = 0.999 * self.v[i] + 0.001 * g**2
            m_hat, v_hat = self.m[i] / (1 - 0.9**self.t), self.v[i] / (1 - 0.999**self.t)
            p.data = p.data - self.rate * m_hat / (v_hat.sqrt() + 1e-8)


class Draws:
    """The random numbers of an agent, as float64, from where it stands."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.generator = torch.Generator()
        self.generator.set_state(state["noise"])

    def normal(self, *shape: int) -> Tensor:
        return torch.randn((1, *shape), generator=self.generator)[0].double()

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand((1, *shape), generator=self.generator)[0].double()


def together(*parts: Tensor) -> Tensor:
    return torch.cat(parts, dim=-1)


def squashed(policy: Network, states: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Actions tanh(u) and log p of them, by the change of variables as it stands in the paper."""
    mean, log_std = policy(states).chunk(2, dim=-1)
    std = log_std.clamp(-5, 2).exp()
    u = mean + std * noise
    density = torch.distributions.Normal(mean, std).log_prob(u)
    log_slope = math.log(4) - 2 * torch.logaddexp(u, -u)  # of tanh: (2 / (e^u + e^-u))^2
    return torch.tanh(u), (density - log_slope).sum(dim=-1)


def log_uniform(action_dims: int) -> float:
    """Log density of the uniform distribution on the box from -1 to 1."""
    return action_dims * math.log(0.5)
