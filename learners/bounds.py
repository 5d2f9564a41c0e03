"""Between which bounds an environment's actions lie, by its name."""

from __future__ import annotations

from contextlib import closing

import numpy as np

from learners.environments import make_environment

LARGEST = 1e6
"""Bounds that are larger mean none."""


def action_bounds(name: str) -> np.ndarray | None:
    """Returns the smallest and largest action of an environment, (2, A) float64.

    Returns:
        None where actions are no array of numbers, or one of them has no bounds.

    Raises:
        UnknownNameError: if the name is not registered, with the nearest names.
        ConfigError: if the environment is known but cannot be made here.
    """
    with closing(make_environment(name)) as environment:
        space = environment.action_space
        if not (hasattr(space, "low") and hasattr(space, "high")):
            return None
        bounds = np.stack([space.low.reshape(-1), space.high.reshape(-1)]).astype(np.float64)
    return bounds if (np.abs(bounds) <= LARGEST).all() else None
