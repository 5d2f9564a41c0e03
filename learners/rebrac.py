"""ReBRAC: TD3 whose policy and critics are both held to the data.

Tarasov, Kurenkov, Nikulin, Kolesnikov: "Revisiting the Minimalist Approach to Offline Reinforcement
Learning". One update; Q', pi' are slow copies, and n is the data's own next action:

    Q    minimises  E[ (r + discount (min Q'(s', a') - beta2 |a' - n|^2) - Q(s, a))^2 ], summed
                    over both, with a' = pi'(s') + noise as in TD3
    pi   maximises  lambda E[ min Q(s, pi(s)) ] - beta1 E[ |pi(s) - a|^2 ], every second update,
                    with lambda = 1 / E[ |min Q(s, pi(s))| ], through which no gradient goes
    Q', pi' move towards Q, pi by tau whenever the policy was updated

Distances are sums over action dims. The next action comes with windows of two steps. Where an
episode was cut off there is none, so nothing is subtracted; where it ended nothing is bootstrapped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator
from torch import Tensor

from learners.base import Batch, Transitions
from learners.inputs import at_step
from learners.losses import masked_mean
from learners.networks import MLP, Norm, TanhPolicy, draw_uniformly
from learners.ranks import ALONE, Ranks
from learners.settings import LearnerSettings, StreamNeeds
from learners.td3 import TD3, TD3Settings, value_weight

POLICY_BOUND, CRITIC_BOUND = 1e-3, 3e-3
"""Within which weights of last layers are drawn."""


class ReBRACSettings(TD3Settings):
    """Hyperparameters of ReBRAC; the defaults are those of the authors' code.

    Their batches have 1024 rows, which are a run's own setting, and their penalties differ from one
    data set to another.
    """

    policy_penalty: float = Field(default=1.0, ge=0)
    """beta1: how much the policy's distance from the data costs (per dataset, 0.001 to 1)."""
    critic_penalty: float = Field(default=1.0, ge=0)
    """beta2: how much that of next actions lowers targets (per dataset, 0 to 1)."""
    hidden: tuple[int, ...] = (256, 256, 256)
    """Widths of the hidden layers of all networks."""
    activation: str = "relu"
    """Of hidden layers: `relu`, `gelu` or `tanh`."""
    critic_layer_norm: bool = True
    """Normalise the critics' hidden layers."""
    policy_layer_norm: bool = False
    """Normalise the policy's hidden layers."""
    norm: Literal["before", "after"] = "after"
    """Where hidden layers are normalised: before or after their activation."""
    critic_rate: float = Field(default=1e-3, gt=0)
    """Adam's rate for the twin critics."""
    policy_rate: float = Field(default=1e-3, gt=0)
    """Adam's rate for the policy."""
    standardise: bool = False
    """Standardise observations by the data's mean and standard deviation; the authors do not."""

    @model_validator(mode="before")
    @classmethod
    def _as_they_were_kept(cls, given: Any) -> Any:
        """Runs that kept all settings before there was `norm` had normalised before activations."""
        if isinstance(given, Mapping) and cls.model_fields.keys() - given.keys() == {"norm"}:
            return {**given, "norm": "before"}
        return given


def penalised_values(
    q_tp1: Tensor, a_tp1: Tensor, data_a_tp1: Tensor, goes_on: Tensor, penalty: float
) -> Tensor:
    """Q' - penalty |a' - n|^2 where the episode goes on, Q' elsewhere.

    Args:
        q_tp1: (..., B).
        a_tp1: next actions of the policy, (..., B, A).
        data_a_tp1: those of the data, (..., B, A).
        goes_on: 1 where the data have one, (..., B).
        penalty: beta2.
    """
    return q_tp1 - penalty * goes_on * (a_tp1 - data_a_tp1).square().sum(dim=-1)


def policy_loss(
    q_t: Tensor,
    policy_actions: Tensor,
    data_actions: Tensor,
    penalty: float,
    mask: Tensor,
    ranks: Ranks = ALONE,
) -> Tensor:
    """-lambda E[Q(s, pi(s))] + penalty E[|pi(s) - a|^2], (K,)."""
    distance = (policy_actions - data_actions).square().sum(dim=-1)
    values = value_weight(q_t, mask, ranks) * masked_mean(q_t, mask)
    return penalty * masked_mean(distance, mask) - values


class ReBRAC(TD3):
    """TD3 with penalties on policy and critics."""

    name: ClassVar[str] = "rebrac"
    settings_kind: ClassVar[type[LearnerSettings]] = ReBRACSettings
    settings: ReBRACSettings

    @classmethod
    def needs(cls, settings: Any) -> StreamNeeds:
        """Asks for windows of two steps, of which the second holds the next action."""
        return StreamNeeds(window=2)

    def networks(self, states: int, actions: int) -> tuple[TanhPolicy, MLP]:
        """Returns them with the settings' activations and normalised layers."""
        settings, initial = self.settings, self.agents.initial
        hidden, activation = settings.hidden, settings.activation
        norm: Norm = "after" if settings.norm == "after" else True
        sizes = (states, *hidden, actions)
        policy = TanhPolicy(sizes, initial, activation, settings.policy_layer_norm and norm)
        draw_uniformly(policy.trunk, initial, POLICY_BOUND)
        critics = MLP(
            (states + actions, *hidden, 1),
            initial,
            members=2,
            activation=activation,
            layer_norm=settings.critic_layer_norm and norm,
        )
        draw_uniformly(critics, initial, CRITIC_BOUND)
        return policy, critics

    def read(self, batch: Batch) -> Transitions:
        """Returns the first step of each window, (K B, 2, ...)."""
        return self.transitions(at_step(batch, 0))

    def next_values(self, q_tp1: Tensor, a_tp1: Tensor, batch: Batch) -> Tensor:
        """Subtracts how far next actions are from the data's."""
        split, following = self.agents.split, at_step(batch, 1)
        data_a_tp1 = split(self.scaler.to_unit(following["actions"]))
        goes_on = split(following["mask"].to(q_tp1))
        return penalised_values(q_tp1, a_tp1, data_a_tp1, goes_on, self.settings.critic_penalty)

    def policy_loss(self, q_t: Tensor, actions: Tensor, b: Transitions) -> Tensor:
        """Returns the loss by the lesser critic."""
        penalty = self.settings.policy_penalty
        return policy_loss(q_t.amin(dim=1), actions, b.a_t, penalty, b.mask, self.agents.ranks)
