"""Decision Transformer: actions as they follow from what came before and the return still wanted.

Chen, Lu, Rajeswaran, Lee, Grover, Laskin, Abbeel, Srinivas, Mordatch: "Decision Transformer:
Reinforcement Learning via Sequence Modeling". Each step of a window is three tokens: the return
from there on, the state, the action; all carry an embedding of the step's place in its episode. A
causal transformer reads them and says, at each state, the action:

    minimises  E[ |tanh(f(R_1, s_1, a_1, ..., R_t, s_t)) - a_t|^2 ] / dims, over all real steps

Windows begin at any step, uniformly over all steps: so long episodes come in proportion to their
length. Where an episode ends early, what is behind it is padding: no real step sees it, and it does
not count. (The authors pad on the left, which comes to the same: places are those in the episode.)

To act is to go on from a history: `remembering` keeps one for each copy of an environment, and
takes what was earned off the return that is wanted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from learners.base import Batch, Learner
from learners.eager import uncompiled
from learners.losses import masked_mean
from learners.settings import LearnerSettings, StreamNeeds
from learners.transformer import Block, Dropout, Embedding, Linear, Norm


class DTSettings(LearnerSettings):
    """Hyperparameters of the Decision Transformer; the defaults are the paper's for locomotion."""

    target_return: float
    """Return that the policy is to reach when it acts, in rewards as recorded; must be given."""
    return_scale: float = Field(default=1000.0, gt=0)
    """Returns are divided by this."""
    context: int = Field(default=20, ge=1)
    """Steps that the policy sees at once."""
    longest: int = Field(default=1000, ge=1)
    """Steps of the longest episodes; later ones count as the last of these."""
    blocks: int = Field(default=3, ge=1)
    """Blocks of the transformer."""
    heads: int = Field(default=1, ge=1)
    """Heads of its attention."""
    width: int = Field(default=128, ge=1)
    """Numbers of a token."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Share dropped in training of tokens and of what blocks add (attention itself is whole)."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """Adam's rate after the warm-up."""
    warm_up: int = Field(default=10_000, ge=0)
    """Updates over which the rate rises to it."""
    weight_decay: float = Field(default=1e-4, ge=0)
    """Decoupled, of all parameters."""
    largest_gradient: float = Field(default=0.25, gt=0)
    """Norm that an agent's gradient is cut to."""
    standardise: bool = True
    """Standardise observations by the data's mean and standard deviation."""

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> DTSettings:
        if self.width % self.heads:
            raise ValueError(f"{self.heads} heads that share a width of {self.width} evenly")
        return self


@dataclass(frozen=True)
class Steps:
    """Windows of T steps, on the scales of networks."""

    returns: Tensor  # (K, B, T), what is to be earned from each step on, scaled
    states: Tensor  # (K, B, T, O)
    actions: Tensor  # (K, B, T, A), unit box
    places: Tensor  # (K, B, T) int64, steps since the episode began


class Transformer(nn.Module):
    """The network: steps in, an action for each out.

    Args:
        settings: its sizes.
        states: O.
        actions: A.
        initial: one generator per agent, draws its initial weights.
        dropout: applied to tokens and to what blocks add.
    """

    def __init__(
        self,
        settings: DTSettings,
        states: int,
        actions: int,
        initial: Sequence[torch.Generator],
        dropout: Dropout,
    ) -> None:
        super().__init__()
        width = settings.width
        self.longest, self.dropout = settings.longest, dropout
        self.of_return = Linear(1, width, initial)
        self.of_state = Linear(states, width, initial)
        self.of_action = Linear(actions, width, initial)
        self.of_place = Embedding(settings.longest, width, initial)
        self.first_norm = Norm(width, len(initial))
        self.blocks = nn.ModuleList(
            Block(width, settings.heads, initial, dropout) for _ in range(settings.blocks)
        )
        self.last_norm = Norm(width, len(initial))
        self.to_action = Linear(width, actions, initial)

    def forward(self, steps: Steps) -> Tensor:
        """Returns the action at each step, (K, B, T, A), unit box; it sees none of later steps."""
        place = self.of_place(steps.places.clamp(max=self.longest - 1))
        parts = [
            self.of_return(steps.returns[..., None]) + place,
            self.of_state(steps.states) + place,
            self.of_action(steps.actions) + place,
        ]
        tokens = torch.stack(parts, dim=3).flatten(2, 3)  # (K, B, 3T, D)
        tokens = self.dropout(self.first_norm(tokens))
        for block in self.blocks:
            tokens = block(tokens)
        at_states = self.last_norm(tokens)[:, :, 1::3]
        return torch.tanh(self.to_action(at_states))


