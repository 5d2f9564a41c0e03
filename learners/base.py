"""What a learner is, and how one is made by name.

A learner turns batches into updates and observations into actions; its whole state is a flat
mapping of tensors, so that checkpoints need no knowledge of any algorithm.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from learners.agents import Agents
from learners.inputs import Scaler, sampled
from learners.normaliser import Normaliser
from learners.ranks import ALONE, Ranks
from learners.settings import NO_NEEDS, LearnerSettings, StreamNeeds, read_settings
from schemas.errors import SpecMismatchError, UnknownNameError, suggest

Batch = Mapping[str, Any]
"""What a stream yields: `observations, actions, rewards, next_observations, discounts, mask` and
more; B rows each."""


@dataclass(frozen=True)
class Transitions:
    """Transitions of K agents, on the scales of networks."""

    s_t: Tensor  # (K, B, O)
    a_t: Tensor  # (K, B, A), unit box
    rewards: Tensor  # (K, B)
    s_tp1: Tensor  # (K, B, O)
    discounts: Tensor  # (K, B); gamma, or 0 after a terminated step
    mask: Tensor  # (K, B)


class Learner(ABC):
    """One algorithm for K agents, which differ by their seed and train side by side.

    A run of one seed has K = 1. Batches hold the agents' rows one agent after another.

    Args:
        settings: hyperparameters.
        normaliser: how inputs are scaled; gives the sizes of inputs and outputs, too.
        seeds: one per agent.
        device: where networks and batches live.
        ranks: the processes that learn together.
    """

    name: ClassVar[str]
    settings_kind: ClassVar[type[LearnerSettings]]
    reads: ClassVar[tuple[str, ...]] = ("actions", "rewards")
    """What of a recorded step it reads besides observations."""
    now_and_then: ClassVar[tuple[str, ...]] = ()
    """Losses that are NaN at updates which leave their network as it is."""
    acting: ClassVar[tuple[str, ...]] = ("policy", "encoder")
    """Networks that act, of those that it has: what is published."""

    def __init__(
        self,
        settings: Any,
        normaliser: Normaliser,
        seeds: Sequence[int] = (0,),
        device: str = "cpu",
        ranks: Ranks = ALONE,
    ) -> None:
        self.settings = settings
        self.normaliser = normaliser
        self.scaler = Scaler(normaliser, device)
        self.agents = Agents(seeds, device, ranks)
        self.build(normaliser.observation_dims, normaliser.action_dims)

    @classmethod
    def needs(cls, settings: Any) -> StreamNeeds:
        """Returns what the algorithm asks of streams.

        With a window, `update` is given batches of windows as they are; else only rows.
        """
        return NO_NEEDS

    @classmethod
    def for_actions(cls, normaliser: Normaliser) -> type[Learner]:
        """Returns the class of this algorithm for the kind of actions that the data hold.

        Raises:
            SpecMismatchError: if it has no form for them; most have none for discrete ones.
        """
        if normaliser.choices is not None:
            raise SpecMismatchError(
                f"Expected continuous actions (arrays of floats) for {cls.name}, came discrete "
                f"ones, {normaliser.choices} of them; bc, iql and cql learn with those."
            )
        return cls

    @abstractmethod
    def build(self, states: int, actions: int) -> None:
        """Makes networks and optimisers for inputs and outputs of so many numbers.

        Discrete actions are as many outputs as there are of them.
        """

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Takes one update of each agent.

        Args:
            batch: K B rows.

        Returns:
            (K,) values by name, left on the device until read.
        """
        self.prepare()
        found = self.step(batch, self.phase())
        self.agents.updates += 1
        return found

    def prepare(self) -> None:  # noqa: B027 - most have nothing to set
        """Sets what the next update takes of the number of updates before it: learning rates."""

    def phase(self) -> str:
        """Returns which of its kinds the next update is, where updates differ in what they do."""
        return ""

    @abstractmethod
    def step(self, batch: Batch, phase: str) -> dict[str, Tensor]:
        """Does what `update` says, and nothing that the number of updates decides but by `phase`.

        So what a step does may be compiled, or captured on a device, once for each phase.
        """

    @abstractmethod
    def greedy(self, states: Tensor) -> Tensor:
        """Returns the deterministic actions of scaled states, (K, B, O) to (K, B, A), unit box.

        Of discrete actions it is a score of each; the best is done, or one drawn from the softmax.
        """

    def states(self, observations: Any) -> Tensor:
        """Returns what the networks of all agents see of observations (B, ...), (K, B, O)."""
        states = self.scaler.states(observations)
        return states.expand(self.agents.count, *states.shape)

    @torch.no_grad()
    def act(self, observations: Any, agent: int = 0) -> Tensor:
        """Returns an agent's deterministic actions (B, A), in the environment's units, on CPU.

        Discrete ones are (B,) int64.
        """
        actions = self.greedy(self.states(observations))[agent]
        return self.scaler.from_unit(actions).cpu()

    @torch.no_grad()
    def spread(self, agent: int = 0) -> Tensor:
        """Returns the standard deviation (A,) of an agent's policy around `act`; 0 for none."""
        return torch.zeros_like(self.scaler.action_scale).cpu()

    @torch.no_grad()
    def explore(self, observations: Any, noise: Any, agent: int = 0) -> Tensor:
        """Returns an agent's actions for standard normal numbers.

        Args:
            observations: (B, ...), nested like the space.
            noise: (B, A); a number for each action of discrete ones.
            agent: which one.

        Returns:
            (B, A) float64, in the environment's units, on the CPU; by default `act` with noise of
            `spread`. Discrete ones are (B,) int64, drawn from the softmax of their scores.
        """
        if self.normaliser.choices is not None:
            return sampled(self.greedy(self.states(observations))[agent], noise)
        drawn = torch.as_tensor(noise, dtype=torch.float64)
        return self.act(observations, agent).double() + self.spread(agent).double() * drawn

    def state(self, agent: int = 0) -> dict[str, Tensor]:
        """Returns everything that an agent's later updates depend on, as flat named tensors."""
        return self.agents.state(agent)

    def load_state(self, state: Mapping[str, Tensor], agent: int = 0) -> None:
        """Inverse of `state`."""
        self.agents.load_state(state, agent)

    def transitions(self, batch: Batch) -> Transitions:
        """Returns what an update reads of a batch, scaled and split among the agents."""
        split, scaler = self.agents.split, self.scaler
        states = split(scaler.states(batch["observations"]))
        return Transitions(
            states,
            split(scaler.to_unit(batch["actions"])),
            split(batch["rewards"].to(states)),
            split(scaler.states(batch["next_observations"])),
            split(batch["discounts"].to(states)),
            split(batch["mask"].to(states)),
        )


