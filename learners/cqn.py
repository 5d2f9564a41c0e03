"""CQN: values of coarse choices, then of finer ones, each dim on its own.

Seo, Uruc, James: "Continuous Control with Coarse-to-fine Reinforcement Learning". At each level
the range of every dim is cut into bins, and the network says for each bin how much is earned from
there on, as probabilities of fixed values (Bellemare, Dabney, Munos: "A Distributional Perspective
on Reinforcement Learning"), given the level and the middle of what was chosen before. With Q' the
slow copy of Q, by which the learner acts, too:

    a'   is chosen level by level: the bin of the largest mean of Q, of each dim
    Q    minimises  critic_weight E[ -sum of p' log p ], p' being r + discount Q'(s', a') projected
                    on the fixed values, plus demonstration_weight times, on demonstrations only,
                    E[ sum over values of (cdf of a's bin - cdf of another)+ ]: first-order
                       stochastic dominance of what was demonstrated, and
                    E[ (margin - (Q of a's bin - Q of another))+ ]
    Q'   moves towards Q by tau

all averaged over levels, dims and bins, a's own included. The discount comes with the batch, for
one step or several. The optimiser is AdamW: weights also shrink by their rate times `decay`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from learners.base import Batch, Transitions
from learners.codec import Codec, middle
from learners.eager import uncompiled
from learners.grid import GridLearner, GridSettings
from learners.losses import masked_mean
from learners.networks import MLP
from learners.optimiser import move_target
from learners.settings import LearnerSettings

FIRST_SCALE = 0.01
"""Gain of the last layer's initial weights: all bins begin almost alike."""


class CQNSettings(GridSettings):
    """Hyperparameters of CQN; the defaults are the paper's."""

    atoms: int = Field(default=51, ge=2, le=1024)
    """Fixed values of each distribution."""
    value_low: float = -2.0
    """The least of them; sums of discounted rewards are to lie between the two."""
    value_high: float = 2.0
    """The largest."""
    critic_weight: float = Field(default=0.1, ge=0)
    """Of what is learned from rewards."""
    demonstration_weight: float = Field(default=1.0, ge=0)
    """Of what is learned from demonstrations."""
    margin: float = Field(default=0.01, ge=0)
    """By which the value of a demonstrated bin is to exceed those of others."""
    tau: float = Field(default=0.02, gt=0, le=1)
    """Share by which the slow copy moves at each update."""
    hidden: tuple[int, ...] = Field(default=(512, 512), min_length=1)
    """Widths of the hidden layers, each normalised."""
    critic_rate: float = Field(default=5e-5, gt=0)
    """AdamW's rate."""
    decay: float = Field(default=0.1, ge=0)
    """Share of the rate by which weights shrink."""
    exploration: float = Field(default=0.01, ge=0)
    """Standard deviation of the noise on rollouts, where the range of actions is -1 to 1; of
    discrete actions the temperature at which they are drawn."""

    @property
    def last_layer(self) -> int:
        """Parameters of the last layer for each dim."""
        return (self.bins + 1) * self.atoms * self.hidden[-1]

    @model_validator(mode="after")
    def _values_are_a_range(self) -> CQNSettings:
        if not self.value_low < self.value_high:
            raise ValueError(f"values from {self.value_low} to {self.value_high}")
        return self


