"""Implicit Q-learning, offline and online.

Kostrikov, Nair, Levine: "Offline Reinforcement Learning with Implicit Q-Learning". One
update, in the authors' order; Q' is the slow copy of the twin critics:

    V    minimises  E[ L_expectile( min Q'(s, a) - V(s) ) ]
    pi   maximises  E[ min(exp(temperature (min Q'(s, a) - V(s))), limit) log pi(a|s) ], new V
    Q    minimises  E[ (r + discount V(s') - Q(s, a))^2 ], summed over both, new V
    Q'   moves towards Q by tau

Policy and critics depend on the new V but not on one another, so they share one backward pass. The
discount comes with the batch: gamma where the episode goes on *or was cut off*, 0 where the task
ended. Nothing here reads `truncated`.

Of discrete actions the policy is a softmax, and critics read the action as a row of 0 and 1: no
step asks for the values of all actions, so there are no heads for them. With pictures (as in DrQ),
the critics' loss alone trains the encoder, Q' sees through a slow copy of it, and V and pi take its
features as they are.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from learners.base import Batch, Learner, Transitions
from learners.discrete import CategoricalPolicy, acted, categorical_log_prob
from learners.losses import gaussian_log_prob, masked_mean
from learners.networks import MLP, GaussianPolicy
from learners.normaliser import Normaliser
from learners.optimiser import cosine_rate, descend, move_target
from learners.pixels import PixelLearner, PixelSettings
from learners.settings import LearnerSettings


class IQLSettings(PixelSettings):
    """Hyperparameters of IQL; the defaults are the paper's for locomotion."""

    expectile: float = Field(default=0.7, gt=0, lt=1)
    """How far V leans towards the best actions of the data; 0.5 is their mean."""
    temperature: float = Field(default=3.0, ge=0)
    """How sharply the policy prefers better actions; 0 is behaviour cloning."""
    weight_limit: float = Field(default=100.0, gt=0)
    """Largest weight of one action."""
    tau: float = Field(default=0.005, gt=0, le=1)
    """Share by which target critics move towards the critics at each update."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers of all networks."""
    value_rate: float = Field(default=3e-4, gt=0)
    """Adam's rate for V."""
    critic_rate: float = Field(default=3e-4, gt=0)
    """Adam's rate for the twin critics, and the encoder of pictures."""
    policy_rate: float = Field(default=3e-4, gt=0)
    """Adam's rate for the policy, before decay."""
    policy_decay: int = Field(default=0, ge=0)
    """Updates over which the policy's rate falls to 0 along a cosine; 0 keeps it constant.
    Offline runs take their own length unless told; fine-tuning keeps it constant."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the policy's hidden units dropped in training (0.1 for kitchen and adroit)."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this (locomotion: 1000 / (largest - smallest return))."""
    reward_shift: float = 0.0
    """Then this is added (-1 for antmaze)."""
    standardise: bool = False
    """Standardise observations by the data's mean and standard deviation; the authors do not."""


def expectile_loss(errors: Tensor, expectile: float, mask: Tensor) -> Tensor:
    """E[|expectile - 1(u < 0)| u^2] for errors u = Q - V, (..., B)."""
    weights = torch.where(errors < 0, 1.0 - expectile, expectile)
    return masked_mean(weights * errors.square(), mask)


def advantage_weights(advantages: Tensor, temperature: float, limit: float) -> Tensor:
    """min(exp(temperature A), limit)."""
    return torch.exp(temperature * advantages).clamp(max=limit)


