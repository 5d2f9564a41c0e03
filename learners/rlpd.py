"""RLPD: soft actor-critic on an even mix of old and new data, many updates for each step.

Ball, Smith, Kostrikov, Levine: "Efficient Online Reinforcement Learning with Offline Data". One
update takes `updates` batches at once and, in their order, moves the critics on each of them, then
the policy and the temperature on the last; Q' are slow copies of an ensemble with layer norm:

    Q    minimises  E[ (r + discount (min Q'_i(s', a') - alpha log pi(a'|s')) - Q(s, a))^2 ], summed
                    over the ensemble, with a' from pi and the minimum over a few members i that
                    are drawn anew for each batch
    Q'   moves towards Q by tau, after each batch
    pi   minimises  E[ alpha log pi(a|s) - mean Q(s, a) ], a from pi
    alpha           keeps the entropy of pi near its target

Half of each batch is to come from the data and half from rollouts: that is how fine-tuning mixes
them unless told. All batches of an update come as one, whose rows are dealt out so that each part
is mixed so, too, and that the ranks' shares of it are the ranks' shares of each part.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from learners.base import Batch, Transitions
from learners.iql import critic_loss, critic_targets
from learners.networks import MLP, SquashedGaussianPolicy
from learners.optimiser import descend, frozen, move_target
from learners.ranks import ALONE, Ranks
from learners.settings import LearnerSettings, StreamNeeds
from learners.soft import SoftLearner, Temperature, policy_loss, temperature_loss
from schemas.errors import UsageError

TURN = 5073
"""By how much of a whole turn, in 65536ths, dealing goes on every two rounds; of some hundred that
were tried the one that mixes parts the most evenly where sources are of unequal weight."""


class RLPDSettings(LearnerSettings):
    """Hyperparameters of RLPD; the defaults are the paper's for locomotion."""

    updates: int = Field(default=20, ge=1)
    """Updates of the critics for one of the policy, each on a batch of its own."""
    members: int = Field(default=10, ge=1)
    """Critics of the ensemble."""
    minimum_of: int = Field(default=2, ge=1)
    """Members that a target is the least of (1 for antmaze)."""
    entropy_target: bool = True
    """Whether the entropy of pi at s' counts in targets (not for antmaze)."""
    temperature: float = Field(default=1.0, gt=0)
    """Of the entropy, at first."""
    target_entropy: float | None = None
    """Entropy that pi is held to; None takes minus half the number of action dims."""
    tau: float = Field(default=0.005, gt=0, le=1)
    """Share by which target critics move towards the critics at each of their updates."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers of all networks."""
    layer_norm: bool = True
    """Normalise the critics' hidden layers."""
    critic_rate: float = Field(default=3e-4, gt=0)
    """Adam's rate for the critics."""
    policy_rate: float = Field(default=3e-4, gt=0)
    """Adam's rate for the policy and the temperature."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this."""
    reward_shift: float = 0.0
    """Then this is added (-1 for antmaze)."""

    @model_validator(mode="after")
    def _has_enough_members(self) -> RLPDSettings:
        if self.minimum_of > self.members:
            raise ValueError(f"a minimum of {self.minimum_of} members, of {self.members}")
        return self


def least_of_some(q_tp1: Tensor, order: Tensor, some: int) -> Tensor:
    """Returns the least value among a few members.

    Args:
        q_tp1: (K, E, B).
        order: numbers whose smallest are of the members that count, (K, E).
        some: how many do.

    Returns:
        (K, B).
    """
    chosen = order.argsort(dim=1)[:, :some, None].expand(-1, -1, q_tp1.shape[-1])
    return q_tp1.gather(1, chosen).amin(dim=1)


