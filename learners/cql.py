"""CQL: soft actor-critic whose critics are pushed down where the data are not.

Kumar, Zhou, Tucker, Levine: "Conservative Q-Learning for Offline Reinforcement Learning", the form
CQL(H) with importance sampling. One update; Q' is the slow copy of the twin critics, and all losses
are of the networks as they were before:

    Q    minimises  E[ (r + discount min Q'(s', a') - Q(s, a))^2 ] + weight E[ gap(s, a) ], summed
                    over both, with a' from pi at s', and
                    gap = log sum exp(Q(s, a_i) - log p(a_i)) - Q(s, a), over actions a_i drawn
                    uniformly, from pi at s, and from pi at s', each so many times
    pi   minimises  E[ alpha log pi(a|s) - min Q(s, a) ], a from pi
    alpha           keeps the entropy of pi near its target
    Q'   moves towards Q by tau

With `lagrange` the weight is multiplied by a number that grows while the gap is above it. Only the
discounts of the batch end a sum of rewards.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from learners.base import Batch, Transitions
from learners.iql import critic_loss, critic_targets
from learners.losses import masked_mean
from learners.networks import MLP, SquashedGaussianPolicy
from learners.optimiser import descend, frozen, move_target
from learners.settings import LearnerSettings
from learners.soft import (
    SoftLearner,
    Temperature,
    at_pairs,
    policy_loss,
    several_actions,
    temperature_loss,
)

LARGEST_MULTIPLIER = 1e6


class CQLSettings(LearnerSettings):
    """Hyperparameters of CQL; the defaults are those of CORL for locomotion."""

    weight: float = Field(default=10.0, ge=0)
    """How much the conservative term counts."""
    samples: int = Field(default=10, ge=1)
    """Actions of each kind (uniform, of pi at s, of pi at s') in its sum."""
    sharpness: float = Field(default=1.0, gt=0)
    """Temperature of the log-sum-exp; small ones come near the maximum."""
    lagrange: float | None = None
    """Gap that is allowed; the weight then adapts to it. None keeps the weight."""
    lowest_gap: float = -math.inf
    """Gaps below it push no further (-200 for antmaze)."""
    max_target: bool = False
    """Bootstrap from the best of so many next actions instead of from one."""
    entropy_target: bool = False
    """Whether the entropy of pi at s' counts in targets."""
    temperature: float = Field(default=1.0, gt=0)
    """Of the entropy, at first."""
    target_entropy: float | None = None
    """Entropy that pi is held to; None takes minus the number of action dims."""
    tau: float = Field(default=0.005, gt=0, le=1)
    """Share by which target critics move towards the critics at each update."""
    hidden: tuple[int, ...] = (256, 256, 256)
    """Widths of the critics' hidden layers."""
    policy_hidden: tuple[int, ...] = (256, 256, 256)
    """Widths of the policy's hidden layers."""
    critic_rate: float = Field(default=3e-4, gt=0)
    """Adam's rate for the twin critics, and for the multiplier of `lagrange`."""
    policy_rate: float = Field(default=3e-5, gt=0)
    """Adam's rate for the policy and the temperature."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this (10 for antmaze)."""
    reward_shift: float = 0.0
    """Then this is added (-5 for antmaze)."""
    standardise: bool = True
    """Standardise observations by the data's mean and standard deviation."""


def conservative_gap(
    q_random: Tensor,
    q_policy: Tensor,
    log_policy: Tensor,
    q_data: Tensor,
    action_dims: int,
    sharpness: float,
) -> Tensor:
    """T log sum exp((Q(s, a_i) - log p(a_i)) / T) - Q(s, a), without a mean over rows.

    Args:
        q_random: of uniform actions, (K, E, N, B); their density is 2^-A.
        q_policy: of actions of the policy, (K, E, M, B).
        log_policy: their log densities, (K, M, B).
        q_data: (K, E, B).
        action_dims: A.
        sharpness: T.

    Returns:
        (K, E, B).
    """
    corrected = torch.cat(
        [q_random + action_dims * math.log(2.0), q_policy - log_policy[:, None]], dim=2
    )
    return sharpness * torch.logsumexp(corrected / sharpness, dim=2) - q_data


class CQL(SoftLearner):
    """Conservative Q-learning."""

    name: ClassVar[str] = "cql"
    settings_kind: ClassVar[type[LearnerSettings]] = CQLSettings
    settings: CQLSettings

    def build(self, states: int, actions: int) -> None:
        """Makes the policy, the temperature, the twin critics and their slow copies."""
        settings, agents = self.settings, self.agents
        initial, rate = agents.initial, settings.policy_rate
        target = settings.target_entropy
        self.target_entropy = -float(actions) if target is None else target
        policy = SquashedGaussianPolicy((states, *settings.policy_hidden, actions), initial)
        self.policy = agents.add("policy", policy)
        temperature = Temperature(agents.count, settings.temperature)
        self.temperature = agents.add("temperature", temperature)
        critics = MLP((states + actions, *settings.hidden, 1), initial, members=2)
        self.critics = agents.add("critics", critics)
        self.targets = agents.target("targets", "critics")
        rates = {"policy": rate, "temperature": rate, "critics": settings.critic_rate}
        if settings.lagrange is not None:
            self.multiplier = agents.add("multiplier", Temperature(agents.count, math.e))
            rates["multiplier"] = settings.critic_rate
        self.adam = agents.adam("adam", **rates)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Takes one gradient step on each network."""
        agents, b = self.agents, self.transitions(batch)
        alpha = self.temperature()
        fresh, log_probs = self.policy.sample(b.s_t, agents.noise.normal(*b.a_t.shape[1:]))
        with frozen(self.critics):
            q_fresh = self.critics(torch.cat([b.s_t, fresh], dim=-1)).squeeze(-1).amin(dim=1)
            actor = policy_loss(log_probs, q_fresh, alpha.detach(), b.mask)
        entropy = temperature_loss(alpha, log_probs, self.target_entropy, b.mask)
        targets = self._targets(b, alpha.detach())
        q_t = self.critics(torch.cat([b.s_t, b.a_t], dim=-1)).squeeze(-1)
        fitted = critic_loss(q_t, targets, b.mask)
        gaps = self._gaps(b, q_t, self.value_floor(batch))
        pressed, multiplier = self._pressed(gaps)

        descend(self.adam, actor + entropy + fitted + pressed + multiplier)
        move_target(agents.flat["targets"], agents.flat["critics"], self.settings.tau)
        agents.updates += 1
        return {
            "policy_loss": actor.detach(),
            "critic_loss": fitted.detach(),
            "gap": gaps.detach().mean(dim=1),
            "temperature": alpha.detach(),
            "entropy": -log_probs.detach().mean(dim=1),
            "q": q_t.detach().mean(dim=(1, 2)),
        }

    def value_floor(self, batch: Batch) -> Tensor | None:
        """Returns what values of the policy's actions are not pushed below, (K, B); None here."""
        return None

    @torch.no_grad()
    def _targets(self, b: Transitions, alpha: Tensor) -> Tensor:
        settings = self.settings
        several = settings.samples if settings.max_target else 1
        noise = self.agents.noise.normal(several, *b.a_t.shape[1:])
        a_tp1, log_probs = several_actions(self.policy, b.s_tp1, noise)
        values = at_pairs(self.targets, b.s_tp1, a_tp1).amin(dim=1)  # (K, N, B)
        v_tp1, best = values.max(dim=1)
        if settings.entropy_target:
            v_tp1 = v_tp1 - alpha[:, None] * log_probs.gather(1, best[:, None])[:, 0]
        rewards = b.rewards * settings.reward_scale + settings.reward_shift
        return critic_targets(rewards, b.discounts, v_tp1)

    def _gaps(self, b: Transitions, q_t: Tensor, floor: Tensor | None) -> Tensor:
        """The conservative term of each critic, (K, E)."""
        settings, draw = self.settings, self.agents.noise
        shape = (settings.samples, *b.a_t.shape[1:])
        with torch.no_grad():
            uniform = 2.0 * draw.uniform(*shape) - 1.0
            drawn = [
                several_actions(self.policy, states, draw.normal(*shape))
                for states in (b.s_t, b.s_tp1)
            ]
            actions = torch.cat([uniform, *(actions for actions, _ in drawn)], dim=1)
            log_policy = torch.cat([log_probs for _, log_probs in drawn], dim=1)
        values = at_pairs(self.critics, b.s_t, actions)  # (K, E, 3N, B)
        q_random, q_policy = torch.split(values, [settings.samples, 2 * settings.samples], dim=2)
        if floor is not None:
            q_policy = torch.maximum(q_policy, floor[:, None, None])
        dims, sharpness = b.a_t.shape[-1], settings.sharpness
        gaps = conservative_gap(q_random, q_policy, log_policy, q_t, dims, sharpness)
        return masked_mean(gaps.clamp(min=settings.lowest_gap), b.mask[:, None])

    def _pressed(self, gaps: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted gaps of the critics, and the multiplier's own loss, both (K,)."""
        settings = self.settings
        if settings.lagrange is None:
            return settings.weight * gaps.sum(dim=1), torch.zeros_like(gaps[:, 0])
        multiplier = self.multiplier().clamp(max=LARGEST_MULTIPLIER)
        beyond = settings.weight * (gaps - settings.lagrange).sum(dim=1)
        return multiplier.detach() * beyond, -0.5 * multiplier * beyond.detach()
