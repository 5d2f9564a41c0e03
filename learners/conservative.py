"""What the forms of CQL share: settings, and how much the conservative term counts."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor

from learners.agents import Agents
from learners.settings import LearnerSettings
from learners.soft import Temperature

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


def add_multiplier(agents: Agents, settings: CQLSettings) -> Temperature | None:
    """Makes the number that the weight is multiplied by, for each agent; None without `lagrange`.

    Args:
        agents: that it is for; an optimiser is to move their network `multiplier`.
        settings: of the learner.
    """
    if settings.lagrange is None:
        return None
    return agents.add("multiplier", Temperature(agents.count, math.e))


def pressed(
    gaps: Tensor, settings: CQLSettings, multiplier: Temperature | None
) -> tuple[Tensor, Tensor]:
    """Returns weighted gaps of the critics, and the multiplier's own loss, both (K,).

    Args:
        gaps: of each critic, (K, E).
        settings: of the learner.
        multiplier: what `add_multiplier` made.
    """
    if multiplier is None or settings.lagrange is None:
        return settings.weight * gaps.sum(dim=1), torch.zeros_like(gaps[:, 0])
    factor = multiplier().clamp(max=LARGEST_MULTIPLIER)
    beyond = settings.weight * (gaps - settings.lagrange).sum(dim=1)
    return factor.detach() * beyond, -0.5 * factor * beyond.detach()
