"""How observations and actions enter a network: shifted and scaled, frozen from the data.

The numbers are fitted once on one version, in float64, and travel in the checkpoint: a policy that
acts months later sees its inputs exactly as in training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from schemas.errors import SpecMismatchError
from schemas.packed import Rows, plain
from schemas.spec import DatasetSpec

EPSILON = 1e-3
"""Added to standard deviations, as TD3+BC does, so that constant dims stay finite."""
ROUNDING = 1e-4
"""Share of the environment's half range by which recorded actions may lie beyond it."""


class ReadableVersion(Protocol):
    """The part of a store's version that fitting reads."""

    def index(self) -> Any:
        """Aligned arrays `data`, `row_start`, `length`, `final_present`, and `data_ids`."""
        ...

    def read_rows(self, data_id: str, fields: Sequence[str] | None) -> Mapping[str, Rows]:
        """The rows of one data block, T+1 per episode."""
        ...


@dataclass(frozen=True)
class Picture:
    """A field of uint8 pictures, decoded."""

    name: str
    """Full name of the observation field."""
    shape: tuple[int, ...]
    """Of one row: (H, W), (H, W, C) or (C, H, W)."""

    @property
    def is_channels_first(self) -> bool:
        """Whether the first of three axes is channels: it is, if it is shorter than the last."""
        return len(self.shape) == 3 and self.shape[0] < self.shape[2]

    @property
    def channels(self) -> int:
        """C; 1 where there is no such axis."""
        return 1 if len(self.shape) == 2 else self.shape[0 if self.is_channels_first else 2]

    @property
    def height(self) -> int:
        """H."""
        return self.shape[1 if self.is_channels_first else 0]

    @property
    def width(self) -> int:
        """W."""
        return self.shape[2 if self.is_channels_first else 1]


@dataclass(frozen=True)
class Normaliser:
    """Frozen numbers between an episode's fields and a network's unit box."""

    fields: tuple[str, ...]
    """Full names of the observation fields, in the order in which they are joined."""
    mean: np.ndarray
    """(O,) float32."""
    scale: np.ndarray
    """(O,) float32, standard deviation plus `EPSILON`; 1 where states enter as they are."""
    action_scale: np.ndarray
    """(A,) float32: half the range of the environment's actions where that is known; else the
    largest absolute action of the data where that is above 1, else 1."""
    pictures: tuple[Picture, ...] = ()
    """Fields that enter through an encoder."""
    choices: int | None = None
    """How many discrete actions there are, 0 to n - 1; A is n then. None for actions that are
    arrays of numbers."""
    action_range: np.ndarray | None = None
    """(2, A) float32: smallest and largest action of the data; None where that was not kept."""
    spec: DatasetSpec | None = None
    """Of the data, which rollouts follow; None where that was not kept."""
    action_centre: np.ndarray | None = None
    """(A,) float32: middle of the environment's actions; None where it is 0 or not known."""

    @property
    def action_low(self) -> np.ndarray:
        """(A,) float32: where actions begin; where that was not kept, where the unit box does."""
        low: np.ndarray = self._extremes()[0]
        return low

    @property
    def action_high(self) -> np.ndarray:
        """(A,) float32: where they end."""
        high: np.ndarray = self._extremes()[1]
        return high

    def _extremes(self) -> np.ndarray:
        if self.action_range is not None:
            return self.action_range
        centre = 0.0 if self.action_centre is None else self.action_centre
        return np.stack([centre - self.action_scale, centre + self.action_scale])

    @property
    def reads(self) -> tuple[str, ...]:
        """Full names of all observation fields that are taken in."""
        return (*self.fields, *(one.name for one in self.pictures))

    @property
    def observation_dims(self) -> int:
        """O, the width of the joined observation."""
        return len(self.mean)

    @property
    def action_dims(self) -> int:
        """A; the number of discrete actions."""
        return len(self.action_scale)

    def document(self) -> dict[str, Any]:
        """Returns what is taken in and given out, as plain JSON, for people."""
        return {
            "fields": list(self.fields),
            "pictures": {one.name: list(one.shape) for one in self.pictures},
            "choices": self.choices,
        }

    @property
    def is_plain(self) -> bool:
        """True if states enter as they are."""
        return not self.mean.any() and bool((self.scale == 1).all())


