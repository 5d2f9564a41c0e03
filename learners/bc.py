"""Behaviour cloning: the policy that repeats the data.

Either mean squared error on a tanh-bounded action (the form of CORL's baselines), or maximum
likelihood under a Gaussian. Rewards and next observations are never read.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from learners.base import Batch, Learner
from learners.losses import gaussian_log_prob, masked_mean
from learners.networks import GaussianPolicy, mean_actions
from learners.optimiser import descend
from learners.settings import LearnerSettings


class BCSettings(LearnerSettings):
    """Hyperparameters of behaviour cloning."""

    loss: Literal["mse", "likelihood"] = "mse"
    """`mse` fits the mean action; `likelihood` fits a Gaussian's mean and spread."""
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


class BC(Learner):
    """Behaviour cloning."""

    name: ClassVar[str] = "bc"
    settings_kind: ClassVar[type[LearnerSettings]] = BCSettings
    settings: BCSettings

    def build(self, states: int, actions: int) -> None:
        """Makes the policy."""
        settings, agents = self.settings, self.agents
        sizes = (states, *settings.hidden, actions)
        policy = GaussianPolicy(sizes, agents.initial, settings.dropout, agents.noise)
        self.policy = agents.add("policy", policy)
        self.adam = agents.adam("adam", policy=settings.learning_rate)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Takes one gradient step on a batch."""
        split = self.agents.split
        states = split(self.scaler.states(batch["observations"]))
        actions = split(self.scaler.to_unit(batch["actions"]))
        mask = split(batch["mask"].to(states))
        means, log_std = self.policy(states)
        if self.settings.loss == "mse":
            loss = squared_error(means, actions, mask)
        else:
            loss = negative_log_likelihood(means, log_std, actions, mask)
        self.agents.updates += 1
        return {"policy_loss": descend(self.adam, loss)}

    def greedy(self, states: Tensor) -> Tensor:
        """Returns the mean actions."""
        return mean_actions(self.policy, states)

    @torch.no_grad()
    def spread(self, agent: int = 0) -> Tensor:
        """Returns the Gaussian's standard deviation (A,); 0 where only the mean was fitted."""
        if self.settings.loss == "mse":
            return super().spread(agent)
        return self.scaler.from_unit(self.policy.std()[agent]).cpu()
