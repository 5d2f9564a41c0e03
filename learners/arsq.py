"""ARSQ: soft Q-learning over coarse-to-fine choices, each made in sight of those before it.

Liu, Gao, Liao, Yu, Wang: "Learning from Suboptimal Data in Continuous Control via Auto-Regressive
Soft Q-Network". An action is L D choices, one for each dim at each level, levels outermost. What a
choice is better than the best is its advantage A, given the middles of all choices before it, and
normalised, so that A / alpha is the logarithm of a policy; V is the value of the state:

    A   = A~ - alpha log sum exp(A~ / alpha)     A~ from the network
    pi  = exp(A / alpha), for one choice after the other
    Q   = V + sum of A over the choices          so that V = alpha log sum exp(Q / alpha)
    y   = r + discount min V'_i(s')              V' slow copies of the twin V
    A, V  minimise  bellman_weight E[(Q_i - y)^2] + demonstration_weight E[lead of other choices]

summed over the twins; they act by the lesser of their advantages. The lead is taken on
demonstrations, over the choices of a row in sum, and never counts as less than -margin:
`cql`:  alpha log sum exp(A of others / alpha) - A of the choice made, its log odds times -alpha;
`margin`:  the mean over others of A of the other - A of the choice made.

With one dim and one level it is soft Q-learning on a discrete set of actions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from learners.base import Batch
from learners.codec import Codec, middle
from learners.grid import GridLearner, GridSettings
from learners.iql import critic_loss, critic_targets
from learners.losses import masked_mean
from learners.networks import ACTIVATIONS, MLP
from learners.optimiser import descend, move_target
from learners.settings import LearnerSettings

FIRST_GAIN = 0.01
"""Of the last layers' initial weights: at first all choices are alike."""
TWINS = 2
BELOW_ONE = 1.0 - 1e-12


class ARSQSettings(GridSettings):
    """Hyperparameters of ARSQ; the defaults are the paper's for locomotion, where it has one."""

    levels: int = Field(default=2, ge=1, le=16)
    """How often a part of the range of actions is cut again (hopper 2, cheetah and walker 1)."""
    bins: int = Field(default=7, ge=2, le=4096)
    """Parts of each cut (hopper 7, cheetah and walker 41)."""
    alpha: float = Field(default=0.01, gt=0)
    """Temperature: how much entropy is worth."""
    bellman_weight: float = Field(default=1.0, ge=0)
    """Of what is learned from rewards."""
    demonstration_weight: float = Field(default=1.0, ge=0)
    """Of what is learned from demonstrations (0.03 to 10 from task to task)."""
    demonstration_term: Literal["cql", "margin"] = "cql"
    """How a demonstrated choice is set against the others."""
    margin: float | None = Field(default=None, ge=0)
    """Lead of a demonstrated choice beyond which it is left alone; None takes 10 alpha, where it
    is exp(10) times as likely as the others."""
    tau: float = Field(default=0.005, gt=0, le=1)
    """Share by which the slow copies of V move at each update."""
    hidden: tuple[int, ...] = Field(default=(512, 512, 512), min_length=1)
    """Widths of the hidden layers of all networks."""
    activation: Literal["tanh", "relu", "gelu", "silu"] = "tanh"
    """Between the layers."""
    advantage_rate: float = Field(default=3e-4, gt=0)
    """Adam's rate for A."""
    value_rate: float = Field(default=3e-4, gt=0)
    """Adam's rate for V."""

    @property
    def last_layer(self) -> int:
        """Parameters of the last layer for each dim."""
        return TWINS * self.levels * self.bins * self.hidden[-1]


