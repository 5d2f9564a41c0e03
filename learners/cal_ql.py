"""Cal-QL: CQL that pushes no value below what the data's own behaviour earned.

Nakamoto et al.: "Cal-QL: Calibrated Offline RL Pre-Training for Efficient Online Fine-Tuning". As
CQL, but in the conservative term the values of the policy's actions, at s and at s', are
max(Q(s, a_i), G): G is the discounted return that the data had from s on. So fine-tuning does not
begin by unlearning values that are too low.

G is made by the stream for whatever was recorded, so calibration stays on for rollouts, too. Where
an episode earned nothing but `failed_reward` at each step to its end, it is taken for one that goes
on like that for ever. That is judged from each step on; the authors judge whole episodes, which
differs after a success that did not end its episode.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from learners.base import Batch
from learners.conservative import CQLSettings
from learners.cql import CQL
from learners.settings import LearnerSettings, StreamNeeds


class CalQLSettings(CQLSettings):
    """Hyperparameters of Cal-QL; the defaults are the authors' for antmaze, but for rewards."""

    weight: float = Field(default=5.0, ge=0)
    """How much the conservative term counts."""
    lagrange: float | None = 0.8
    """Gap that is allowed; the weight then adapts to it. None keeps the weight."""
    lowest_gap: float = -200.0
    """Gaps below it push no further."""
    max_target: bool = True
    """Bootstrap from the best of so many next actions instead of from one."""
    hidden: tuple[int, ...] = (256, 256, 256, 256)
    """Widths of the critics' hidden layers."""
    policy_hidden: tuple[int, ...] = (256, 256)
    """Widths of the policy's hidden layers."""
    policy_rate: float = Field(default=1e-4, gt=0)
    """Adam's rate for the policy and the temperature."""
    failed_reward: float | None = None
    """Recorded reward of each step of an episode that failed (0 or -1 in sparse tasks): its return
    is that of going on for ever. None takes returns as they are."""
    discount: float = Field(default=0.99, gt=0, lt=1)
    """Gamma of the run, which fills it in."""
    standardise: bool = False
    """Standardise observations by the data's mean and standard deviation; the authors do not."""


def shifted_returns(
    returns: Tensor, steps: Tensor, discount: float, scale: float, shift: float
) -> Tensor:
    """Returns the discounted returns of rewards `scale r + shift`.

    A shift adds up over the steps that are left: shift (1 - gamma^n) / (1 - gamma).

    Args:
        returns: of the rewards as they are, (..., B).
        steps: n, how many rewards each holds, (..., B).
        discount: gamma.
        scale: multiplies rewards.
        shift: is added to them.
    """
    return scale * returns + shift * _ones(steps, discount)


def endless_failures(
    returns: Tensor, steps: Tensor, discount: float, failed_reward: float
) -> Tensor:
    """Returns where a return holds nothing but the reward of failure, (..., B) bool.

    A success so far ahead that its share of the return is lost in float32 counts as none.
    """
    nothing = failed_reward * _ones(steps, discount)
    longest = max(abs(failed_reward), 1.0) / (1.0 - discount)
    return (returns - nothing).abs() <= 1e-6 * longest


def _ones(steps: Tensor, discount: float) -> Tensor:
    """The discounted return of rewards of 1, float64."""
    return (1.0 - discount ** steps.double()) / (1.0 - discount)


class CalQL(CQL):
    """Calibrated Q-learning."""

    name: ClassVar[str] = "cal_ql"
    settings_kind: ClassVar[type[LearnerSettings]] = CalQLSettings
    settings: CalQLSettings

    @classmethod
    def needs(cls, settings: Any) -> StreamNeeds:
        """Asks for discounted returns."""
        return StreamNeeds(returns="monte_carlo")

    def value_floor(self, batch: Batch) -> Tensor:
        """Returns the data's own discounted returns on the scale of rewards here, (K, B)."""
        settings, split = self.settings, self.agents.split
        given = split(batch["returns_to_go"].to(self.agents.device))
        steps = split(batch["steps_to_go"].to(self.agents.device))
        gamma, scale, shift = settings.discount, settings.reward_scale, settings.reward_shift
        floor = shifted_returns(given, steps, gamma, scale, shift)
        if settings.failed_reward is not None:
            for_ever = (settings.failed_reward * scale + shift) / (1.0 - gamma)
            failed = endless_failures(given, steps, gamma, settings.failed_reward)
            floor = floor.masked_fill(failed, for_ever)
        return floor.float()
