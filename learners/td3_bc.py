"""TD3+BC: TD3 whose policy is held to the data by squared error.

Fujimoto, Gu: "A Minimalist Approach to Offline Reinforcement Learning". One update; Q', pi' are
slow copies:

    Q    minimises  E[ (r + discount min Q'(s', a') - Q(s, a))^2 ], summed over both,
                    with a' = pi'(s') + noise, the noise cut to a limit and a' to the box
    pi   maximises  lambda E[ Q1(s, pi(s)) ] - E[ |pi(s) - a|^2 ] / dims, every second update,
                    with lambda = alpha / E[ |Q1(s, pi(s))| ], through which no gradient goes
    Q', pi' move towards Q, pi by tau whenever the policy was updated

Nothing here reads `truncated`: only the discounts of the batch end a sum of rewards.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from learners.base import Batch, Learner, Transitions
from learners.iql import critic_loss, critic_targets
from learners.losses import masked_mean
from learners.networks import MLP, TanhPolicy
from learners.optimiser import descend, frozen, move_target
from learners.settings import LearnerSettings


class TD3BCSettings(LearnerSettings):
    """Hyperparameters of TD3+BC; the defaults are the paper's."""

    alpha: float = Field(default=2.5, gt=0)
    """How much the values of actions count beside their distance from the data."""
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
    standardise: bool = True
    """Standardise observations by the data's mean and standard deviation (plus 1e-3)."""


def smoothed(actions: Tensor, noise: Tensor, scale: float, limit: float) -> Tensor:
    """Returns actions with limited noise, cut to the unit box.

    Args:
        actions: (..., A).
        noise: standard normal numbers, (..., A).
        scale: standard deviation of what is added.
        limit: its largest absolute value.
    """
    return (actions + (scale * noise).clamp(-limit, limit)).clamp(-1.0, 1.0)


def value_weight(q_t: Tensor, mask: Tensor) -> Tensor:
    """Returns 1 / E[|Q|] of each agent, (K, B) to (K,), without a gradient."""
    return 1.0 / masked_mean(q_t.detach().abs(), mask).clamp(min=1e-8)


def policy_loss(
    q_t: Tensor, policy_actions: Tensor, data_actions: Tensor, alpha: float, mask: Tensor
) -> Tensor:
    """-lambda E[Q(s, pi(s))] + E[(pi(s) - a)^2], the latter a mean over action dims; (K,)."""
    distance = (policy_actions - data_actions).square().mean(dim=-1)
    return masked_mean(distance, mask) - alpha * value_weight(q_t, mask) * masked_mean(q_t, mask)


class TD3BC(Learner):
    """TD3 with behaviour cloning."""

    name: ClassVar[str] = "td3_bc"
    settings_kind: ClassVar[type[LearnerSettings]] = TD3BCSettings
    settings: TD3BCSettings

    def build(self, states: int, actions: int) -> None:
        """Makes the policy, the twin critics and their slow copies."""
        settings, agents = self.settings, self.agents
        hidden, initial = settings.hidden, agents.initial
        self.policy = agents.add("policy", TanhPolicy((states, *hidden, actions), initial))
        critics = MLP((states + actions, *hidden, 1), initial, members=2)
        self.critics = agents.add("critics", critics)
        self.policy_target = agents.target("policy_target", "policy")
        self.targets = agents.target("targets", "critics")
        self.policy_adam = agents.adam("policy_adam", policy=settings.policy_rate)
        self.critic_adam = agents.adam("critic_adam", critics=settings.critic_rate)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Takes one gradient step on the critics and, every so often, one on the policy.

        Between updates of the policy its loss is NaN.
        """
        settings, agents, b = self.settings, self.agents, self.transitions(batch)
        rewards = b.rewards * settings.reward_scale + settings.reward_shift
        targets = critic_targets(rewards, b.discounts, self._v_tp1(b))
        q_t = self.critics(torch.cat([b.s_t, b.a_t], dim=-1)).squeeze(-1)
        critic = descend(self.critic_adam, critic_loss(q_t, targets, b.mask))
        agents.updates += 1
        is_due = agents.updates % settings.policy_every == 0
        return {
            "policy_loss": self._update_policy(b) if is_due else torch.full_like(critic, math.nan),
            "critic_loss": critic,
            "q": q_t.detach().mean(dim=(1, 2)),
        }

    @torch.no_grad()
    def _v_tp1(self, b: Transitions) -> Tensor:
        noise = self.agents.noise.normal(*b.a_t.shape[1:])
        limits = self.settings.policy_noise, self.settings.noise_limit
        a_tp1 = smoothed(self.policy_target(b.s_tp1), noise, *limits)
        q_tp1: Tensor = self.targets(torch.cat([b.s_tp1, a_tp1], dim=-1))
        return q_tp1.squeeze(-1).amin(dim=1)

    def _update_policy(self, b: Transitions) -> Tensor:
        flat, tau = self.agents.flat, self.settings.tau
        actions = self.policy(b.s_t)
        with frozen(self.critics):
            q_t = self.critics(torch.cat([b.s_t, actions], dim=-1))[:, 0].squeeze(-1)
            loss = policy_loss(q_t, actions, b.a_t, self.settings.alpha, b.mask)
        loss = descend(self.policy_adam, loss)
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