ALGORITHMS: dict[str, str] = {
    "arsq": "learners.arsq:ARSQ",
    "bc": "learners.bc:BC",
    "cal_ql": "learners.cal_ql:CalQL",
    "cql": "learners.cql:CQL",
    "cqn": "learners.cqn:CQN",
    "dt": "learners.dt:DT",
    "iql": "learners.iql:IQL",
    "rebrac": "learners.rebrac:ReBRAC",
    "rlpd": "learners.rlpd:RLPD",
    "td3_bc": "learners.td3_bc:TD3BC",
}
"""Algorithm name to `module:Class`; loaded when asked for."""


def learner_class(name: str) -> type[Learner]:
    """Returns the class of an algorithm.

    Raises:
        UnknownNameError: with the nearest names.
    """
    if name not in ALGORITHMS:
        raise UnknownNameError(
            f"Expected an algorithm, came {name!r}; {suggest(name, ALGORITHMS)}", where=name
        )
    module, _, attribute = ALGORITHMS[name].partition(":")
    found: type[Learner] = getattr(importlib.import_module(module), attribute)
    return found


def make_learner(
    name: str,
    settings: Mapping[str, Any],
    normaliser: Normaliser,
    seed: int | Sequence[int] = 0,
    device: str = "cpu",
    ranks: Ranks = ALONE,
) -> Learner:
    """Makes a learner by name, with freshly initialised networks.

    Args:
        name: a key of `ALGORITHMS`.
        settings: hyperparameters that differ from the defaults, values or strings.
        normaliser: gives the sizes of inputs and outputs, too.
        seed: of the initial weights and of noise; several make as many agents side by side.
        device: where the networks live.
        ranks: the processes that learn together.

    Raises:
        UnknownNameError: for an unknown algorithm or setting.
        SpecMismatchError: if the algorithm does not learn such actions.
    """
    kind = learner_class(name)
    seeds = (seed,) if isinstance(seed, int) else tuple(seed)
    read = read_settings(kind.settings_kind, settings, name)
    return kind.for_actions(normaliser)(read, normaliser, seeds, device, ranks)
