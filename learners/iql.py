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
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from learners.base import Batch
from learners.inputs import Scaler
from learners.losses import gaussian_log_prob, masked_mean
from learners.networks import MLP, GaussianPolicy
from learners.normaliser import Normaliser
from learners.optimiser import cosine_rate, descend, flatten, make_adam, move_target
from learners.settings import LearnerSettings
from learners.state import adam_state, load_adam_state, load_module_state, module_state


class IQLSettings(LearnerSettings):
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
    """Adam's rate for the twin critics."""
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
    """E[|expectile - 1(u < 0)| u^2] for errors u = Q - V, (B,)."""
    weights = torch.where(errors < 0, 1.0 - expectile, expectile)
    return masked_mean(weights * errors.square(), mask)


def advantage_weights(advantages: Tensor, temperature: float, limit: float) -> Tensor:
    """min(exp(temperature A), limit), (B,)."""
    return torch.exp(temperature * advantages).clamp(max=limit)


def policy_loss(log_probs: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    """-E[w log pi(a|s)]: advantage-weighted regression."""
    return -masked_mean(weights * log_probs, mask)


def critic_targets(rewards: Tensor, discounts: Tensor, v_tp1: Tensor) -> Tensor:
    """Returns r + discount V(s'), (B,); a discount of 0 stands for a terminated step."""
    return rewards + discounts * v_tp1


def critic_loss(q_t: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Sum over the critics (E, B) of their mean squared errors."""
    return masked_mean((q_t - targets).square(), mask).sum()


class IQL:
    """Implicit Q-learning."""

    name: ClassVar[str] = "iql"
    settings_kind: ClassVar[type[LearnerSettings]] = IQLSettings

    def __init__(
        self, settings: IQLSettings, normaliser: Normaliser, seed: int = 0, device: str = "cpu"
    ) -> None:
        self.settings = settings
        self.normaliser = normaliser
        self.scaler = Scaler(normaliser, device)
        self.generator = torch.Generator().manual_seed(seed)
        self.updates = 0
        states, actions = normaliser.observation_dims, normaliser.action_dims
        hidden, generator = settings.hidden, self.generator
        policy = GaussianPolicy((states, *hidden, actions), generator, settings.dropout)
        self.policy = policy.to(device)
        self.value = MLP((states, *hidden, 1), generator).to(device)
        self.critics = MLP((states + actions, *hidden, 1), generator, members=2).to(device)
        self.targets = MLP((states + actions, *hidden, 1), generator, members=2).to(device)
        self.targets.load_state_dict(self.critics.state_dict())
        self.targets.requires_grad_(False)
        self.flat_critics = flatten(self.critics.parameters())
        self.flat_targets = flatten(self.targets.parameters())
        self.value_adam = make_adam((flatten(self.value.parameters()), settings.value_rate))
        self.adam = make_adam(
            (flatten(self.policy.parameters()), settings.policy_rate),
            (self.flat_critics, settings.critic_rate),
        )

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Takes one gradient step on each network."""
        s_t = self.scaler.states(batch["observations"])
        s_tp1 = self.scaler.states(batch["next_observations"])
        a_t = self.scaler.to_unit(batch["actions"])
        mask = batch["mask"].to(s_t)
        rewards = batch["rewards"] * self.settings.reward_scale + self.settings.reward_shift
        pairs = torch.cat([s_t, a_t], dim=1)  # (B, O + A)

        with torch.no_grad():
            q_target = self.targets(pairs).squeeze(-1).amin(dim=0)  # (B,)
        errors = q_target - self.value(s_t)[0].squeeze(-1)
        value = descend(self.value_adam, expectile_loss(errors, self.settings.expectile, mask))
        with torch.no_grad():
            v_t, v_tp1 = self.value(torch.cat([s_t, s_tp1]))[0].squeeze(-1).split(len(s_t))
            weights = advantage_weights(
                q_target - v_t, self.settings.temperature, self.settings.weight_limit
            )
            targets = critic_targets(rewards, batch["discounts"], v_tp1)

        means, log_std = self.policy(s_t)
        actor = policy_loss(gaussian_log_prob(a_t, means, log_std), weights, mask)
        critic = critic_loss(self.critics(pairs).squeeze(-1), targets, mask)
        self._decay_policy_rate()
        descend(self.adam, actor + critic)
        move_target(self.flat_targets, self.flat_critics, self.settings.tau)
        self.updates += 1
        return {
            "value_loss": value,
            "policy_loss": actor.detach(),
            "critic_loss": critic.detach(),
            "value": v_t.mean(),
            "advantage_weight": weights.mean(),
        }

    @torch.no_grad()
    def act(self, observations: Any) -> Tensor:
        """Returns the mean actions (B, A), in the environment's units."""
        self.policy.eval()
        means, _ = self.policy(self.scaler.states(observations))
        self.policy.train()
        return self.scaler.from_unit(means).cpu()

    @torch.no_grad()
    def spread(self) -> Tensor:
        """Returns the policy's standard deviation (A,), in the environment's units."""
        return self.scaler.from_unit(self.policy.std()).cpu()

    def state(self) -> dict[str, Tensor]:
        """Returns everything a later update depends on."""
        return {
            **module_state(self.policy, "policy"),
            **module_state(self.value, "value"),
            **module_state(self.critics, "critics"),
            **module_state(self.targets, "targets"),
            **adam_state(self.value_adam, "value_adam"),
            **adam_state(self.adam, "adam"),
            "generator": self.generator.get_state(),
            "updates": torch.tensor(self.updates),
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of `state`."""
        load_module_state(self.policy, "policy", state)
        load_module_state(self.value, "value", state)
        load_module_state(self.critics, "critics", state)
        load_module_state(self.targets, "targets", state)
        load_adam_state(self.value_adam, "value_adam", state)
        load_adam_state(self.adam, "adam", state)
        self.generator.set_state(state["generator"])
        self.updates = int(state["updates"])

    def _decay_policy_rate(self) -> None:
        rate, steps = self.settings.policy_rate, self.settings.policy_decay
        if steps:
            self.adam.param_groups[0]["lr"] = cosine_rate(rate, self.updates, steps)
