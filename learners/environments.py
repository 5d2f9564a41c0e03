"""Gymnasium environments by name, made only from what is installed and registered."""

from __future__ import annotations

from typing import Any

from schemas.errors import ConfigError, UnknownNameError, missing_extra, suggest


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
            f"{suggest(name, gymnasium.registry)}.",
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


def action_box(environment: Any) -> Any:
    """Returns the environment's action space, which learners need to be one Box.

    Raises:
        ConfigError: for any other space.
    """
    if not isinstance(environment.action_space, _gymnasium().spaces.Box):
        raise ConfigError(
            f"Expected an environment with a Box of actions, came {environment.action_space}."
        )
    return environment.action_space


def _gymnasium() -> Any:
    try:
        import gymnasium  # noqa: PLC0415 - an optional extra
    except ImportError:
        raise missing_extra("sim", "gymnasium") from None
    return gymnasium
