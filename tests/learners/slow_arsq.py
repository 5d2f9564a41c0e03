"""ARSQ once more, plainly: one row, one choice, one twin after the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tests.learners.slow_cqn import parts_of
from tests.learners.slow_parts import Adam, Network


class TanhNetwork(Network):
    def bent(self, x: Tensor) -> Tensor:
        return 1 - 2 / (1 + torch.exp(2 * x))


class Choices:
    """The advantages of one twin: a network, and a last layer for each place."""

    def __init__(self, state: Mapping[str, Tensor], twin: int) -> None:
        self.trunk = TanhNetwork(state, "policy/trunk.", twin)
        self.weights = state["policy/weights"][twin].double().clone().requires_grad_()
        self.biases = state["policy/biases"][twin].double().clone().requires_grad_()

    def __call__(self, s: Tensor, known: list[float], place: int) -> Tensor:
        """(bins,) for one row."""
        x = torch.cat([s, torch.tensor(known, dtype=torch.float64)])
        hidden = self.trunk.bent(self.trunk(x[None]))
        return (hidden @ self.weights[place] + self.biases[place])[0]

    @property
    def parameters(self) -> list[Tensor]:
        return [*self.trunk.parameters, self.weights, self.biases]


@dataclass
class SlowARSQ:
    state: Mapping[str, Tensor]
    levels: int
    bins: int
    dims: int
    alpha: float = 0.01
    bellman_weight: float = 1.0
    demonstration_weight: float = 1.0
    demonstration_term: Literal["cql", "margin"] = "cql"
    margin: float | None = None
    tau: float = 0.005
    rate: float = 3e-4

    def __post_init__(self) -> None:
        self.twins = [Choices(self.state, k) for k in (0, 1)]
        self.values = [TanhNetwork(self.state, "values/", k) for k in (0, 1)]
        self.targets = [TanhNetwork(self.state, "targets/", k) for k in (0, 1)]
        own = [p for one in (*self.twins, *self.values) for p in one.parameters]
        self.adam = Adam(own, self.rate)

    def ways(self, action: Tensor) -> list[tuple[list[float], int]]:
        """What is known before each choice, as middles, and the choice; levels outermost."""
        parts = [parts_of(a.item(), self.levels, self.bins) for a in action]
        ends = [(-1.0, 1.0)] * self.dims
        found = []
        for level in range(self.levels):
            for dim in range(self.dims):
                known = [(low + high) / 2 for low, high in ends]
                (low, high), choice = parts[dim][level]
                found.append((known, choice))
                width = (high - low) / self.bins
                ends[dim] = (low + choice * width, low + (choice + 1) * width)
        return found

    def lead(self, advantages: Tensor, choice: int) -> Tensor:
        enough = 10 * self.alpha if self.margin is None else self.margin
        rest = [advantages[b] for b in range(self.bins) if b != choice]
        if self.demonstration_term == "cql":
            odds = torch.log(sum(torch.exp(a / self.alpha) for a in rest))  # type: ignore[arg-type]
            return (self.alpha * odds - advantages[choice]).clamp(min=-enough)
        leads = [(a - advantages[choice]).clamp(min=-enough) for a in rest]
        return torch.stack(leads).mean()

    def update(self, batch: Mapping[str, Tensor]) -> None:
        rows = len(batch["rewards"])
        flags = batch.get("is_demonstration", torch.ones(rows))
        loss = torch.zeros((), dtype=torch.float64)
        for row in range(rows):
            s, s_next = batch["observations"][row], batch["next_observations"][row]
            v_next = min(target(s_next[None]).item() for target in self.targets)
            y = batch["rewards"][row].item() + batch["discounts"][row].item() * v_next
            for twin, value in zip(self.twins, self.values, strict=True):
                q = value(s[None])[0, 0]
                for place, (known, choice) in enumerate(self.ways(batch["actions"][row])):
                    raw = twin(s, known, place)
                    total = torch.log(torch.exp(raw / self.alpha).sum())
                    advantages = raw - self.alpha * total
                    q = q + advantages[choice]
                    if flags[row]:
                        weight = self.demonstration_weight / flags.sum().item()
                        loss = loss + weight * self.lead(advantages, choice)
                loss = loss + self.bellman_weight * (q - y) ** 2 / rows
        self.adam.step(loss)
        for target, value in zip(self.targets, self.values, strict=True):
            target.follow(value, self.tau)

    @property
    def networks(self) -> dict[tuple[str, int], Network]:
        return {
            **{("policy/trunk.", k): self.twins[k].trunk for k in (0, 1)},
            **{("values/", k): self.values[k] for k in (0, 1)},
            **{("targets/", k): self.targets[k] for k in (0, 1)},
        }
