"""CQN once more, plainly: one row, one level, one dim after the other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.learners.slow_parts import Adam, Network

Part = tuple[float, float]


class SiLUNetwork(Network):
    def bent(self, x: Tensor) -> Tensor:
        return x / (1 + torch.exp(-x))


def parts_of(action: float, levels: int, bins: int) -> list[tuple[Part, int]]:
    """The part known before each level, and which of its bins an action from -1 to 1 is in."""
    low, high, found = -1.0, 1.0, []
    for _ in range(levels):
        width = (high - low) / bins
        index = min(max(math.floor((action - low) / width), 0), bins - 1)
        found.append(((low, high), index))
        low, high = low + index * width, low + (index + 1) * width
    return found


@dataclass
class SlowCQN:
    state: Mapping[str, Tensor]
    levels: int
    bins: int
    atoms: int
    dims: int
    value_low: float = -2.0
    value_high: float = 2.0
    critic_weight: float = 0.1
    demonstration_weight: float = 1.0
    margin: float = 0.01
    tau: float = 0.02
    rate: float = 5e-5
    decay: float = 0.1

    def __post_init__(self) -> None:
        self.critic = SiLUNetwork(self.state, "critic/trunk.")
        self.target = SiLUNetwork(self.state, "policy/trunk.")
        self.adam = Adam(self.critic.parameters, self.rate)
        step = (self.value_high - self.value_low) / (self.atoms - 1)
        self.values = torch.tensor(
            [self.value_low + k * step for k in range(self.atoms)], dtype=torch.float64
        )

    def log_probs(self, network: Network, s: Tensor, known: list[float], level: int) -> Tensor:
        """(dims, bins, atoms) for one row."""
        which = [float(level == k) for k in range(self.levels)]
        x = torch.cat([s, torch.tensor(known + which, dtype=torch.float64)])
        out = network(x[None])[0].view(self.dims, self.bins + 1, self.atoms)
        rows = []
        for dim in range(self.dims):
            mean = sum(out[dim, 1 + b] for b in range(self.bins)) / self.bins
            for b in range(self.bins):
                logits = out[dim, 0] + out[dim, 1 + b] - mean
                rows.append(logits - torch.logsumexp(logits, dim=0))
        return torch.stack(rows).view(self.dims, self.bins, self.atoms)

    def best(self, network: Network, s: Tensor) -> list[list[tuple[Part, int]]]:
        """For each dim the parts and bins of the greedy action."""
        parts = [(-1.0, 1.0)] * self.dims
        found: list[list[tuple[Part, int]]] = [[] for _ in range(self.dims)]
        for level in range(self.levels):
            known = [(low + high) / 2 for low, high in parts]
            probs = self.log_probs(network, s, known, level).exp()
            for dim, (low, high) in enumerate(parts):
                means = [(probs[dim, b] * self.values).sum().item() for b in range(self.bins)]
                b = means.index(max(means))
                width = (high - low) / self.bins
                found[dim].append(((low, high), b))
                parts[dim] = (low + b * width, low + (b + 1) * width)
        return found

    def projected(self, probs: Tensor, reward: float, discount: float) -> Tensor:
        """The algorithm as it stands in the paper of Bellemare, Dabney and Munos."""
        step = (self.value_high - self.value_low) / (self.atoms - 1)
        found = torch.zeros(self.atoms, dtype=torch.float64)
        for j in range(self.atoms):
            moved = reward + discount * self.values[j].item()
            moved = min(max(moved, self.value_low), self.value_high)
            place = (moved - self.value_low) / step
            below, above = math.floor(place), math.ceil(place)
            if below == above:
                found[below] += probs[j]
            else:
                found[below] += probs[j] * (above - place)
                found[above] += probs[j] * (place - below)
        return found

    def update(self, batch: Mapping[str, Tensor]) -> None:
        rows = len(batch["rewards"])
        count = self.levels * self.dims
        flags = batch.get("is_demonstration", torch.ones(rows))
        fitted, shown = [], []
        for row in range(rows):
            s, s_next = batch["observations"][row], batch["next_observations"][row]
            reward, discount = batch["rewards"][row].item(), batch["discounts"][row].item()
            done = [parts_of(a.item(), self.levels, self.bins) for a in batch["actions"][row]]
            then = self.best(self.critic, s_next)
            entropy, behind = torch.zeros(()), torch.zeros(())
            for level in range(self.levels):
                known, known_next = (
                    [(p[level][0][0] + p[level][0][1]) / 2 for p in way] for way in (done, then)
                )
                log_p = self.log_probs(self.critic, s, known, level)
                with torch.no_grad():
                    p_next = self.log_probs(self.target, s_next, known_next, level).exp()
                for dim in range(self.dims):
                    mine = done[dim][level][1]
                    y = self.projected(p_next[dim, then[dim][level][1]], reward, discount)
                    entropy = entropy - (y * log_p[dim, mine]).sum() / count
                    p = log_p[dim].exp()
                    cdf, q = p.cumsum(dim=1), p @ self.values
                    for b in range(self.bins):
                        over = (cdf[mine] - cdf[b]).clamp(min=0).sum()
                        short = (self.margin - (q[mine] - q[b])).clamp(min=0)
                        behind = behind + (over + short) / (count * self.bins)
            fitted.append(entropy)
            if flags[row]:
                shown.append(behind)
        loss = self.critic_weight * sum(fitted) / rows
        if shown:
            loss = loss + self.demonstration_weight * sum(shown) / len(shown)
        before = [p.data for p in self.adam.parameters]
        self.adam.step(torch.as_tensor(loss))
        for p, was in zip(self.adam.parameters, before, strict=True):
            p.data = p.data - self.rate * self.decay * was
        self.target.follow(self.critic, self.tau)

    @property
    def networks(self) -> dict[tuple[str, int], Network]:
        return {("critic/trunk.", 0): self.critic, ("policy/trunk.", 0): self.target}
