"""IQL and TD3+BC as a plain PyTorch script has them: what `bench learner` measures ours beside.

Written as the widely used single-file baselines are, after what CORL's README says of its settings:
a module per network, `torch.optim.Adam` as it comes, slow copies by `copy.deepcopy` that move
parameter by parameter, and the data set in tensors that are indexed by `np.random.randint`. Nothing
of ours is used here, and nothing here is meant to be slow.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

GAMMA, TAU, RATE = 0.99, 0.005, 3e-4
EXPECTILE, TEMPERATURE, LARGEST_WEIGHT = 0.7, 3.0, 100.0
ALPHA, POLICY_NOISE, NOISE_LIMIT, POLICY_EVERY = 2.5, 0.2, 0.5, 2
FIELDS = ("observations", "actions", "rewards", "next_observations", "terminated")


class Replay:
    """A data set in tensors; batches are rows drawn with replacement.

    Args:
        columns: (N, ...) float32 by name, of `FIELDS`.
        seed: of the draws.
    """

    def __init__(self, columns: Mapping[str, np.ndarray], seed: int) -> None:
        tensors = [torch.as_tensor(columns[name], dtype=torch.float32) for name in FIELDS]
        self._tensors = [tensor if tensor.ndim > 1 else tensor[:, None] for tensor in tensors]
        self._random = np.random.RandomState(seed)

    def sample(self, size: int) -> list[Tensor]:
        """Returns (size, ...) of each field."""
        picked = self._random.randint(0, len(self._tensors[0]), size=size)
        return [tensor[picked] for tensor in self._tensors]


class Plain(ABC):
    """One learner of a plain script.

    Args:
        states: O.
        actions: A.
        steps: updates over which a decaying rate falls.
        hidden: widths of hidden layers.
    """

    def __init__(
        self, states: int, actions: int, steps: int, hidden: Sequence[int] = (256, 256)
    ) -> None:
        self.states, self.actions, self.steps, self.hidden = states, actions, steps, hidden
        self.updates = 0
        self.build()

    @abstractmethod
    def build(self) -> None:
        """Makes networks and optimisers."""

    @abstractmethod
    def update(self, batch: Sequence[Tensor]) -> Tensor:
        """Takes one update; returns the critics' loss."""

    def network(self, inputs: int, outputs: int) -> nn.Sequential:
        """An MLP."""
        layers: list[nn.Module] = []
        for before, after in pairwise((inputs, *self.hidden, outputs)):
            layers += [nn.Linear(before, after), nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    def critics(self) -> nn.ModuleList:
        """Two of them."""
        sizes = self.states + self.actions, 1
        return nn.ModuleList([self.network(*sizes), self.network(*sizes)])


class PlainIQL(Plain):
    """IQL; policy and critics read V as it was before its update."""

    def build(self) -> None:
        """Makes V, Q, Q' and a Gaussian policy."""
        self.value = self.network(self.states, 1)
        self.q = self.critics()
        self.q_target = copy.deepcopy(self.q).requires_grad_(requires_grad=False)
        self.policy = self.network(self.states, self.actions)
        self.log_std = nn.Parameter(torch.zeros(self.actions))
        self.value_adam = torch.optim.Adam(self.value.parameters(), lr=RATE)
        self.q_adam = torch.optim.Adam(self.q.parameters(), lr=RATE)
        self.policy_adam = torch.optim.Adam([*self.policy.parameters(), self.log_std], lr=RATE)
        self.decay = torch.optim.lr_scheduler.CosineAnnealingLR(self.policy_adam, self.steps)

    def update(self, batch: Sequence[Tensor]) -> Tensor:
        """V, then Q, then pi."""
        states, actions, rewards, next_states, terminated = batch
        with torch.no_grad():
            next_values = self.value(next_states)
            q = torch.min(*_values(self.q_target, states, actions))
        advantages = q - self.value(states)
        weights = torch.abs(EXPECTILE - (advantages < 0).float())
        _step(self.value_adam, (weights * advantages**2).mean())

        targets = rewards + (1.0 - terminated) * GAMMA * next_values
        both = _values(self.q, states, actions)
        q_loss = sum((functional.mse_loss(one, targets) for one in both), torch.zeros(())) / 2
        _step(self.q_adam, q_loss)
        _soft_update(self.q_target, self.q)

        likely = torch.exp(TEMPERATURE * advantages.detach()).clamp(max=LARGEST_WEIGHT)
        means = torch.tanh(self.policy(states))
        policy = torch.distributions.Normal(means, self.log_std.clamp(-20.0, 2.0).exp())
        losses = -policy.log_prob(actions).sum(-1, keepdim=True)  # type: ignore[no-untyped-call]
        _step(self.policy_adam, (likely * losses).mean())
        self.decay.step()
        return q_loss.detach()


class PlainTD3BC(Plain):
    """TD3+BC."""

    def build(self) -> None:
        """Makes Q1, Q2, a policy and the slow copies."""
        self.policy = nn.Sequential(self.network(self.states, self.actions), nn.Tanh())
        self.policy_target = copy.deepcopy(self.policy)
        self.q = self.critics()
        self.q_target = copy.deepcopy(self.q)
        self.policy_adam = torch.optim.Adam(self.policy.parameters(), lr=RATE)
        self.q_adams = [torch.optim.Adam(one.parameters(), lr=RATE) for one in self.q]

    def update(self, batch: Sequence[Tensor]) -> Tensor:
        """Q; every second time pi and the slow copies, too."""
        self.updates += 1
        states, actions, rewards, next_states, terminated = batch
        with torch.no_grad():
            noise = (torch.randn_like(actions) * POLICY_NOISE).clamp(-NOISE_LIMIT, NOISE_LIMIT)
            next_actions = (self.policy_target(next_states) + noise).clamp(-1.0, 1.0)
            next_q = torch.min(*_values(self.q_target, next_states, next_actions))
            targets = rewards + (1.0 - terminated) * GAMMA * next_q
        q_1, q_2 = _values(self.q, states, actions)
        q_loss = functional.mse_loss(q_1, targets) + functional.mse_loss(q_2, targets)
        for adam in self.q_adams:
            adam.zero_grad()
        q_loss.backward()  # type: ignore[no-untyped-call]
        for adam in self.q_adams:
            adam.step()
        if self.updates % POLICY_EVERY == 0:
            chosen = self.policy(states)
            q = self.q[0](torch.cat([states, chosen], 1))
            loss = -ALPHA / q.abs().mean().detach() * q.mean()
            _step(self.policy_adam, loss + functional.mse_loss(chosen, actions))
            _soft_update(self.q_target, self.q)
            _soft_update(self.policy_target, self.policy)
        return q_loss.detach()


PLAIN: dict[str, type[Plain]] = {"iql": PlainIQL, "td3_bc": PlainTD3BC}
"""By the name of the algorithm of ours."""


def _values(critics: nn.ModuleList, states: Tensor, actions: Tensor) -> list[Tensor]:
    pairs = torch.cat([states, actions], 1)
    return [critic(pairs) for critic in critics]


def _step(adam: torch.optim.Adam, loss: Tensor) -> None:
    adam.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    adam.step()


def _soft_update(target: nn.Module, source: nn.Module) -> None:
    for slow, fast in zip(target.parameters(), source.parameters(), strict=True):
        slow.data.copy_((1.0 - TAU) * slow.data + TAU * fast.data)