class LevelCritic(nn.Module):
    """Distributions of values of each bin of each dim, for the agents' own networks.

    Args:
        features: numbers that stand for an observation.
        codec: what is chosen.
        settings: of the learner.
        generators: one per agent.
    """

    def __init__(
        self,
        features: int,
        codec: Codec,
        settings: CQNSettings,
        generators: Sequence[torch.Generator],
    ) -> None:
        super().__init__()
        self.shape = (codec.dims, codec.bins + 1, settings.atoms)
        sizes = (features + codec.dims + codec.levels, *settings.hidden, math.prod(self.shape))
        self.trunk = MLP(sizes, generators, activation="silu", layer_norm=True)
        self.trunk.weights[-1].data.mul_(FIRST_SCALE)
        self.which: Tensor
        self.register_buffer("which", torch.eye(codec.levels), persistent=False)

    def forward(self, features: Tensor, known: Tensor, level: int) -> Tensor:
        """Returns log probabilities of the fixed values at one level.

        Args:
            features: (K, B, F).
            known: middles of what was chosen before, (K, B, D).
            level: which one is chosen now, from 0.

        Returns:
            (K, B, D, bins, atoms).
        """
        which = self.which[level].expand(*features.shape[:-1], -1)
        return self._log_probs(torch.cat([features, known, which], dim=-1))

    def at_all_levels(self, features: Tensor, known: Tensor) -> Tensor:
        """Returns the same where each level follows choices that were made.

        Args:
            features: (K, B, F).
            known: middles, (K, B, L + 1, D); the last is not read.

        Returns:
            (K, B, L, D, bins, atoms).
        """
        levels = len(self.which)
        shape = (features.shape[0], levels, features.shape[1], -1)
        which = self.which[:, None].expand(shape)
        before = known[:, :, :levels].transpose(1, 2)
        rows = torch.cat([features[:, None].expand(shape), before, which], dim=-1)
        found = self._log_probs(rows.flatten(1, 2))
        return found.view(*shape[:3], *found.shape[2:]).transpose(1, 2)

    def _log_probs(self, rows: Tensor) -> Tensor:
        outputs = self.trunk(rows)[:, 0]
        return dueling(outputs.view(*outputs.shape[:-1], *self.shape)).log_softmax(dim=-1)


def dueling(outputs: Tensor) -> Tensor:
    """Returns v + a - mean a over the bins, (..., 1 + bins, atoms) to (..., bins, atoms)."""
    value, advantages = outputs[..., :1, :], outputs[..., 1:, :]
    return value + advantages - advantages.mean(dim=-2, keepdim=True)


def chosen(values: Tensor, choices: Tensor) -> Tensor:
    """Picks the chosen bins, (..., bins, atoms) and (...) to (..., atoms)."""
    index = choices[..., None, None].expand(*choices.shape, 1, values.shape[-1])
    return values.gather(-2, index).squeeze(-2)


def best_cells(critic: LevelCritic, features: Tensor, codec: Codec, support: Tensor) -> Tensor:
    """Zooms in: takes the best bin of each dim at each level, (K, B, F) to cells (K, B, D)."""
    cells = torch.zeros(*features.shape[:-1], codec.dims, dtype=torch.int64, device=features.device)
    for level in range(codec.levels):
        known = middle(cells, codec.bins**level)
        best = (critic(features, known, level).exp() @ support).argmax(dim=-1)
        cells = cells * codec.bins + best
    return cells


def projected(probs: Tensor, rewards: Tensor, discounts: Tensor, support: Tensor) -> Tensor:
    """Returns the distribution of r + discount Z on the same fixed values as that of Z.

    Each value moves to the two fixed ones beside it, the nearer the more; what lies beyond the ends
    belongs to them (Bellemare et al., eq. 7).

    Args:
        probs: (K, B, L, D, atoms).
        rewards: (K, B).
        discounts: (K, B).
        support: (atoms,), evenly spaced.

    Returns:
        As `probs`.
    """
    moved = rewards[..., None] + discounts[..., None] * support
    moved = moved.clamp(support[0], support[-1])  # (K, B, atoms)
    apart = (moved[..., :, None] - support).abs() / (support[1] - support[0])
    shares = (1.0 - apart).clamp(min=0.0)  # (K, B, atoms from, atoms to)
    return (probs.flatten(2, -2) @ shares).view(probs.shape)


