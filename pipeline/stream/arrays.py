"""What differs between NumPy and torch where batches are changed; the rest is the same code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Arrays:
    """A framework's names for a few things."""

    put: Callable[[np.ndarray, Any], Any]
    """Returns an array beside another one, on its device."""
    cast: Callable[[Any, str], Any]
    """Returns an array of a floating-point NumPy dtype by its name."""
    move: Callable[[Any, Sequence[int], Sequence[int]], Any]
    """As `numpy.moveaxis`."""
    host: Callable[[Any], np.ndarray | None]
    """Returns a view of an array as NumPy's; None where it is on another device."""


NUMPY = Arrays(
    put=lambda array, _: array,
    host=lambda array: array,
    cast=lambda array, dtype: array.astype(dtype, copy=False),
    move=np.moveaxis,
)
