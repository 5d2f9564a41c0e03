"""TD3+BC and ReBRAC once more, plainly: the references that the learners are held to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.learners.slow_parts import Adam, Draws, Network, together


@dataclass
class SlowTD3BC:
    state: Mapping[str, Tensor]
    alpha: float = 2.5
    rate: float = 3e-4
    tau: float = 0.005

    def __post_init__(self) -> None:
        self.policy = Network(self.state, "policy/trunk.")
        self.policy_target = Network(self.state, "policy_target/trunk.")
        self.critics = [Network(self.state, "critics/", m) for m in (0, 1)]
        self.targets = [Network(self.state, "targets/", m) for m in (0, 1)]
        self.policy_adam = Adam(self.policy.parameters, self.rate)
        self.critic_adam = Adam([p for c in self.critics for p in c.parameters], self.rate)
        self.draws, self.updates = Draws(self.state), 0

    def next_values(self, batch: Mapping[str, Tensor]) -> Tensor:
        s = batch["next_observations"]
        noise = torch.clamp(0.2 * self.draws.normal(*batch["actions"].shape), -0.5, 0.5)
        action = torch.clamp(torch.tanh(self.policy_target(s)) + noise, -1, 1)
        values = [target(together(s, action))[:, 0] for target in self.targets]
        return self.penalised(torch.minimum(*values), action, batch)

    def penalised(self, values: Tensor, action: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        return values

    def policy_loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        s, a = batch["observations"], batch["actions"]
        action = torch.tanh(self.policy(s))
        q = self.critics[0](together(s, action))[:, 0]
        weight = self.alpha / q.abs().mean().item()
        return -weight * q.mean() + torch.nn.functional.mse_loss(action, a)

    def update(self, batch: Mapping[str, Tensor]) -> None:
        s, a = batch["observations"], batch["actions"]
        y = (batch["rewards"] + batch["discounts"] * self.next_values(batch)).detach()
        losses = [((c(together(s, a))[:, 0] - y) ** 2).mean() for c in self.critics]
        self.critic_adam.step(losses[0] + losses[1])
        self.updates += 1
        if self.updates % 2:
            return
        self.policy_adam.step(self.policy_loss(batch))
        for target, critic in zip(self.targets, self.critics, strict=True):
            target.follow(critic, self.tau)
        self.policy_target.follow(self.policy, self.tau)

    @property
    def networks(self) -> dict[tuple[str, int], Network]:
        return {
            ("policy/trunk.", 0): self.policy,
            ("policy_target/trunk.", 0): self.policy_target,
            **{("critics/", m): self.critics[m] for m in (0, 1)},
            **{("targets/", m): self.targets[m] for m in (0, 1)},
        }


@dataclass
class SlowReBRAC(SlowTD3BC):
    rate: float = 1e-3
    beta1: float = 1.0
    beta2: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for network in self.networks.values():
            network.norms_after = True

    def penalised(self, values: Tensor, action: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        lowered = values.clone()
        for row in range(len(values)):
            if batch["goes_on"][row]:
                distance = ((action[row] - batch["next_actions"][row]) ** 2).sum()
                lowered[row] = values[row] - self.beta2 * distance
        return lowered

    def policy_loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        s, a = batch["observations"], batch["actions"]
        action = torch.tanh(self.policy(s))
        q = torch.minimum(*[c(together(s, action))[:, 0] for c in self.critics])
        distance = ((action - a) ** 2).sum(dim=-1)
        return (self.beta1 * distance - q / q.abs().mean().item()).mean()
