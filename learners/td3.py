"""What the learners that are TD3 with data beside it share: settings, networks and the update.

Fujimoto, van Hoof, Meger: "Addressing Function Approximation Error in Actor-Critic Methods". Twin
critics learn from next actions with limited noise; the policy and the slow copies move at every
`policy_every`-th update of the critics. What holds the policy to the data, and targets, is each
learner's own.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from learners.base import Batch, Learner, Transitions
from learners.iql import critic_loss, critic_targets
from learners.losses import masked_mean
from learners.networks import MLP, TanhPolicy
from learners.optimiser import descend, frozen, move_target
from learners.ranks import ALONE, Ranks
from learners.settings import LearnerSettings


class TD3Settings(LearnerSettings):
    """Hyperparameters that all of them have; the defaults are TD3's."""

    policy_noise: float = Field(default=0.2, ge=0)
    """Standard deviation of the noise on next actions, on the unit box."""
    noise_limit: float = Field(default=0.5, ge=0)
    """Largest absolute noise on a next action."""
    policy_every: int = Field(default=2, ge=1)
    """Updates of the critics for one of the policy and the slow copies."""
    tau: float = Field(default=0.005, gt=0, le=1)
    """Share by which slow copies move at each update of the policy."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers of all networks."""
    critic_rate: float = Field(default=3e-4, gt=0)
    """Adam's rate for the twin critics."""
    policy_rate: float = Field(default=3e-4, gt=0)
    """Adam's rate for the policy."""
    exploration: float = Field(default=0.1, ge=0)
    """Standard deviation of the policy's own noise on rollouts, on the unit box."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this."""
    reward_shift: float = 0.0
    """Then this is added."""


def smoothed(actions: Tensor, noise: Tensor, scale: float, limit: float) -> Tensor:
    """Returns actions with limited noise, cut to the unit box.

    Args:
        actions: (..., A).
        noise: standard normal numbers, (..., A).
        scale: standard deviation of what is added.
        limit: its largest absolute value.
    """
    return (actions + (scale * noise).clamp(-limit, limit)).clamp(-1.0, 1.0)


def value_weight(q_t: Tensor, mask: Tensor, ranks: Ranks = ALONE) -> Tensor:
    """Returns 1 / E[|Q|] of each agent over all ranks' rows, (K, B) to (K,), without a gradient."""
    mine = ranks.weight(mask.sum(dim=-1)) * masked_mean(q_t.detach().abs(), mask)
    return 1.0 / ranks.average(mine).clamp(min=1e-8)


class TD3(Learner):
    """TD3, held to the data by what its kinds add."""

    settings: TD3Settings
    now_and_then: ClassVar[tuple[str, ...]] = ("policy_loss",)

    def build(self, states: int, actions: int) -> None:
        """Makes the policy, the twin critics and their slow copies."""
        settings, agents = self.settings, self.agents
        policy, critics = self.networks(states, actions)
        self.policy = agents.add("policy", policy)
        self.critics = agents.add("critics", critics)
        self.policy_target = agents.target("policy_target", "policy")
        self.targets = agents.target("targets", "critics")
        self.policy_adam = agents.adam("policy_adam", policy=settings.policy_rate)
        self.critic_adam = agents.adam("critic_adam", critics=settings.critic_rate)

    @abstractmethod
    def networks(self, states: int, actions: int) -> tuple[TanhPolicy, MLP]:
        """Returns a policy and twin critics; the policy is made first."""

    def read(self, batch: Batch) -> Transitions:
        """Returns the transitions of a batch."""
        return self.transitions(batch)

    def next_values(self, q_tp1: Tensor, a_tp1: Tensor, batch: Batch) -> Tensor:
        """Returns what next steps are worth, (K, B), of the lesser critic's values of actions."""
        return q_tp1

    @abstractmethod
    def policy_loss(self, q_t: Tensor, actions: Tensor, b: Transitions) -> Tensor:
        """Returns the policy's loss (K,) for its actions (K, B, A), worth (K, 2, B)."""

    def phase(self) -> str:
        """Returns `both` where the policy moves, too; else `critics`."""
        is_due = (self.agents.updates + 1) % self.settings.policy_every == 0
        return "both" if is_due else "critics"

    def step(self, batch: Batch, phase: str) -> dict[str, Tensor]:
        """Takes one gradient step on the critics and, every so often, one on the policy.

        Between updates of the policy its loss is NaN.
        """
        settings, b = self.settings, self.read(batch)
        rewards = b.rewards * settings.reward_scale + settings.reward_shift
        targets = critic_targets(rewards, b.discounts, self._v_tp1(b, batch))
        q_t = self.critics(torch.cat([b.s_t, b.a_t], dim=-1)).squeeze(-1)
        critic = descend(self.critic_adam, critic_loss(q_t, targets, b.mask), b.mask)
        is_due = phase == "both"
        return {
            "policy_loss": self._update_policy(b) if is_due else torch.full_like(critic, math.nan),
            "critic_loss": critic,
            "q": q_t.detach().mean(dim=(1, 2)),
        }

    @torch.no_grad()
    def _v_tp1(self, b: Transitions, batch: Batch) -> Tensor:
        noise = self.agents.noise.normal(*b.a_t.shape[1:])
        limits = self.settings.policy_noise, self.settings.noise_limit
        a_tp1 = smoothed(self.policy_target(b.s_tp1), noise, *limits)
        q_tp1 = self.targets(torch.cat([b.s_tp1, a_tp1], dim=-1)).squeeze(-1).amin(dim=1)
        return self.next_values(q_tp1, a_tp1, batch)

    def _update_policy(self, b: Transitions) -> Tensor:
        flat, tau = self.agents.flat, self.settings.tau
        actions = self.policy(b.s_t)
        with frozen(self.critics):
            q_t = self.critics(torch.cat([b.s_t, actions], dim=-1)).squeeze(-1)
            loss = self.policy_loss(q_t, actions, b)
        loss = descend(self.policy_adam, loss, b.mask)
        move_target(flat["targets"], flat["critics"], tau)
        move_target(flat["policy_target"], flat["policy"], tau)
        return loss

    def greedy(self, states: Tensor) -> Tensor:
        """Returns the policy's actions."""
        actions: Tensor = self.policy(states)
        return actions

    @torch.no_grad()
    def spread(self, agent: int = 0) -> Tensor:
        """Returns the standard deviation (A,) of the noise on rollouts."""
        return self.settings.exploration * self.scaler.action_scale.cpu()
