"""ReBRAC: TD3 whose policy and critics are both held to the data.

Tarasov, Kurenkov, Nikulin, Kolesnikov: "Revisiting the Minimalist Approach to Offline Reinforcement
Learning". One update; Q', pi' are slow copies, and n is the data's own next action:

    Q    minimises  E[ (r + discount (min Q'(s', a') - beta2 |a' - n|^2) - Q(s, a))^2 ], summed
                    over both, with a' = pi'(s') + noise as in TD3
    pi   maximises  lambda E[ min Q(s, pi(s)) ] - beta1 E[ |pi(s) - a|^2 ], every second update,
                    with lambda = 1 / E[ |min Q(s, pi(s))| ], through which no gradient goes
    Q', pi' move towards Q, pi by tau whenever the policy was updated

Distances are sums over action dims. The next action comes with windows of two steps. Where an
episode was cut off there is none, so nothing is subtracted; where it ended nothing is bootstrapped.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from learners.base import Batch, Learner, Transitions
from learners.inputs import at_step
from learners.iql import critic_loss, critic_targets
from learners.losses import masked_mean
from learners.networks import MLP, TanhPolicy
from learners.optimiser import descend, frozen, move_target
from learners.settings import LearnerSettings, StreamNeeds
from learners.td3_bc import smoothed, value_weight


class ReBRACSettings(LearnerSettings):
    """Hyperparameters of ReBRAC; the defaults are the paper's, whose batches have 1024 rows."""

    policy_penalty: float = Field(default=1.0, ge=0)
    """beta1: how much the policy's distance from the data costs (per dataset, 0.001 to 1)."""
    critic_penalty: float = Field(default=1.0, ge=0)
    """beta2: how much that of next actions lowers targets (per dataset, 0 to 1)."""
    policy_noise: float = Field(default=0.2, ge=0)
    """Standard deviation of the noise on next actions, on the unit box."""
    noise_limit: float = Field(default=0.5, ge=0)
    """Largest absolute noise on a next action."""
    policy_every: int = Field(default=2, ge=1)
    """Updates of the critics for one of the policy and the slow copies."""
    tau: float = Field(default=0.005, gt=0, le=1)
    """Share by which slow copies move at each update of the policy."""
    hidden: tuple[int, ...] = (256, 256, 256)
    """Widths of the hidden layers of all networks."""
    activation: str = "relu"
    """Of hidden layers: `relu`, `gelu` or `tanh`."""
    critic_layer_norm: bool = True
    """Normalise the critics' hidden layers."""
    policy_layer_norm: bool = False
    """Normalise the policy's hidden layers."""
    critic_rate: float = Field(default=1e-3, gt=0)
    """Adam's rate for the twin critics."""
    policy_rate: float = Field(default=1e-3, gt=0)
    """Adam's rate for the policy."""
    exploration: float = Field(default=0.1, ge=0)
    """Standard deviation of the policy's own noise on rollouts, on the unit box."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this."""
    reward_shift: float = 0.0
    """Then this is added."""
    standardise: bool = False
    """Standardise observations by the data's mean and standard deviation; the authors do not."""


def penalised_values(
    q_tp1: Tensor, a_tp1: Tensor, data_a_tp1: Tensor, goes_on: Tensor, penalty: float
) -> Tensor:
    """Q' - penalty |a' - n|^2 where the episode goes on, Q' elsewhere.

    Args:
        q_tp1: (..., B).
        a_tp1: next actions of the policy, (..., B, A).
        data_a_tp1: those of the data, (..., B, A).
        goes_on: 1 where the data have one, (..., B).
        penalty: beta2.
    """
    return q_tp1 - penalty * goes_on * (a_tp1 - data_a_tp1).square().sum(dim=-1)


def policy_loss(
    q_t: Tensor, policy_actions: Tensor, data_actions: Tensor, penalty: float, mask: Tensor
) -> Tensor:
    """-lambda E[Q(s, pi(s))] + penalty E[|pi(s) - a|^2], (K,)."""
    distance = (policy_actions - data_actions).square().sum(dim=-1)
    values = value_weight(q_t, mask) * masked_mean(q_t, mask)
    return penalty * masked_mean(distance, mask) - values


class ReBRAC(Learner):
    """TD3 with penalties on policy and critics."""

    name: ClassVar[str] = "rebrac"
    settings_kind: ClassVar[type[LearnerSettings]] = ReBRACSettings
    settings: ReBRACSettings

    @classmethod
    def needs(cls, settings: Any) -> StreamNeeds:
        """Asks for windows of two steps, of which the second holds the next action."""
        return StreamNeeds(window=2)

    def build(self, states: int, actions: int) -> None:
        """Makes the policy, the twin critics and their slow copies."""
        settings, agents = self.settings, self.agents
        hidden, initial, activation = settings.hidden, agents.initial, settings.activation
        sizes = (states, *hidden, actions)
        policy = TanhPolicy(sizes, initial, activation, settings.policy_layer_norm)
        self.policy = agents.add("policy", policy)
        critics = MLP(
            (states + actions, *hidden, 1),
            initial,
            members=2,
            activation=activation,
            layer_norm=settings.critic_layer_norm,
        )
        self.critics = agents.add("critics", critics)
        self.policy_target = agents.target("policy_target", "policy")
        self.targets = agents.target("targets", "critics")
        self.policy_adam = agents.adam("policy_adam", policy=settings.policy_rate)
        self.critic_adam = agents.adam("critic_adam", critics=settings.critic_rate)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Takes one gradient step on the critics and, every so often, one on the policy.

        Between updates of the policy its loss is NaN.

        Args:
            batch: windows of two steps, (K B, 2, ...).
        """
        settings, agents = self.settings, self.agents
        b = self.transitions(at_step(batch, 0))
        rewards = b.rewards * settings.reward_scale + settings.reward_shift
        targets = critic_targets(rewards, b.discounts, self._v_tp1(b, at_step(batch, 1)))
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
    def _v_tp1(self, b: Transitions, following: Batch) -> Tensor:
        split, settings = self.agents.split, self.settings
        noise = self.agents.noise.normal(*b.a_t.shape[1:])
        limits = settings.policy_noise, settings.noise_limit
        a_tp1 = smoothed(self.policy_target(b.s_tp1), noise, *limits)
        q_tp1 = self.targets(torch.cat([b.s_tp1, a_tp1], dim=-1)).squeeze(-1).amin(dim=1)
        data_a_tp1 = split(self.scaler.to_unit(following["actions"]))
        goes_on = split(following["mask"].to(q_tp1))
        return penalised_values(q_tp1, a_tp1, data_a_tp1, goes_on, settings.critic_penalty)

    def _update_policy(self, b: Transitions) -> Tensor:
        flat, tau = self.agents.flat, self.settings.tau
        actions = self.policy(b.s_t)
        with frozen(self.critics):
            q_t = self.critics(torch.cat([b.s_t, actions], dim=-1)).squeeze(-1).amin(dim=1)
            loss = policy_loss(q_t, actions, b.a_t, self.settings.policy_penalty, b.mask)
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
