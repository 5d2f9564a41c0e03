"""CQL, Cal-QL and RLPD once more, plainly: the references that the learners are held to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.learners.slow_parts import Adam, Draws, Network, log_uniform, squashed, together


def values(critic: Network, states: Tensor, actions: Tensor) -> Tensor:
    return critic(together(states, actions))[:, 0]


@dataclass
class SlowCQL:
    state: Mapping[str, Tensor]
    weight: float = 10.0
    samples: int = 10
    sharpness: float = 1.0
    lagrange: float | None = None
    lowest_gap: float = -math.inf
    max_target: bool = False
    entropy_target: bool = False
    policy_rate: float = 3e-5
    critic_rate: float = 3e-4
    tau: float = 0.005

    def __post_init__(self) -> None:
        def number(name: str) -> Tensor:
            return self.state[name][0].double().clone().requires_grad_()

        self.policy = Network(self.state, "policy/trunk.")
        self.log_alpha = number("temperature/log")
        self.critics = [Network(self.state, "critics/", m) for m in (0, 1)]
        self.targets = [Network(self.state, "targets/", m) for m in (0, 1)]
        self.adams = [
            Adam(self.policy.parameters, self.policy_rate),
            Adam([self.log_alpha], self.policy_rate),
            Adam([p for c in self.critics for p in c.parameters], self.critic_rate),
        ]
        if self.lagrange is not None:
            self.log_multiplier = number("multiplier/log")
            self.adams.append(Adam([self.log_multiplier], self.critic_rate))
        self.draws = Draws(self.state)

    def update(self, batch: Mapping[str, Tensor]) -> None:
        s, a, s_next = batch["observations"], batch["actions"], batch["next_observations"]
        rows, dims, n = len(s), a.shape[1], self.samples
        alpha = self.log_alpha.exp().item()

        action, log_p = squashed(self.policy, s, self.draws.normal(rows, dims))
        q = torch.minimum(*[values(c, s, action) for c in self.critics])
        losses = [(alpha * log_p - q).mean()]
        losses.append(-self.log_alpha.exp() * (log_p.detach() - dims).mean())

        several = n if self.max_target else 1
        options = []
        for noise in self.draws.normal(several, rows, dims):
            action, log_p = squashed(self.policy, s_next, noise)
            v = torch.minimum(*[values(t, s_next, action) for t in self.targets])
            options.append((v, log_p))
        y = torch.zeros(rows, dtype=torch.float64)
        for row in range(rows):
            v, log_p = max(((v[row].item(), p[row].item()) for v, p in options))
            v -= alpha * log_p if self.entropy_target else 0.0
            y[row] = batch["rewards"][row] + batch["discounts"][row] * v

        uniform = 2 * self.draws.uniform(n, rows, dims) - 1
        drawn = [
            squashed(self.policy, states, noise)
            for states in (s, s_next)
            for noise in self.draws.normal(n, rows, dims)
        ]
        fitted, gaps = torch.zeros((), dtype=torch.float64), []
        for critic in self.critics:
            q_data = values(critic, s, a)
            fitted = fitted + ((q_data - y) ** 2).mean()
            terms = [values(critic, s, one) - log_uniform(dims) for one in uniform]
            for action, log_p in drawn:
                q_pi = self.bounded(values(critic, s, action.detach()), batch)
                terms.append(q_pi - log_p.detach())
            total = sum(torch.exp(term / self.sharpness) for term in terms)
            gap = self.sharpness * torch.log(torch.as_tensor(total)) - q_data
            gaps.append(gap.clamp(min=self.lowest_gap).mean())
        if self.lagrange is None:
            losses.append(fitted + self.weight * (gaps[0] + gaps[1]))
        else:
            multiplier = self.log_multiplier.exp()
            beyond = self.weight * (gaps[0] + gaps[1] - 2 * self.lagrange)
            losses.append(fitted + multiplier.item() * beyond)
            losses.append(-0.5 * multiplier * beyond.detach())
        gradients = [
            torch.autograd.grad(loss, adam.parameters, retain_graph=True)
            for loss, adam in zip(losses, self.adams, strict=True)
        ]
        for adam, gradient in zip(self.adams, gradients, strict=True):
            adam.apply(gradient)
        for target, critic in zip(self.targets, self.critics, strict=True):
            target.follow(critic, self.tau)

    def bounded(self, q: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        return q

    @property
    def networks(self) -> dict[tuple[str, int], Network]:
        return {
            ("policy/trunk.", 0): self.policy,
            **{("critics/", m): self.critics[m] for m in (0, 1)},
            **{("targets/", m): self.targets[m] for m in (0, 1)},
        }

    @property
    def numbers(self) -> dict[str, Tensor]:
        found = {"temperature/log": self.log_alpha}
        return found if self.lagrange is None else {**found, "multiplier/log": self.log_multiplier}


@dataclass
class SlowCalQL(SlowCQL):
    def bounded(self, q: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        return torch.maximum(q, batch["returns_to_go"])


def dealt_out(rows: int, parts: int) -> list[list[int]]:
    """Rows of each part: one of each round, where every second pair begins a bit further on."""
    found: list[list[int]] = [[] for _ in range(parts)]
    for row in range(rows):
        number, place = divmod(row, parts)
        begins = math.floor(number // 2 * parts * 5073 / 65536)
        begins += number % 2 if parts % 2 == 0 else 0
        found[(place + begins) % parts].append(row)
    return found


@dataclass
class SlowRLPD:
    state: Mapping[str, Tensor]
    updates: int = 20
    members: int = 10
    minimum_of: int = 2
    rate: float = 3e-4
    tau: float = 0.005

    def __post_init__(self) -> None:
        self.policy = Network(self.state, "policy/trunk.")
        self.log_alpha = self.state["temperature/log"][0].double().clone().requires_grad_()
        self.critics = [Network(self.state, "critics/", m) for m in range(self.members)]
        self.targets = [Network(self.state, "targets/", m) for m in range(self.members)]
        self.critic_adams = [Adam(c.parameters, self.rate) for c in self.critics]
        self.policy_adam = Adam(self.policy.parameters, self.rate)
        self.alpha_adam = Adam([self.log_alpha], self.rate)
        self.draws = Draws(self.state)

    def update(self, batch: Mapping[str, Tensor]) -> None:
        for picked in dealt_out(len(batch["rewards"]), self.updates):
            part = {name: rows[picked] for name, rows in batch.items()}
            self.fit(part)
        s = part["observations"]
        action, log_p = squashed(self.policy, s, self.draws.normal(*part["actions"].shape))
        q = sum(values(c, s, action) for c in self.critics) / self.members
        actor = (self.log_alpha.exp().item() * log_p - q).mean()
        target_entropy = -action.shape[1] / 2
        alpha = self.log_alpha.exp() * (-log_p.detach().mean() - target_entropy)
        self.policy_adam.step(actor)
        self.alpha_adam.step(alpha)

    def fit(self, part: Mapping[str, Tensor]) -> None:
        s, a, s_next = part["observations"], part["actions"], part["next_observations"]
        action, log_p = squashed(self.policy, s_next, self.draws.normal(*a.shape))
        order = self.draws.uniform(self.members).argsort()[: self.minimum_of].tolist()
        v = torch.stack([values(self.targets[m], s_next, action) for m in order]).min(dim=0)[0]
        y = part["rewards"] + part["discounts"] * (v - self.log_alpha.exp() * log_p)
        y = y.detach()
        for critic, target, adam in zip(self.critics, self.targets, self.critic_adams, strict=True):
            adam.step(((values(critic, s, a) - y) ** 2).mean())
            target.follow(critic, self.tau)

    @property
    def networks(self) -> dict[tuple[str, int], Network]:
        members = range(self.members)
        return {
            ("policy/trunk.", 0): self.policy,
            **{("critics/", m): self.critics[m] for m in members},
            **{("targets/", m): self.targets[m] for m in members},
        }

    @property
    def numbers(self) -> dict[str, Tensor]:
        return {"temperature/log": self.log_alpha}
