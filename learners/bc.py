"""Behaviour cloning: the policy that repeats the data.

Either mean squared error on a tanh-bounded action (the form of CORL's baselines), or maximum
likelihood under a Gaussian. Rewards and next observations are never read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from learners.base import Batch
from learners.inputs import Scaler
from learners.losses import gaussian_log_prob, masked_mean
from learners.networks import GaussianPolicy
from learners.normaliser import Normaliser
from learners.optimiser import descend, flatten, make_adam
from learners.settings import LearnerSettings
from learners.state import adam_state, load_adam_state, load_module_state, module_state


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


class BC:
    """Behaviour cloning."""

    name: ClassVar[str] = "bc"
    settings_kind: ClassVar[type[LearnerSettings]] = BCSettings

    def __init__(
        self, settings: BCSettings, normaliser: Normaliser, seed: int = 0, device: str = "cpu"
    ) -> None:
        self.settings = settings
        self.normaliser = normaliser
        self.scaler = Scaler(normaliser, device)
        self.generator = torch.Generator().manual_seed(seed)
        sizes = (normaliser.observation_dims, *settings.hidden, normaliser.action_dims)
        self.policy = GaussianPolicy(sizes, self.generator, settings.dropout).to(device)
        self.adam = make_adam((flatten(self.policy.parameters()), settings.learning_rate))

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Takes one gradient step on a batch."""
        states = self.scaler.states(batch["observations"])
        actions = self.scaler.to_unit(batch["actions"])
        mask = batch["mask"].to(states)
        means, log_std = self.policy(states)
        if self.settings.loss == "mse":
            loss = squared_error(means, actions, mask)
        else:
            loss = negative_log_likelihood(means, log_std, actions, mask)
        return {"policy_loss": descend(self.adam, loss)}

    @torch.no_grad()
    def act(self, observations: Any) -> Tensor:
        """Returns the mean actions (B, A), in the environment's units."""
        self.policy.eval()
        means, _ = self.policy(self.scaler.states(observations))
        self.policy.train()
        return self.scaler.from_unit(means).cpu()

    @torch.no_grad()
    def spread(self) -> Tensor:
        """Returns the Gaussian's standard deviation (A,); 0 where only the mean was fitted."""
        if self.settings.loss == "mse":
            return torch.zeros_like(self.scaler.action_scale).cpu()
        return self.scaler.from_unit(self.policy.std()).cpu()

    def state(self) -> dict[str, Tensor]:
        """Returns everything a later update depends on."""
        return {
            **module_state(self.policy, "policy"),
            **adam_state(self.adam, "adam"),
            "generator": self.generator.get_state(),
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of `state`."""
        load_module_state(self.policy, "policy", state)
        load_adam_state(self.adam, "adam", state)
        self.generator.set_state(state["generator"])
