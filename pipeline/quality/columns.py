"""Arrays as columns that can be averaged and subtracted: angles, grippers and embeddings apart.

A mean of angles is no angle, so a named angle becomes two columns, its cosine and sine, and its
change is taken round the shorter way. A named gripper is rounded and read as classes. An
embedding is a state like others, but its changes are not scored. The columns of a layout tell
which is which by their names: `cos NAME`, `sin NAME`, `embedding NAME`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from schemas.errors import UnknownNameError, UsageError, suggest

COSINE, SINE, EMBEDDING = "cos ", "sin ", "embedding "


@dataclass(frozen=True)
class Split:
    """Fields side by side, and which of their columns are special."""

    fields: tuple[tuple[str, int], ...]
    """Name and dims of each."""
    angles: tuple[int, ...]
    """Columns."""
    grippers: tuple[int, ...] = ()

    @property
    def special(self) -> tuple[int, ...]:
        """Columns that stand apart from their fields'."""
        return (*self.angles, *self.grippers)

    @property
    def plain(self) -> np.ndarray:
        """Columns that stay as they are."""
        total = sum(dims for _, dims in self.fields)
        return np.setdiff1d(np.arange(total), self.special)

    @property
    def plain_fields(self) -> tuple[tuple[str, int], ...]:
        """Name and remaining dims of each field that has any."""
        kept, start = [], 0
        for name, dims in self.fields:
            left = dims - sum(start <= at < start + dims for at in self.special)
            kept.append((name, left))
            start += dims
        return tuple((name, left) for name, left in kept if left or not self.special)

    def label(self, column: int) -> str:
        """Returns `FIELD:DIM` of a column."""
        for name, dims in self.fields:
            if column < dims:
                return f"{name}:{column}"
            column -= dims
        raise IndexError(column)


def split(
    fields: Sequence[tuple[str, int]], angles: Sequence[str], grippers: Sequence[str] = ()
) -> Split:
    """Returns how the columns of some fields are read.

    Args:
        fields: name and dims of each.
        angles: as `FeatureSpec` has them; fields that are not here are passed over.
        grippers: the same.
    """
    turning = _columns(fields, angles)
    closing = [at for at in _columns(fields, grippers) if at not in turning]
    return Split(tuple(fields), tuple(turning), tuple(closing))


def check_names(named: Iterable[str], fields: Mapping[str, int], where: str) -> None:
    """Refuses names of angles or grippers that an episode has not.

    Raises:
        UnknownNameError: if there is no such field.
        UsageError: if the field has no such dim.
    """
    for text in named:
        name, dim = _parsed(text)
        if name not in fields:
            raise UnknownNameError(
                f"Expected angles and grippers among an episode's fields, came {name!r}; "
                f"{suggest(name, fields)}",
                where=where,
            )
        if dim is not None and not 0 <= dim < fields[name]:
            raise UsageError(
                f"Expected a dim of {name!r} below {fields[name]}, came {text!r}.", where=where
            )


def wrapped(angles: np.ndarray) -> np.ndarray:
    """Returns angles as the equal ones from -pi to pi; NaN stays."""
    with np.errstate(invalid="ignore"):
        return np.asarray(np.remainder(angles + np.pi, 2 * np.pi) - np.pi)


def turned(angles: np.ndarray) -> np.ndarray:
    """Returns (N, 2 n): cosine and sine of each of (N, n) angles, in turn."""
    with np.errstate(invalid="ignore"):
        both = np.stack([np.cos(angles), np.sin(angles)], axis=2)
    return both.reshape(len(angles), -1)


def circular_variance(cosine: np.ndarray, sine: np.ndarray) -> np.ndarray:
    """Returns -2 ln R of angles with these mean cosines and sines, in rad^2.

    R is the length of the mean direction; for a wrapped normal this is its variance.
    """
    length = np.clip(np.hypot(cosine, sine), np.finfo(float).tiny, 1.0)
    return np.asarray(-2.0 * np.log(length))


def moving_columns(states: Sequence[tuple[str, int]], kept: np.ndarray) -> np.ndarray:
    """Returns (D,) bool: which columns of change ever change, given which of the state do.

    Args:
        states: name and dims of each state field of a layout.
        kept: (S,) bool, state columns that are not constant.
    """
    found: list[np.ndarray] = []
    start = 0
    for name, dims in states:
        mine = kept[start : start + dims]
        if name.startswith(SINE):
            found[-1] = found[-1] | mine
        elif not name.startswith(EMBEDDING):
            found.append(mine)
        start += dims
    return np.concatenate(found) if found else np.zeros(0, bool)


def _columns(fields: Sequence[tuple[str, int]], named: Sequence[str]) -> list[int]:
    found: list[int] = []
    for text in named:
        wanted, dim = _parsed(text)
        start = 0
        for name, dims in fields:
            if name == wanted:
                found += range(start, start + dims) if dim is None else [start + dim]
            start += dims
    return sorted(set(found))


def _parsed(text: str) -> tuple[str, int | None]:
    name, colon, dim = text.rpartition(":")
    return (name, int(dim)) if colon and dim.isdigit() else (text, None)