def fit_normaliser(
    versions: Sequence[ReadableVersion],
    fields: Sequence[str],
    standardise: bool,
    pictures: Sequence[Picture] = (),
    choices: int | None = None,
    bounds: np.ndarray | None = None,
) -> Normaliser:
    """Fits the numbers on the real rows of all kept episodes of some versions, rows alike.

    Args:
        versions: what to read.
        fields: full names of the observation fields, sorted.
        standardise: False lets observations in as they are.
        pictures: fields that are for an encoder; nothing is fitted for them.
        choices: how many discrete actions there are at least; there are more if the data hold a
            larger one. None for actions that are arrays of numbers.
        bounds: (2, A) smallest and largest action of the environment; None where it is not known,
            or has none.

    Raises:
        SpecMismatchError: if the version holds no episode, or a discrete action below 0.
    """
    states, low, high = _Moments(), np.array(np.inf), np.array(-np.inf)
    for version in versions:
        for seen, acted in _real_rows(version, fields):
            states.add(seen)
            low = np.fmin(low, np.nanmin(acted, axis=0))
            high = np.fmax(high, np.nanmax(acted, axis=0))
    if not states.count:
        raise SpecMismatchError("Expected a version with at least one episode, came an empty one.")
    mean, scale = states.mean, np.sqrt(states.variance) + EPSILON
    if not standardise:
        mean, scale = np.zeros_like(mean), np.ones_like(scale)
    mean, scale = mean.astype(np.float32), scale.astype(np.float32)
    if choices is not None:
        if low.min() < 0:
            raise SpecMismatchError(
                f"Expected discrete actions from 0 on, came {int(low.min())}; shift those of the "
                f"data."
            )
        choices = max(choices, int(high.max()) + 1)
        ones = np.ones(choices, np.float32)
        return Normaliser(tuple(fields), mean, scale, ones, tuple(pictures), choices)
    action_scale, centre = _unit_box(low, high, bounds)
    return Normaliser(
        tuple(fields),
        mean,
        scale,
        action_scale,
        tuple(pictures),
        action_range=np.stack([low, high]).astype(np.float32),
        action_centre=centre,
    )


def _unit_box(
    low: np.ndarray, high: np.ndarray, bounds: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Half the range of actions and its middle, (A,) float32; the latter None where it is 0.

    Of the environment if all of the data lie within its bounds: noise and uniform actions are made
    on the unit box, and are to be of the size that the environment knows. Else of the data.
    """
    if bounds is not None and bounds.shape == (2, len(low)):
        half, centre = (bounds[1] - bounds[0]) / 2.0, (bounds[1] + bounds[0]) / 2.0
        beyond = np.fmax(np.abs(low - centre), np.abs(high - centre)) - half
        if (half > 0).all() and (beyond <= ROUNDING * half).all():
            return half.astype(np.float32), centre.astype(np.float32) if centre.any() else None
    peak = np.fmax(np.abs(low), np.abs(high))
    return np.where(peak > 1, peak, 1).astype(np.float32), None


def _real_rows(
    version: ReadableVersion, fields: Sequence[str]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the real observations (rows, O) and actions (steps, A) of each block."""
    index = version.index()
    for block, data_id in enumerate(index.data_ids):
        kept = np.flatnonzero(index.data == block)
        if not len(kept):
            continue
        rows = version.read_rows(data_id, [*fields, "actions"])
        starts, lengths = index.row_start[kept], index.length[kept]
        seen = _ranges(starts, lengths + index.final_present[kept])
        states = [np.zeros((len(seen), 0))]
        states += [_matrix(plain(rows[name]))[seen] for name in fields]
        actions = _matrix(plain(rows["actions"]))[_ranges(starts, lengths)]
        yield np.concatenate(states, axis=1), actions


class _Moments:
    """Mean and variance of rows by Chan's merge, in float64 (raw sums lose far offsets)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = np.zeros(0)
        self.squares = np.zeros(0)

    def add(self, rows: np.ndarray) -> None:
        rows = rows.astype(np.float64)
        mean = rows.mean(axis=0)
        squares = np.square(rows - mean).sum(axis=0)
        if not self.count:
            self.count, self.mean, self.squares = len(rows), mean, squares
            return
        count = self.count + len(rows)
        shift = mean - self.mean
        self.squares = self.squares + squares + shift**2 * (self.count * len(rows) / count)
        self.mean = self.mean + shift * (len(rows) / count)
        self.count = count

    @property
    def variance(self) -> np.ndarray:
        return self.squares / self.count


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Concatenates the ranges [start, start + length)."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))


def _matrix(array: np.ndarray) -> np.ndarray:
    return array.reshape(len(array), -1)
