"""CQL among discrete actions, where every action's value is at hand.

Kumar, Zhou, Tucker, Levine: "Conservative Q-Learning for Offline Reinforcement Learning", as they
use it for Atari: Q-learning without a policy of its own. One update; Q' is the slow copy of twin
critics with a head for each action:

    a'   is the action of the largest min Q(s', .)
    Q    minimises  E[ (r + discount min Q'(s', a') - Q(s, a))^2 ] + weight E[ gap(s, a) ], summed
                    over both, with gap = log sum exp Q(s, .) - Q(s, a)
    Q'   moves towards Q by tau

It does what min Q is largest for, and explores by the softmax of min Q over `sharpness`, which is
the distribution that the gap pushes down. What `cql` sets of its policy and of samples is not read:
`samples`, `max_target`, `entropy_target`, `temperature`, `target_entropy`, `policy_hidden`,
`policy_rate`.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from learners.base import Batch, Learner
from learners.conservative import CQLSettings, add_multiplier, pressed
from learners.iql import critic_loss, critic_targets
from learners.losses import masked_mean
from learners.networks import MLP
from learners.optimiser import descend, move_target
from learners.settings import LearnerSettings


def of_actions(values: Tensor, actions: Tensor) -> Tensor:
    """Returns the values (K, E, B) of the actions done.

    Args:
        values: of all actions, (K, E, B, n).
        actions: those done, (K, B, n) of 0 and 1.
    """
    return (values * actions[:, None]).sum(dim=-1)


def discrete_gap(values: Tensor, actions: Tensor, sharpness: float) -> Tensor:
    """T log sum exp(Q(s, .) / T) - Q(s, a), without a mean over rows.

    Args:
        values: of all actions, (K, E, B, n).
        actions: those done, (K, B, n) of 0 and 1.
        sharpness: T.

    Returns:
        (K, E, B).
    """
    soft = sharpness * torch.logsumexp(values / sharpness, dim=-1)
    return soft - of_actions(values, actions)


class DiscreteCQL(Learner):
    """Conservative Q-learning among discrete actions."""

    name: ClassVar[str] = "cql"
    settings_kind: ClassVar[type[LearnerSettings]] = CQLSettings
    settings: CQLSettings
    acting: ClassVar[tuple[str, ...]] = ("critics",)

    def build(self, states: int, actions: int) -> None:
        """Makes the twin critics and their slow copies."""
        settings, agents = self.settings, self.agents
        critics = MLP((states, *settings.hidden, actions), agents.initial, members=2)
        self.critics = agents.add("critics", critics)
        self.targets = agents.target("targets", "critics")
        rates = {"critics": settings.critic_rate}
        self.multiplier = add_multiplier(agents, settings)
        if self.multiplier is not None:
            rates["multiplier"] = settings.critic_rate
        self.adam = agents.adam("adam", **rates)

    def step(self, batch: Batch, phase: str) -> dict[str, Tensor]:
        """Takes one gradient step on the critics."""
        settings, agents, b = self.settings, self.agents, self.transitions(batch)
        rewards = b.rewards * settings.reward_scale + settings.reward_shift
        targets = critic_targets(rewards, b.discounts, self._v_tp1(b.s_tp1))
        values = self.critics(b.s_t)  # (K, E, B, n)
        q_t = of_actions(values, b.a_t)
        fitted = critic_loss(q_t, targets, b.mask)
        gaps = discrete_gap(values, b.a_t, settings.sharpness).clamp(min=settings.lowest_gap)
        gaps = masked_mean(gaps, b.mask[:, None])
        beyond, multiplier = pressed(gaps, settings, self.multiplier)
        descend(self.adam, fitted + beyond + multiplier, b.mask)
        move_target(agents.flat["targets"], agents.flat["critics"], settings.tau)
        return {
            "critic_loss": fitted.detach(),
            "gap": gaps.detach().mean(dim=1),
            "q": q_t.detach().mean(dim=(1, 2)),
        }

    @torch.no_grad()
    def _v_tp1(self, s_tp1: Tensor) -> Tensor:
        """Of the action that Q likes best, what Q' says, (K, B)."""
        best = self.critics(s_tp1).amin(dim=1).argmax(dim=-1, keepdim=True)
        slow: Tensor = self.targets(s_tp1).amin(dim=1)
        return slow.gather(-1, best)[..., 0]

    def greedy(self, states: Tensor) -> Tensor:
        """Returns min Q over `sharpness` of each action: logits of the softmax to explore by."""
        values: Tensor = self.critics(states).amin(dim=1)
        return values / self.settings.sharpness
