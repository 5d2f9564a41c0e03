"""Whether an episode's own rows are sound: the one metric that may exclude.

Everything is local to the episode, so it needs no reference. Faults (NaN, Inf, a clock that goes
back or jumps, an end flag before the end) lower the score; what may be as it should (one step,
saturated actions, constant channels) is only reported.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from schemas.episode import Episode

GAP_FACTOR = 1.5
"""A step longer than this times the median step is a gap."""
SATURATION = 0.999
"""Share of the limit from which an action counts as saturated."""
CLOCK = "timestamp"
"""Name of the extra that holds each row's time in seconds."""


@dataclass(frozen=True)
class Integrity:
    """Counts of what was found in one episode."""

    rows: int
    """Rows checked: steps, and the final observation where there is one."""
    faulty_rows: int
    """Rows with at least one fault of any kind."""
    nan_rows: int
    inf_rows: int
    backward_rows: int
    """Rows whose clock is not later than the row before."""
    gap_rows: int
    """Rows that follow a gap in the clock."""
    early_ends: int
    """Steps before the last that are marked terminated or truncated."""
    constant_channels: int
    """Columns of observations and actions that never change."""
    saturated_share: float | None
    """Share of action values at 99.9 % of the limit or beyond; None without a limit."""

    @property
    def score(self) -> float:
        """Share of rows without a fault; 1 is whole."""
        return 1.0 - self.faulty_rows / self.rows if self.rows else 1.0


def check(episode: Episode, action_limit: float | None = None) -> Integrity:
    """Returns the counts of one episode.

    Args:
        episode: any; its lengths and dtypes were checked when it was made.
        action_limit: largest absolute action value allowed, in the actions' own unit.
    """
    rows = max(episode.length, max((len(a) for a in episode.observations.values()), default=0))
    nan, inf = np.zeros(rows, bool), np.zeros(rows, bool)
    for name, array in episode.arrays.items():
        # Extras may hold NaN by right: simulator states padded to a common width, say. Encoded
        # rows are pictures and texts, which have none.
        if not isinstance(array, np.ndarray) or name.startswith("extras/"):
            continue
        if array.dtype.kind == "f" and array.size:
            flat: np.ndarray = array.reshape(len(array), -1)
            nan[: len(flat)] |= np.isnan(flat).any(axis=1)[:rows]
            inf[: len(flat)] |= np.isinf(flat).any(axis=1)[:rows]
    backward, gaps = _clock_faults(episode, rows)
    early = np.zeros(rows, bool)
    flags = np.asarray(episode.terminated) | np.asarray(episode.truncated)
    early[: max(episode.length - 1, 0)] = flags[:-1]
    return Integrity(
        rows=rows,
        faulty_rows=int((nan | inf | backward | gaps | early).sum()),
        nan_rows=int(nan.sum()),
        inf_rows=int(inf.sum()),
        backward_rows=int(backward.sum()),
        gap_rows=int(gaps.sum()),
        early_ends=int(early.sum()),
        constant_channels=_constant_channels(episode),
        saturated_share=_saturated_share(episode, action_limit),
    )


def _clock_faults(episode: Episode, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows,) bool each: rows whose time goes back or stands still, and rows after a gap."""
    backward, gaps = np.zeros(rows, bool), np.zeros(rows, bool)
    clock = episode.extras.get(CLOCK)
    if not isinstance(clock, np.ndarray) or clock.ndim != 1 or len(clock) < 2:
        return backward, gaps
    steps = np.diff(clock.astype(np.float64))
    forward = steps[steps > 0]
    end = min(len(clock), rows)
    backward[1:end] = (steps <= 0)[: end - 1]
    if len(forward):
        gaps[1:end] = (steps > GAP_FACTOR * np.median(forward))[: end - 1]
    return backward, gaps


def _constant_channels(episode: Episode) -> int:
    arrays = [*episode.observations.values(), *episode.flat_actions.values()]
    plain = [a for a in arrays if isinstance(a, np.ndarray) and len(a) > 1]
    flat = [array.reshape(len(array), -1) for array in plain]
    return sum(int((array == array[0]).all(0).sum()) for array in flat)


def _saturated_share(episode: Episode, limit: float | None) -> float | None:
    values = [np.abs(a).reshape(-1) for a in episode.flat_actions.values() if a.dtype.kind == "f"]
    if limit is None or not values:
        return None
    return float((np.concatenate(values) >= SATURATION * limit).mean())