def critic_loss(log_probs: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """E[-sum of p' log p], mean over levels and dims; (K, B, L, D, atoms) to (K,)."""
    return masked_mean(-(targets * log_probs).sum(dim=-1).mean(dim=(-2, -1)), mask)


def dominance_loss(probs: Tensor, taken: Tensor, mask: Tensor) -> Tensor:
    """E[sum of (cdf of a's bin - cdf of a bin)+], mean over levels, dims and bins.

    It is 0 where a's bin is at least as likely as each other to earn more than any value.

    Args:
        probs: (K, B, L, D, bins, atoms).
        taken: those of a's bins, (K, B, L, D, atoms).
        mask: (K, B).

    Returns:
        (K,).
    """
    behind = taken.cumsum(dim=-1)[..., None, :] - probs.cumsum(dim=-1)
    return masked_mean(behind.clamp(min=0.0).sum(dim=-1).mean(dim=(-3, -2, -1)), mask)


def margin_loss(q: Tensor, taken: Tensor, margin: float, mask: Tensor) -> Tensor:
    """E[(margin - (Q of a's bin - Q of a bin))+], mean over levels, dims and bins.

    Args:
        q: (K, B, L, D, bins).
        taken: (K, B, L, D).
        margin: by which a's bins are to be better.
        mask: (K, B).

    Returns:
        (K,).
    """
    short = margin - (taken[..., None] - q)
    return masked_mean(short.clamp(min=0.0).mean(dim=(-3, -2, -1)), mask)


@uncompiled
@torch.no_grad()
def shrink(weights: Tensor, share: float) -> None:
    """Takes a share off weights, in place."""
    weights.mul_(1.0 - share)


class CQN(GridLearner):
    """Coarse-to-fine Q-network."""

    name: ClassVar[str] = "cqn"
    settings_kind: ClassVar[type[LearnerSettings]] = CQNSettings
    settings: CQNSettings

    def make(self, features: int) -> None:
        """Makes the critic and its slow copy, which acts."""
        settings, agents = self.settings, self.agents
        critic = LevelCritic(features, self.codec, settings, agents.initial)
        self.critic = agents.add("critic", critic)
        self.policy = cast(LevelCritic, agents.target("policy", "critic"))
        self.adam = agents.adam("adam", **self.rates(critic=settings.critic_rate))
        self.support = torch.linspace(
            settings.value_low, settings.value_high, settings.atoms, device=self.scaler.device
        )

    def step(self, batch: Batch, phase: str) -> dict[str, Tensor]:
        """Takes one gradient step."""
        settings, agents, b = self.settings, self.agents, self.transitions(batch)
        cells = self.cells(b.a_t)
        choices, known = self.codec.choices(cells), self.codec.midpoints(cells)
        targets = self._targets(b)
        log_probs = self.critic.at_all_levels(b.s_t, known)
        probs = log_probs.exp()
        taken, q = chosen(probs, choices), probs @ self.support
        q_t = taken @ self.support
        critic = critic_loss(chosen(log_probs, choices), targets, b.mask)
        demonstrated, weight = self.demonstrated(batch, b.mask)
        shown = dominance_loss(probs, taken, demonstrated)
        shown = weight * (shown + margin_loss(q, q_t, settings.margin, demonstrated))
        loss = settings.critic_weight * critic + settings.demonstration_weight * shown
        self._descend(self.adam.weighed(loss, b.mask))
        move_target(agents.flat["policy"], agents.flat["critic"], settings.tau)
        return {
            "critic_loss": critic.detach(),
            "demonstration_loss": shown.detach(),
            "q": q_t.detach().mean(dim=(1, 2, 3)),
        }

    @torch.no_grad()
    def _targets(self, b: Transitions) -> Tensor:
        cells = best_cells(self.critic, b.s_tp1, self.codec, self.support)
        probs = self.policy.at_all_levels(b.s_tp1, self.codec.midpoints(cells)).exp()
        a_tp1 = chosen(probs, self.codec.choices(cells))
        return projected(a_tp1, self.rewards(b.rewards), b.discounts, self.support)

    def _descend(self, loss: Tensor) -> None:
        share = self.settings.critic_rate * self.settings.decay
        self.adam.gradients(loss)
        for parameter in self.adam.parameters:
            shrink(parameter, share)
        self.adam.step()

    @torch.no_grad()
    def greedy(self, states: Tensor) -> Tensor:
        """Returns the middles of the best cells; values of discrete actions over `exploration`."""
        if self.is_discrete:
            known = states.new_zeros(*states.shape[:-1], 1)
            q: Tensor = (self.policy(states, known, 0).exp() @ self.support)[..., 0, :]
            return q / max(self.settings.exploration, 1e-9)
        return self.codec.centre(best_cells(self.policy, states, self.codec, self.support))

    @torch.no_grad()
    def spread(self, agent: int = 0) -> Tensor:
        """Returns the standard deviation (A,) of the noise on rollouts."""
        if self.is_discrete:
            return super().spread(agent)
        half = (self.codec.high - self.codec.low).float() / 2.0
        return self.settings.exploration * self.scaler.spread(half).cpu()