class Advantages(nn.Module):
    """Raw advantages A~ of the choices, by twin networks with a last layer for each place.

    Of the places' last layers only that of the choice at hand is multiplied out.

    Args:
        features: numbers that stand for an observation.
        codec: what is chosen.
        settings: of the learner.
        generators: one per agent.
    """

    def __init__(
        self,
        features: int,
        codec: Codec,
        settings: ARSQSettings,
        generators: Sequence[torch.Generator],
    ) -> None:
        super().__init__()
        sizes = (features + codec.dims, *settings.hidden)
        activation, width = settings.activation, settings.hidden[-1]
        self.trunk = MLP(sizes, generators, TWINS, activation=activation)
        self.activation = ACTIVATIONS[activation]
        shape = (len(generators) * TWINS, codec.levels * codec.dims)
        self.weights = nn.Parameter(torch.empty(*shape, width, codec.bins))
        self.biases = nn.Parameter(torch.zeros(*shape, 1, codec.bins))
        for number, part in enumerate(self.weights.data):
            for weight in part:
                nn.init.orthogonal_(weight, FIRST_GAIN, generators[number // TWINS])

    def forward(self, features: Tensor, known: Tensor) -> Tensor:
        """Returns what the choices at all places are better by.

        Args:
            features: (K, B, F).
            known: what is chosen before each, (K, B, N, D) for N = L D places.

        Returns:
            (K, 2, B, N, bins).
        """
        agents, rows, places, _ = known.shape
        repeated = features[:, None].expand(agents, places, rows, -1)
        inputs = torch.cat([repeated, known.transpose(1, 2)], dim=-1)
        hidden = self._hidden(inputs.flatten(1, 2)).view(agents * TWINS, places, rows, -1)
        found = hidden @ self.weights + self.biases
        return found.view(agents, TWINS, places, rows, -1).transpose(2, 3)

    def at(self, features: Tensor, known: Tensor, place: int) -> Tensor:
        """Returns the same for one place, (K, B, F) and (K, B, D) to (K, 2, B, bins)."""
        hidden = self._hidden(torch.cat([features, known], dim=-1)).flatten(0, 1)
        found = torch.baddbmm(self.biases[:, place], hidden, self.weights[:, place])
        return found.view(len(features), TWINS, *found.shape[1:])

    def _hidden(self, inputs: Tensor) -> Tensor:
        return self.activation(self.trunk(inputs))


def normalised(raw: Tensor, alpha: float) -> Tensor:
    """Returns A - alpha log sum exp(A / alpha) over the last axis: alpha times a log policy."""
    return alpha * torch.log_softmax(raw / alpha, dim=-1)


def known_before(midpoints: Tensor) -> Tensor:
    """Returns what is known of an action before each of its choices.

    Args:
        midpoints: (..., L + 1, D), before each level and after the last.

    Returns:
        (..., L D, D): at level l and dim d those of the dims before d have level l behind them.
    """
    dims = midpoints.shape[-1]
    is_behind = torch.ones(dims, dims, dtype=torch.bool, device=midpoints.device).tril(-1)
    before, after = midpoints[..., :-1, None, :], midpoints[..., 1:, None, :]
    return torch.where(is_behind, after, before).flatten(-3, -2)


def taken(advantages: Tensor, choices: Tensor) -> Tensor:
    """Picks the advantages of the choices, (K, 2, B, N, bins) and (K, B, N) to (K, 2, B, N)."""
    index = choices[:, None, ..., None].expand(*advantages.shape[:-1], 1)
    return advantages.gather(-1, index).squeeze(-1)


def others(advantages: Tensor, choices: Tensor, fill: float) -> Tensor:
    """Returns advantages with another number in the place of each choice, shapes as for `taken`."""
    index = choices[:, None, ..., None].expand(*advantages.shape[:-1], 1)
    return advantages.scatter(-1, index, fill)


def odds_lead(advantages: Tensor, choices: Tensor, alpha: float, margin: float) -> Tensor:
    """Returns max(alpha log sum exp(A of others / alpha) - A, -margin), summed over the choices.

    Args:
        advantages: normalised, (K, 2, B, N, bins).
        choices: those made, (K, B, N).
        alpha: temperature.
        margin: lead that is enough.

    Returns:
        (K, 2, B).
    """
    best = alpha * torch.logsumexp(others(advantages, choices, -torch.inf) / alpha, dim=-1)
    return (best - taken(advantages, choices)).clamp(min=-margin).sum(dim=-1)


def mean_lead(advantages: Tensor, choices: Tensor, margin: float) -> Tensor:
    """Returns the mean over others of max(A of the other - A, -margin), summed over the choices.

    Arguments and shapes as for `odds_lead`.
    """
    made = taken(advantages, choices)[..., None]
    lead = (advantages - made).clamp(min=-margin)
    counted = others(lead, choices, 0.0).sum(dim=-1)
    return counted.sum(dim=-1) / (advantages.shape[-1] - 1)


class ARSQ(GridLearner):
    """Auto-regressive soft Q-learning."""

    name: ClassVar[str] = "arsq"
    settings_kind: ClassVar[type[LearnerSettings]] = ARSQSettings
    settings: ARSQSettings

    def make(self, features: int) -> None:
        """Makes twin advantages, by which it acts, twin V and the slow copies of V."""
        settings, agents = self.settings, self.agents
        advantages = Advantages(features, self.codec, settings, agents.initial)
        self.policy = agents.add("policy", advantages)
        sizes, activation = (features, *settings.hidden, 1), settings.activation
        values = MLP(sizes, agents.initial, TWINS, activation=activation)
        values.weights[-1].data.mul_(FIRST_GAIN)
        self.values = agents.add("values", values)
        self.targets = agents.target("targets", "values")
        rates = self.rates(policy=settings.advantage_rate, values=settings.value_rate)
        self.adam = agents.adam("adam", **rates)

    def step(self, batch: Batch, phase: str) -> dict[str, Tensor]:
        """Takes one gradient step."""
        settings, agents, b = self.settings, self.agents, self.transitions(batch)
        with torch.no_grad():
            v_tp1 = self.targets(b.s_tp1).squeeze(-1).amin(dim=1)  # (K, B)
            targets = critic_targets(self.rewards(b.rewards), b.discounts, v_tp1)
        cells = self.cells(b.a_t)
        choices = self.codec.choices(cells).flatten(-2)  # (K, B, N)
        raw = self.policy(b.s_t, known_before(self.codec.midpoints(cells)))
        advantages = normalised(raw, settings.alpha)
        made = taken(advantages, choices)
        q_t = self.values(b.s_t).squeeze(-1) + made.sum(dim=-1)  # (K, 2, B)
        bellman = critic_loss(q_t, targets, b.mask)
        demonstrated, weight = self.demonstrated(batch, b.mask)
        lead = masked_mean(self._lead(advantages, choices), demonstrated[:, None])
        lead = weight * lead.sum(dim=-1)
        descend(
            self.adam,
            settings.bellman_weight * bellman + settings.demonstration_weight * lead,
            b.mask,
        )
        move_target(agents.flat["targets"], agents.flat["values"], settings.tau)
        return {
            "bellman_loss": bellman.detach(),
            "demonstration_loss": lead.detach(),
            "q": q_t.detach().mean(dim=(1, 2)),
            "log_policy": made.detach().sum(dim=-1).mean(dim=(1, 2)) / settings.alpha,
        }

    def _lead(self, advantages: Tensor, choices: Tensor) -> Tensor:
        alpha, margin = self.settings.alpha, self.settings.margin
        enough = 10 * alpha if margin is None else margin
        if self.settings.demonstration_term == "cql":
            return odds_lead(advantages, choices, alpha, enough)
        return mean_lead(advantages, choices, enough)

    def log_policy(self, features: Tensor, known: Tensor, place: int) -> Tensor:
        """Returns log pi of the choices at one place.

        Args:
            features: (K, B, F).
            known: what was chosen before, (K, B, D).
            place: from 0 to L D - 1.

        Returns:
            (K, B, bins): the lesser of the twins' advantages, normalised again.
        """
        alpha = self.settings.alpha
        lesser = normalised(self.policy.at(features, known, place), alpha).amin(dim=1)
        return normalised(lesser, alpha) / alpha

    def cells_by(self, features: Tensor, pick: Callable[[Tensor, int], Tensor]) -> Tensor:
        """Chooses one place after the other.

        Args:
            features: (K, B, F).
            pick: makes choices (K, B) of log pi (K, B, bins) and the dim.

        Returns:
            Cells, (K, B, D).
        """
        levels, dims, bins = self.codec.levels, self.codec.dims, self.codec.bins
        rows = (*features.shape[:-1], dims)
        cells = torch.zeros(rows, dtype=torch.int64, device=features.device)
        known = torch.zeros(rows, device=features.device)
        for place in range(levels * dims):
            level, dim = divmod(place, dims)
            choice = pick(self.log_policy(features, known, place), dim)
            cells[..., dim] = cells[..., dim] * bins + choice
            known[..., dim] = middle(cells[..., dim], bins ** (level + 1))
        return cells

    @torch.no_grad()
    def greedy(self, states: Tensor) -> Tensor:
        """Returns the middles of cells, the likeliest choice at each place.

        Of discrete actions it is log pi.
        """
        if self.is_discrete:
            known = states.new_zeros(*states.shape[:-1], 1)
            return self.log_policy(states, known, 0)
        return self.codec.centre(self.cells_by(states, lambda log_pi, _: log_pi.argmax(dim=-1)))

    @torch.no_grad()
    def explore(self, observations: Any, noise: Any, agent: int = 0) -> Tensor:
        """Returns an agent's actions for standard normal numbers, as `Learner.explore`.

        They are drawn from pi. The number of a dim stands for its quantile, of which each level
        takes what says its choice and hands the rest on; a number of 0 is the median.
        """
        if self.is_discrete:
            return super().explore(observations, noise, agent)
        quantiles = torch.special.ndtr(torch.as_tensor(noise, dtype=torch.float64))
        rest = quantiles.to(self.scaler.device)

        def draw(log_pi: Tensor, dim: int) -> Tensor:
            choice, rest[:, dim] = quantile(log_pi[agent].double().exp(), rest[:, dim])
            return choice

        cells = self.cells_by(self.states(observations), draw)
        return self.scaler.from_unit(self.codec.centre(cells[agent])).double().cpu()


def quantile(probs: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """Returns which choice lies at a quantile, and where within the choice that is.

    Args:
        probs: (B, bins), float64.
        at: (B,), from 0 to below 1.

    Returns:
        (B,) int64, and (B,) from 0 to below 1, which is uniform where `at` is.
    """
    upto = probs.cumsum(dim=-1)
    at = at[:, None].clamp(max=BELOW_ONE) * upto[:, -1:]
    choice = (upto <= at).sum(dim=-1, keepdim=True)
    mine = probs.gather(-1, choice)
    within = (at - (upto.gather(-1, choice) - mine)) / mine
    return choice[:, 0], within[:, 0].clamp(0.0, BELOW_ONE)