def action_loss(acted: Tensor, actions: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error per action dim over the real steps, (K, B, T, A) to (K,)."""
    errors = (acted - actions).square().mean(dim=-1)
    return masked_mean(errors.flatten(1), mask.flatten(1))


@torch.no_grad()
def cut_gradients(module: nn.Module, agents: int, largest: float) -> None:
    """Scales each agent's gradient down to a norm, where it is larger."""
    gradients = [part.grad for part in module.parameters() if part.grad is not None]
    squares = [gradient.view(agents, -1).square().sum(dim=1) for gradient in gradients]
    norm = torch.stack(squares).sum(dim=0).sqrt()
    factor = (largest / (norm + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor.view(agents, *[1] * (gradient.ndim - 1)))


class DT(Learner):
    """Return-conditioned behaviour cloning by a transformer."""

    name: ClassVar[str] = "dt"
    settings_kind: ClassVar[type[LearnerSettings]] = DTSettings
    settings: DTSettings
    acting: ClassVar[tuple[str, ...]] = ("network",)

    @classmethod
    def needs(cls, settings: Any) -> StreamNeeds:
        """Asks for windows with the plain sums of rewards to come."""
        return StreamNeeds(window=settings.context, returns="to_go")

    def build(self, states: int, actions: int) -> None:
        """Makes the transformer."""
        settings, agents = self.settings, self.agents
        dropout = Dropout(settings.dropout, agents.noise)
        made = Transformer(settings, states, actions, agents.initial, dropout)
        self.network = agents.add("network", made)
        self.adam = agents.adam("adam", network=settings.learning_rate)

    def prepare(self) -> None:
        """Lets the rate rise to its height."""
        done, settings = self.agents.updates + 1, self.settings
        self.adam.set_rate(0, settings.learning_rate * min(1.0, done / max(settings.warm_up, 1)))

    def step(self, batch: Batch, phase: str) -> dict[str, Tensor]:
        """Takes one gradient step.

        Args:
            batch: windows, (K B, T, ...), with `returns_to_go` and `timesteps`.
            phase: the only one.
        """
        steps, mask = self._steps(batch)
        loss = action_loss(self.network(steps), steps.actions, mask)
        loss = self.adam.weighed(loss, mask)
        self._descend(loss)
        return {"policy_loss": loss.detach()}

    def _steps(self, batch: Batch) -> tuple[Steps, Tensor]:
        split, scaler = self.agents.split, self.scaler
        mask = batch["mask"].to(scaler.device)
        count = mask.shape[:2]
        states = scaler.states(_flat(batch["observations"])).view(*count, -1)
        actions = scaler.to_unit(_flat(batch["actions"])).view(*count, -1)
        returns = batch["returns_to_go"].to(states) / self.settings.return_scale
        places = batch["timesteps"].to(scaler.device)
        found = Steps(split(returns), split(states), split(actions), split(places))
        return found, split(mask.to(states))

    @uncompiled  # the rate changes with every update of the warm-up
    def _descend(self, loss: Tensor) -> None:
        settings, flat = self.settings, self.agents.flat["network"]
        self.adam.gradients(loss)
        cut_gradients(self.network, self.agents.count, settings.largest_gradient)
        with torch.no_grad():
            flat.mul_(1.0 - self.adam.rates[0] * settings.weight_decay)
        self.adam.step()

    def greedy(self, states: Tensor) -> Tensor:
        """Returns the actions of first steps."""
        count, rows, _ = states.shape
        wanted = torch.full((count, rows, 1), self.settings.target_return, device=states.device)
        return self.acted(
            Steps(
                wanted / self.settings.return_scale,
                states[:, :, None],
                states.new_zeros(count, rows, 1, self.normaliser.action_dims),
                torch.zeros((count, rows, 1), dtype=torch.int64, device=states.device),
            )
        )[:, :, 0]

    def acted(self, steps: Steps) -> Tensor:
        """Returns the network's actions, without dropout."""
        self.network.eval()
        actions: Tensor = self.network(steps)
        self.network.train()
        return actions

    def remembering(self, count: int, agent: int = 0) -> Remembering:
        """Returns the actor of some copies of an environment, with a history of each."""
        return Remembering(self, agent, [_History(self.settings) for _ in range(count)])


@dataclass
class _History:
    """What one copy of an environment went through since its episode began."""

    settings: DTSettings
    past: deque[tuple[Tensor, Tensor, float, int]] = field(init=False)
    """State, action, return that was wanted and place of each step, the latest last."""
    wanted: float = field(init=False)
    place: int = field(init=False)

    def __post_init__(self) -> None:
        self.past = deque(maxlen=max(self.settings.context - 1, 1))
        self.restart()

    def restart(self) -> None:
        self.past.clear()
        self.wanted, self.place = self.settings.target_return, 0


class Remembering:
    """A Decision Transformer that acts in several copies of an environment.

    Args:
        learner: whose network acts.
        agent: which one.
        histories: one per copy.
    """

    def __init__(self, learner: DT, agent: int, histories: list[_History]) -> None:
        self._learner, self._agent, self._histories = learner, agent, histories
        self._states = torch.zeros(0)

    def begin(self, place: int) -> None:
        """Forgets what one copy went through; a new episode begins there."""
        self._histories[place].restart()

    @torch.no_grad()
    def act(self, observations: Any) -> Tensor:
        """Returns actions (B, A) of all copies, in the environment's units, on the CPU."""
        learner = self._learner
        self._states = learner.scaler.states(observations)
        steps, last = self._context()
        acted = learner.acted(steps)[self._agent]
        chosen = acted[torch.arange(len(last), device=last.device), last]
        return learner.scaler.from_unit(chosen).cpu()

    def explore(self, observations: Any, _noise: Any) -> Tensor:
        """Returns what `act` does: the policy has no spread of its own."""
        return self.act(observations)

    def after(self, place: int, action: np.ndarray, reward: float) -> None:
        """Tells what was done in one copy, and earned."""
        history, learner = self._histories[place], self._learner
        unit = learner.scaler.to_unit(action[None])[0]
        if learner.settings.context > 1:
            history.past.append((self._states[place], unit, history.wanted, history.place))
        history.wanted -= reward
        history.place += 1

    def _context(self) -> tuple[Steps, Tensor]:
        """What the network sees of all copies, and where the present step of each is."""
        learner, count = self._learner, len(self._histories)
        settings, dims = learner.settings, learner.normaliser.action_dims
        states = torch.zeros(count, settings.context, self._states.shape[1])
        actions = torch.zeros(count, settings.context, dims)
        returns = torch.zeros(count, settings.context)
        places = torch.zeros(count, settings.context, dtype=torch.int64)
        last = torch.zeros(count, dtype=torch.int64)
        for row, history in enumerate(self._histories):
            now = (self._states[row], torch.zeros(dims), history.wanted, history.place)
            for at, step in enumerate([*history.past, now]):
                states[row, at], actions[row, at] = step[0], step[1]
                returns[row, at], places[row, at] = step[2] / settings.return_scale, step[3]
                last[row] = at
        agents, device = learner.agents.count, learner.agents.device
        parts = (returns, states, actions, places)
        shared = [part.to(device).expand(agents, *part.shape) for part in parts]
        return Steps(*shared), last.to(device)


def _flat(value: Any) -> Any:
    """Windows as rows, (B, T, ...) to (B T, ...)."""
    if isinstance(value, dict):
        return {name: _flat(child) for name, child in value.items()}
    if isinstance(value, tuple):
        return tuple(map(_flat, value))
    return value.reshape(-1, *value.shape[2:])
