"""Behaviour cloning: the policy that repeats the data.

Either mean squared error on a tanh-bounded action (the form of CORL's baselines), or maximum
likelihood under a Gaussian; cross-entropy where actions are discrete. Rewards and next observations
are never read. Pictures enter through an encoder that this one loss trains, too.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from learners.base import Batch, Learner
from learners.discrete import CategoricalPolicy, acted, categorical_log_prob
from learners.losses import gaussian_log_prob, masked_mean
from learners.networks import GaussianPolicy
from learners.normaliser import Normaliser
from learners.optimiser import descend
from learners.pixels import PixelLearner, PixelSettings
from learners.settings import LearnerSettings


class BCSettings(PixelSettings):
    """Hyperparameters of behaviour cloning."""

    loss: Literal["mse", "likelihood"] = "mse"
    """`mse` fits the mean action; `likelihood` fits a Gaussian's mean and spread. For discrete
    actions there is one loss, whichever this is."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers."""
    learning_rate: float = Field(default=3e-4, gt=0)
    """Adam's rate, constant."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of hidden units dropped in training."""
    standardise: bool = True
    """Standardise observations by the data's mean and standard deviation."""


def squared_error(means: Tensor, actions: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error per action dim over the rows where mask is 1."""
    return masked_mean((means - actions).square().mean(dim=-1), mask)


def negative_log_likelihood(
    means: Tensor, log_std: Tensor, actions: Tensor, mask: Tensor
) -> Tensor:
    """-E[log pi(a|s)] over the rows where mask is 1."""
    return -masked_mean(gaussian_log_prob(actions, means, log_std), mask)


def cross_entropy(logits: Tensor, actions: Tensor, mask: Tensor) -> Tensor:
    """-E[log pi(a|s)] of discrete actions (..., B, n) over the rows where mask is 1."""
    return -masked_mean(categorical_log_prob(actions, logits), mask)


class BC(PixelLearner):
    """Behaviour cloning."""

    name: ClassVar[str] = "bc"
    settings_kind: ClassVar[type[LearnerSettings]] = BCSettings
    settings: BCSettings
    reads: ClassVar[tuple[str, ...]] = ("actions",)

    @classmethod
    def for_actions(cls, _normaliser: Normaliser) -> type[Learner]:
        """Returns this class: it learns actions of either kind."""
        return cls

    def build(self, states: int, actions: int) -> None:
        """Makes the policy, and an encoder of pictures."""
        settings, agents = self.settings, self.agents
        sizes = (self.add_encoder(states), *settings.hidden, actions)
        is_discrete = self.normaliser.choices is not None
        kind = CategoricalPolicy if is_discrete else GaussianPolicy
        policy = kind(sizes, agents.initial, settings.dropout, agents.noise)
        self.policy: CategoricalPolicy | GaussianPolicy = agents.add("policy", policy)
        names = ("policy",) if self.encoder is None else ("policy", "encoder")
        self.adam = agents.adam("adam", **dict.fromkeys(names, settings.learning_rate))

    def step(self, batch: Batch, phase: str) -> dict[str, Tensor]:
        """Takes one gradient step on a batch."""
        split = self.agents.split
        states = self.learned_states(batch["observations"])
        actions = split(self.scaler.to_unit(batch["actions"]))
        mask = split(batch["mask"].to(states))
        loss = self._loss(states, actions, mask)
        return {"policy_loss": descend(self.adam, loss, mask)}

    def _loss(self, states: Tensor, actions: Tensor, mask: Tensor) -> Tensor:
        if not isinstance(self.policy, GaussianPolicy):
            return cross_entropy(self.policy(states), actions, mask)
        means, log_std = self.policy(states)
        if self.settings.loss == "mse":
            return squared_error(means, actions, mask)
        return negative_log_likelihood(means, log_std, actions, mask)

    def greedy(self, states: Tensor) -> Tensor:
        """Returns the mean actions, or a score of each discrete one."""
        return acted(self.policy, states)

    @torch.no_grad()
    def spread(self, agent: int = 0) -> Tensor:
        """Returns the Gaussian's standard deviation (A,); 0 where only the mean was fitted."""
        if self.settings.loss == "mse" or not isinstance(self.policy, GaussianPolicy):
            return super().spread(agent)
        return self.scaler.spread(self.policy.std()[agent]).cpu()