def in_parts(b: Transitions, parts: int, ranks: Ranks = ALONE) -> list[Transitions]:
    """Deals the rows of each agent out to equal parts, as `dealt` says.

    Raises:
        UsageError: if they cannot be equal.
    """
    rows = b.rewards.shape[1]
    if rows % parts:
        raise UsageError(
            f"Expected rows for {parts} updates at once, a multiple of so many, came {rows}."
        )
    order = dealt(rows // parts, parts, ranks, b.rewards.device).flatten()
    fields = [
        value.index_select(1, order).split(rows // parts, dim=1) for value in vars(b).values()
    ]
    return [Transitions(*part) for part in zip(*fields, strict=True)]


def dealt(rounds: int, parts: int, ranks: Ranks, device: torch.device) -> Tensor:
    """Returns which of a rank's rows each part has, in their order, (parts, rounds) int64.

    Each round deals one row to each part, whichever rank holds it, so a rank's share of the whole
    batch deals out as its share of each part. Sources stand interleaved in a batch; where a round
    began with the same part as the one before it, a part would have rows of one source alone. So
    beginnings turn: in pairs of rounds, such that two sources of equal weight are exactly even in
    each part, and from pair to pair.

    Args:
        rounds: rows of this rank in each part.
        parts: how many there are.
        ranks: the processes that learn together.
        device: where the numbers are to lie.
    """
    mine = torch.arange(rounds, device=device)
    number = mine + ranks.rank * rounds  # among the rounds of all ranks
    begins = (number // 2 * (TURN * parts) >> 16) + number % 2 * (1 - parts % 2)
    part = torch.arange(parts, device=device)[:, None]
    return mine * parts + (part - begins) % parts


class RLPD(SoftLearner):
    """Reinforcement learning with prior data."""

    name: ClassVar[str] = "rlpd"
    settings_kind: ClassVar[type[LearnerSettings]] = RLPDSettings
    settings: RLPDSettings

    @classmethod
    def needs(cls, settings: Any) -> StreamNeeds:
        """Asks for as many batches at once as there are updates of the critics."""
        return StreamNeeds(batches=settings.updates)

    def build(self, states: int, actions: int) -> None:
        """Makes the policy, the temperature, the ensemble and its slow copies."""
        settings, agents = self.settings, self.agents
        hidden, initial, rate = settings.hidden, agents.initial, settings.policy_rate
        target = settings.target_entropy
        self.target_entropy = -actions / 2.0 if target is None else target
        policy = SquashedGaussianPolicy((states, *hidden, actions), initial)
        self.policy = agents.add("policy", policy)
        temperature = Temperature(agents.count, settings.temperature)
        self.temperature = agents.add("temperature", temperature)
        critics = MLP(
            (states + actions, *hidden, 1),
            initial,
            members=settings.members,
            layer_norm=settings.layer_norm,
        )
        self.critics = agents.add("critics", critics)
        self.targets = agents.target("targets", "critics")
        self.critic_adam = agents.adam("critic_adam", critics=settings.critic_rate)
        self.policy_adam = agents.adam("policy_adam", policy=rate, temperature=rate)

    def step(self, batch: Batch, phase: str) -> dict[str, Tensor]:
        """Takes `updates` gradient steps on the critics, then one on policy and temperature.

        Args:
            batch: K `updates` B rows.
            phase: the only one.
        """
        agents = self.agents
        parts = in_parts(self.transitions(batch), self.settings.updates, agents.ranks)
        for b in parts:
            critic, q_t = self._update_critics(b)
            move_target(agents.flat["targets"], agents.flat["critics"], self.settings.tau)
        return {
            "critic_loss": critic,
            "q": q_t.mean(dim=(1, 2)),
            **self._update_policy(parts[-1]),
        }

    def _update_critics(self, b: Transitions) -> tuple[Tensor, Tensor]:
        settings = self.settings
        targets = critic_targets(
            b.rewards * settings.reward_scale + settings.reward_shift, b.discounts, self._v_tp1(b)
        )
        q_t = self.critics(torch.cat([b.s_t, b.a_t], dim=-1)).squeeze(-1)
        loss = critic_loss(q_t, targets, b.mask)
        return descend(self.critic_adam, loss, b.mask), q_t.detach()

    @torch.no_grad()
    def _v_tp1(self, b: Transitions) -> Tensor:
        settings, noise = self.settings, self.agents.noise
        a_tp1, log_probs = self.policy.sample(b.s_tp1, noise.normal(*b.a_t.shape[1:]))
        q_tp1 = self.targets(torch.cat([b.s_tp1, a_tp1], dim=-1)).squeeze(-1)
        v_tp1 = least_of_some(q_tp1, noise.uniform(settings.members), settings.minimum_of)
        if settings.entropy_target:
            v_tp1 = v_tp1 - self.temperature()[:, None] * log_probs
        return v_tp1

    def _update_policy(self, b: Transitions) -> dict[str, Tensor]:
        alpha = self.temperature()
        actions, log_probs = self.policy.sample(b.s_t, self.agents.noise.normal(*b.a_t.shape[1:]))
        with frozen(self.critics):
            q_t = self.critics(torch.cat([b.s_t, actions], dim=-1)).squeeze(-1).mean(dim=1)
            actor = policy_loss(log_probs, q_t, alpha.detach(), b.mask)
        entropy = temperature_loss(alpha, log_probs, self.target_entropy, b.mask)
        descend(self.policy_adam, actor + entropy, b.mask)
        return {
            "policy_loss": actor.detach(),
            "temperature": alpha.detach(),
            "entropy": -log_probs.detach().mean(dim=1),
        }
