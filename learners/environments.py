"""Gymnasium environments by name, made only from what is installed and registered."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from schemas.errors import ConfigError, SpecMismatchError, UnknownNameError, missing_extra, suggest


def make_environment(name: str) -> Any:
    """Makes one environment.

    A name with a colon would import a module of the name's choosing, and names travel with data:
    such names are refused.

    Raises:
        UnknownNameError: if the name is not registered, with the nearest names.
        ConfigError: if the environment is known but cannot be made here.
    """
    gymnasium = _gymnasium()
    if ":" in name or name not in gymnasium.registry:
        raise UnknownNameError(
            f"Expected a registered Gymnasium environment, came {name!r}; "
            f"{suggest(name, gymnasium.registry)}",
            where=name,
        )
    try:
        return gymnasium.make(name)
    except gymnasium.error.DependencyNotInstalled as error:
        raise missing_extra("sim", "mujoco") from error
    except gymnasium.error.Error as error:
        raise ConfigError(
            f"Expected to make the environment {name!r}, came: {error}", where=name
        ) from error


@dataclass(frozen=True)
class ArrayActions:
    """A Box of actions."""

    box: Any

    @property
    def dims(self) -> int:
        """Numbers of an action, and of the noise on it."""
        return math.prod(self.box.shape)

    def taken(self, acted: np.ndarray) -> np.ndarray:
        """Returns what is done where an actor says numbers (A,): float32, cut to the box."""
        action = acted.reshape(self.box.shape).astype(np.float32)
        return np.clip(action, self.box.low, self.box.high)


@dataclass(frozen=True)
class DiscreteActions:
    """A Discrete space of actions."""

    space: Any

    @property
    def dims(self) -> int:
        """How many there are: exploration has a number for each."""
        return int(self.space.n)

    def taken(self, acted: np.ndarray) -> np.ndarray:
        """Returns what is done where an actor says a number: an integer of the space's dtype.

        Raises:
            SpecMismatchError: if there is no such action.
        """
        action = np.asarray(acted).reshape(()).astype(self.space.dtype)
        if not self.space.contains(action[()]):
            raise SpecMismatchError(
                f"Expected an action of {self.space}, came {action}; the policy is of data with "
                f"other actions."
            )
        return action


def actions_of(environment: Any) -> ArrayActions | DiscreteActions:
    """Returns how an environment is acted in.

    Raises:
        ConfigError: for a space of actions that is neither a Box nor Discrete.
    """
    if isinstance(environment.action_space, _gymnasium().spaces.Discrete):
        return DiscreteActions(environment.action_space)
    return ArrayActions(action_box(environment))


def count_choices(name: str) -> int:
    """Returns how many discrete actions an environment has, counted from 0; 0 where it has none.

    Raises:
        UnknownNameError: if the name is not registered, with the nearest names.
    """
    environment = make_environment(name)
    space = environment.action_space
    environment.close()
    is_discrete = isinstance(space, _gymnasium().spaces.Discrete)
    return int(space.start + space.n) if is_discrete else 0


def action_box(environment: Any) -> Any:
    """Returns the environment's action space, which is one Box.

    Raises:
        ConfigError: for any other space.
    """
    if not isinstance(environment.action_space, _gymnasium().spaces.Box):
        raise ConfigError(
            f"Expected an environment with a Box of actions, or a Discrete one, came "
            f"{environment.action_space}."
        )
    return environment.action_space


def _gymnasium() -> Any:
    try:
        import gymnasium  # noqa: PLC0415 - an optional extra
    except ImportError:
        raise missing_extra("sim", "gymnasium") from None
    return gymnasium
