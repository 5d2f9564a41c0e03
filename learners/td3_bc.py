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

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from learners.base import Transitions
from learners.losses import masked_mean
from learners.networks import MLP, TanhPolicy
from learners.ranks import ALONE, Ranks
from learners.settings import LearnerSettings
from learners.td3 import TD3, TD3Settings, value_weight


class TD3BCSettings(TD3Settings):
    """Hyperparameters of TD3+BC; the defaults are the paper's."""

    alpha: float = Field(default=2.5, gt=0)
    """How much the values of actions count beside their distance from the data."""
    standardise: bool = True
    """Standardise observations by the data's mean and standard deviation (plus 1e-3)."""


def policy_loss(
    q_t: Tensor,
    policy_actions: Tensor,
    data_actions: Tensor,
    alpha: float,
    mask: Tensor,
    ranks: Ranks = ALONE,
) -> Tensor:
    """-lambda E[Q(s, pi(s))] + E[(pi(s) - a)^2], the latter a mean over action dims; (K,)."""
    distance = (policy_actions - data_actions).square().mean(dim=-1)
    values = alpha * value_weight(q_t, mask, ranks) * masked_mean(q_t, mask)
    return masked_mean(distance, mask) - values


class TD3BC(TD3):
    """TD3 with behaviour cloning."""

    name: ClassVar[str] = "td3_bc"
    settings_kind: ClassVar[type[LearnerSettings]] = TD3BCSettings
    settings: TD3BCSettings

    def networks(self, states: int, actions: int) -> tuple[TanhPolicy, MLP]:
        """Returns plain ones."""
        hidden, initial = self.settings.hidden, self.agents.initial
        policy = TanhPolicy((states, *hidden, actions), initial)
        return policy, MLP((states + actions, *hidden, 1), initial, members=2)

    def policy_loss(self, q_t: Tensor, actions: Tensor, b: Transitions) -> Tensor:
        """Returns the loss by the first critic."""
        alpha, ranks = self.settings.alpha, self.agents.ranks
        return policy_loss(q_t[:, 0], actions, b.a_t, alpha, b.mask, ranks)
