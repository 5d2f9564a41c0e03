"""Parts of soft actor-critic, which CQL, Cal-QL and RLPD share.

Haarnoja et al.: "Soft Actor-Critic Algorithms and Applications". A policy pi that is random by
itself, and a temperature alpha that keeps its entropy near a target:

    pi      minimises  E[ alpha log pi(a|s) - Q(s, a) ],  a from pi
    alpha   minimises  -alpha E[ log pi(a|s) + target entropy ]
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from learners.base import Learner
from learners.losses import masked_mean
from learners.networks import SquashedGaussianPolicy


class Temperature(nn.Module):
    """A positive number per agent, learned as its logarithm.

    Args:
        agents: K.
        initial: what each begins with.
    """

    def __init__(self, agents: int, initial: float) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.full((agents,), math.log(initial)))

    def forward(self) -> Tensor:
        """Returns (K,)."""
        return self.log.exp()


def policy_loss(log_probs: Tensor, q_t: Tensor, temperature: Tensor, mask: Tensor) -> Tensor:
    """E[alpha log pi(a|s) - Q(s, a)] for (K, B) and temperatures (K,)."""
    return masked_mean(temperature[:, None] * log_probs - q_t, mask)


def temperature_loss(
    temperature: Tensor, log_probs: Tensor, target_entropy: float, mask: Tensor
) -> Tensor:
    """-alpha E[log pi(a|s) + target entropy]; no gradient goes into the policy."""
    return -temperature * masked_mean(log_probs.detach() + target_entropy, mask)


class SoftLearner(Learner):
    """What learners with a squashed Gaussian policy have in common: how they act."""

    policy: SquashedGaussianPolicy

    def greedy(self, states: Tensor) -> Tensor:
        """Returns tanh of the Gaussian's mean."""
        means, _ = self.policy(states)
        return torch.tanh(means)

    @torch.no_grad()
    def explore(self, observations: Any, noise: Any, agent: int = 0) -> Tensor:
        """Returns an agent's actions for standard normal numbers, as `Learner.explore`.

        The spread is that of each state, and actions stay in the box.
        """
        states = self.scaler.states(observations)
        means, log_std = self.policy(states.expand(self.agents.count, *states.shape))
        drawn = torch.as_tensor(noise, dtype=means.dtype, device=means.device)
        actions = torch.tanh(means[agent] + log_std[agent].exp() * drawn)
        return self.scaler.from_unit(actions).double().cpu()


def at_pairs(critics: nn.Module, states: Tensor, actions: Tensor) -> Tensor:
    """Returns the values of several actions of each state.

    Args:
        critics: of E members.
        states: (K, B, O).
        actions: (K, N, B, A).

    Returns:
        (K, E, N, B).
    """
    agents, several, rows, _ = actions.shape
    repeated = states[:, None].expand(agents, several, *states.shape[1:])
    pairs = torch.cat([repeated, actions], dim=-1).flatten(1, 2)
    values: Tensor = critics(pairs)
    return values.view(agents, -1, several, rows)


def several_actions(
    policy: SquashedGaussianPolicy, states: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns actions (K, N, B, A) and their log densities (K, N, B) for noise (K, N, B, A)."""
    actions, log_probs = policy.sample(states, noise.transpose(0, 1))
    return actions.transpose(0, 1), log_probs.transpose(0, 1)
