"""What a learner is, and how one is made by name.

A learner turns batches into updates and observations into actions; its whole state is a flat
mapping of tensors, so that checkpoints need no knowledge of any algorithm.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from torch import Tensor

from learners.normaliser import Normaliser
from learners.settings import LearnerSettings, read_settings
from schemas.errors import UnknownNameError, suggest

Batch = Mapping[str, Any]
"""What a stream yields: `observations, actions, rewards, next_observations, discounts, mask` and
more; B rows each."""


class Learner(Protocol):
    """One algorithm with its networks, optimisers and random state."""

    name: ClassVar[str]
    settings_kind: ClassVar[type[LearnerSettings]]

    @property
    def settings(self) -> LearnerSettings:
        """The hyperparameters it was made with."""
        ...

    @property
    def normaliser(self) -> Normaliser:
        """How its inputs are scaled."""
        ...

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Takes one gradient step; returns scalars by name, left on the device until read."""
        ...

    def act(self, observations: Any) -> Tensor:
        """Returns the deterministic actions (B, A), in the environment's units, on the CPU."""
        ...

    def spread(self) -> Tensor:
        """Returns the policy's standard deviation (A,) around `act`; 0 if it has none."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Returns everything a later update depends on, as flat named tensors."""
        ...

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of `state`."""
        ...


ALGORITHMS: dict[str, str] = {
    "bc": "learners.bc:BC",
    "iql": "learners.iql:IQL",
}
"""Algorithm name to `module:Class`; loaded when asked for."""


def learner_class(name: str) -> type[Learner]:
    """Returns the class of an algorithm.

    Raises:
        UnknownNameError: with the nearest names.
    """
    if name not in ALGORITHMS:
        raise UnknownNameError(
            f"Expected an algorithm, came {name!r}; {suggest(name, ALGORITHMS)}.", where=name
        )
    module, _, attribute = ALGORITHMS[name].partition(":")
    found: type[Learner] = getattr(importlib.import_module(module), attribute)
    return found


def make_learner(
    name: str,
    settings: Mapping[str, Any],
    normaliser: Normaliser,
    seed: int = 0,
    device: str = "cpu",
) -> Learner:
    """Makes a learner by name, with freshly initialised networks.

    Args:
        name: a key of `ALGORITHMS`.
        settings: hyperparameters that differ from the defaults, values or strings.
        normaliser: gives the sizes of inputs and outputs, too.
        seed: of the initial weights and of dropout.
        device: where the networks live.
    """
    kind: Any = learner_class(name)
    made: Learner = kind(
        read_settings(kind.settings_kind, settings, name), normaliser, seed, device
    )
    return made