def policy_loss(log_probs: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    """-E[w log pi(a|s)]: advantage-weighted regression."""
    return -masked_mean(weights * log_probs, mask)


def critic_targets(rewards: Tensor, discounts: Tensor, v_tp1: Tensor) -> Tensor:
    """Returns r + discount V(s'); a discount of 0 stands for a terminated step."""
    return rewards + discounts * v_tp1


def critic_loss(q_t: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Sum over the critics (..., E, B) of their mean squared errors to targets (..., B)."""
    errors = (q_t - targets.unsqueeze(-2)).square()
    return masked_mean(errors, mask.unsqueeze(-2)).sum(dim=-1)


class IQL(PixelLearner):
    """Implicit Q-learning."""

    name: ClassVar[str] = "iql"
    settings_kind: ClassVar[type[LearnerSettings]] = IQLSettings
    settings: IQLSettings

    @classmethod
    def for_actions(cls, _normaliser: Normaliser) -> type[Learner]:
        """Returns this class: it learns actions of either kind."""
        return cls

    def build(self, states: int, actions: int) -> None:
        """Makes the policy, V, the twin critics, the encoder of pictures, and slow copies."""
        settings, agents = self.settings, self.agents
        hidden, initial = settings.hidden, agents.initial
        states = self.add_encoder(states)
        is_discrete = self.normaliser.choices is not None
        kind = CategoricalPolicy if is_discrete else GaussianPolicy
        policy = kind((states, *hidden, actions), initial, settings.dropout, agents.noise)
        self.policy: CategoricalPolicy | GaussianPolicy = agents.add("policy", policy)
        self.value = agents.add("value", MLP((states, *hidden, 1), initial))
        critics = MLP((states + actions, *hidden, 1), initial, members=2)
        self.critics = agents.add("critics", critics)
        self.targets = agents.target("targets", "critics")
        self.value_adam = agents.adam("value_adam", value=settings.value_rate)
        rates = {"policy": settings.policy_rate, "critics": settings.critic_rate}
        if self.encoder is not None:
            self.slow_encoder = agents.target("slow_encoder", "encoder")
            rates["encoder"] = settings.critic_rate
        self.adam = agents.adam("adam", **rates)

    def prepare(self) -> None:
        """Lets the policy's rate decay."""
        rate, steps = self.settings.policy_rate, self.settings.policy_decay
        if steps:
            self.adam.set_rate(0, cosine_rate(rate, self.agents.updates, steps))

    def step(self, batch: Batch, phase: str) -> dict[str, Tensor]:
        """Takes one gradient step on each network."""
        if self.encoder is not None:
            return self._update_from_pixels(batch)
        b = self.transitions(batch)
        return self._update(b, b.s_t, b.s_t)

    def _update_from_pixels(self, batch: Batch) -> dict[str, Tensor]:
        now, then = self.seen(batch["observations"]), self.seen(batch["next_observations"])
        b = self.pixel_transitions(batch, now, then)
        with torch.no_grad():
            slow = self.encoded(now, self.slow_encoder)
        found = self._update(b, b.s_t.detach(), slow)
        flat = self.agents.flat
        move_target(flat["slow_encoder"], flat["encoder"], self.settings.tau)
        return found

    def _update(self, b: Transitions, held: Tensor, slow: Tensor) -> dict[str, Tensor]:
        """Takes one gradient step on each network.

        Args:
            b: transitions; gradients of critics go on through their states, if those have any.
            held: the same states, for V and the policy.
            slow: the same, for the slow copies.
        """
        settings, agents = self.settings, self.agents
        rewards = b.rewards * settings.reward_scale + settings.reward_shift
        slow_pairs = torch.cat([slow, b.a_t], dim=-1)  # (K, B, O + A)
        with torch.no_grad():
            q_target = self.targets(slow_pairs).squeeze(-1).amin(dim=1)  # (K, B)
        errors = q_target - self._values(held)
        fitted = expectile_loss(errors, settings.expectile, b.mask)
        value = descend(self.value_adam, fitted, b.mask)
        with torch.no_grad():
            both = torch.cat([held, b.s_tp1], dim=1)
            v_t, v_tp1 = self._values(both).chunk(2, dim=1)
            weights = advantage_weights(q_target - v_t, settings.temperature, settings.weight_limit)
            targets = critic_targets(rewards, b.discounts, v_tp1)

        # After the descent of V: compiled, what both need gradients of would be one graph.
        pairs = slow_pairs if slow is b.s_t else torch.cat([b.s_t, b.a_t], dim=-1)
        actor = policy_loss(self._log_probs(held, b.a_t), weights, b.mask)
        critic = critic_loss(self.critics(pairs).squeeze(-1), targets, b.mask)
        descend(self.adam, actor + critic, b.mask)
        move_target(agents.flat["targets"], agents.flat["critics"], settings.tau)
        return {
            "value_loss": value,
            "policy_loss": actor.detach(),
            "critic_loss": critic.detach(),
            "value": v_t.mean(dim=-1),
            "advantage_weight": weights.mean(dim=-1),
        }

    def greedy(self, states: Tensor) -> Tensor:
        """Returns the mean actions, or a score of each discrete one."""
        return acted(self.policy, states)

    @torch.no_grad()
    def spread(self, agent: int = 0) -> Tensor:
        """Returns the policy's standard deviation (A,), in the environment's units."""
        if not isinstance(self.policy, GaussianPolicy):
            return super().spread(agent)
        return self.scaler.spread(self.policy.std()[agent]).cpu()

    def _log_probs(self, states: Tensor, actions: Tensor) -> Tensor:
        """Log pi(a|s) (K, B)."""
        if not isinstance(self.policy, GaussianPolicy):
            return categorical_log_prob(actions, self.policy(states))
        means, log_std = self.policy(states)
        return gaussian_log_prob(actions, means, log_std)

    def _values(self, states: Tensor) -> Tensor:
        values: Tensor = self.value(states)[:, 0].squeeze(-1)
        return values
