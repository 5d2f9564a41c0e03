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
discounts of the batch end a sum of rewards. Discrete actions have a form of their own,
`learners.discrete_cql`.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from learners.base import Batch, Learner, Transitions
from learners.conservative import CQLSettings, add_multiplier, pressed
from learners.discrete_cql import DiscreteCQL
from learners.iql import critic_loss, critic_targets
from learners.losses import masked_mean
from learners.networks import MLP, SquashedGaussianPolicy
from learners.normaliser import Normaliser
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

    @classmethod
    def for_actions(cls, normaliser: Normaliser) -> type[Learner]:
        """Returns the form for the data's kind of actions; what builds on CQL has one alone."""
        if normaliser.choices is not None and cls is CQL:
            return DiscreteCQL
        return super().for_actions(normaliser)

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
        self.multiplier = add_multiplier(agents, settings)
        if self.multiplier is not None:
            rates["multiplier"] = settings.critic_rate
        self.adam = agents.adam("adam", **rates)

    def step(self, batch: Batch, phase: str) -> dict[str, Tensor]:
        """Takes one gradient step on each network."""
        settings, agents, b = self.settings, self.agents, self.transitions(batch)
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
        beyond, multiplier = pressed(gaps, settings, self.multiplier)

        descend(self.adam, actor + entropy + fitted + beyond + multiplier, b.mask)
        move_target(agents.flat["targets"], agents.flat["critics"], settings.tau)
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
