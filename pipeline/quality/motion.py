"""How an episode moves: when it idles, and how smoothly it goes. Both are local to the episode.

**Idle.** A step is idle if the actor asks for nothing new and nothing much happens: every action
dim is small or held as it was, at least half of them small, and the state changes by less than
half of what it does at the episode's fast moments. Small means at most 2 % of the dim's own 95th
percentile of absolute values. Held dims count because a gripper stays closed through a pause;
"half" keeps a steady push, in which all dims are held, from counting.

**Smoothness** is SPARC, the arc length of the speed's normalised spectrum (Balasubramanian et al.,
"On the analysis of movement smoothness", 2015): a minimum-jerk reach reads -1.40 at any duration
and rate; jerkier motion reads lower. The speed is the norm of the continuous actions as recorded,
which is a speed where actions are velocities or displacements.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from schemas.episode import Episode

SMALL = 0.02
"""Share of a dim's own 95th percentile up to which its action is small."""
SLOW = 0.5
"""Share of the 95th percentile of state changes below which the state hardly moves."""
MOST_RATE = 10.0
"""Hz; spectra are cut here, above which lies noise."""
PAD_LEVEL = 4
AMPLITUDE = 0.05
"""The spectrum counts up to its last frequency of this amplitude."""
LEAST_STEPS = 8
"""Shorter episodes have no spectrum to speak of."""


@dataclass(frozen=True)
class Idle:
    """Idle steps of one episode."""

    steps: int
    """T."""
    idle: int
    longest: int
    """Of the runs of idle steps."""
    leading: int
    """Idle steps before the first that is not; all of them if there is none."""
    trailing: int

    @property
    def fraction(self) -> float:
        """Share of idle steps; NaN without steps."""
        return self.idle / self.steps if self.steps else float("nan")


def idle(episode: Episode) -> Idle | None:
    """Returns the idle steps of one episode; None where actions are unknown."""
    is_idle = idle_steps(episode)
    if is_idle is None:
        return None
    ends = np.flatnonzero(np.diff(np.concatenate([[0], is_idle, [0]]).astype(np.int8)))
    runs = ends[1::2] - ends[::2]
    steps = len(is_idle)
    return Idle(
        steps=steps,
        idle=int(is_idle.sum()),
        longest=int(runs.max(initial=0)),
        leading=int(runs[0]) if len(runs) and ends[0] == 0 else 0,
        trailing=int(runs[-1]) if len(runs) and ends[-1] == steps else 0,
    )


def idle_steps(episode: Episode) -> np.ndarray | None:
    """Returns (T,) bool, the idle steps of one episode; None where actions are unknown."""
    actions = _flat(episode)
    return None if actions is None else np.asarray(_quiet(actions) & _slow(episode))


def smoothness(episode: Episode) -> float:
    """Returns SPARC of an episode's action speed; NaN where there is none.

    There is none without continuous actions, below 8 steps, with values that are not finite, or
    for an episode that never moves. Episodes of unknown rate are read up to half of it.
    """
    speed = action_speed(episode)
    return float("nan") if speed is None else sparc(speed, episode.fps or 2 * MOST_RATE)


def action_speed(episode: Episode) -> np.ndarray | None:
    """Returns (T,) norms of the continuous actions; None where they make no spectrum."""
    actions = _flat(episode, continuous=True)
    if actions is None or len(actions) < LEAST_STEPS:
        return None
    speed = np.linalg.norm(actions, axis=1)
    return speed if np.isfinite(speed).all() and speed.any() else None


def sparc(speed: np.ndarray, rate: float) -> float:
    """Returns the spectral arc length of a speed profile.

    Args:
        speed: (T,) float64, not all zero.
        rate: samples per second.
    """
    size = int(2 ** (np.ceil(np.log2(len(speed))) + PAD_LEVEL))
    frequencies = np.arange(size) * rate / size
    spectrum = np.abs(np.fft.fft(speed, size))
    spectrum /= spectrum.max()
    kept = frequencies <= min(MOST_RATE, rate / 2)
    frequencies, spectrum = frequencies[kept], spectrum[kept]
    loud = np.flatnonzero(spectrum >= AMPLITUDE)
    within = slice(loud[0], loud[-1] + 1)
    frequencies, spectrum = frequencies[within], spectrum[within]
    if len(frequencies) < 2:
        return 0.0
    along = np.diff(frequencies) / (frequencies[-1] - frequencies[0])
    return float(-np.hypot(along, np.diff(spectrum)).sum())


def _flat(episode: Episode, *, continuous: bool = False) -> np.ndarray | None:
    """(T, A) float64, the actions side by side; None where there are none."""
    arrays = [
        array.reshape(len(array), -1).astype(np.float64)
        for _, array in sorted(episode.flat_actions.items())
        if array.dtype.kind == "f" or not continuous
    ]
    actions = np.concatenate(arrays, axis=1) if arrays and episode.length else None
    return actions if actions is not None and actions.shape[1] else None


def _quiet(actions: np.ndarray) -> np.ndarray:
    """(T,) bool, steps that ask for nothing new; NaN is never quiet."""
    size = np.abs(actions)
    least = SMALL * np.nan_to_num(np.nanquantile(np.where(np.isfinite(size), size, 0), 0.95, 0))
    small = size <= least
    with np.errstate(invalid="ignore"):
        held = np.abs(np.diff(actions, axis=0, prepend=np.nan)) <= least
    return np.asarray((small | held).all(1) & (2 * small.sum(1) >= actions.shape[1]))


def _slow(episode: Episode) -> np.ndarray:
    """(T,) bool, steps in which the state hardly changes; all where there is no state."""
    slow = np.ones(episode.length, bool)
    states = [
        rows.reshape(len(rows), -1).astype(np.float64)
        for rows in episode.observations.values()
        if isinstance(rows, np.ndarray) and rows.dtype.kind == "f" and rows.ndim <= 2
    ]
    if not states:
        return slow
    with np.errstate(invalid="ignore"):
        change = np.linalg.norm(np.diff(np.concatenate(states, axis=1), axis=0), axis=1)
    change = change[: episode.length]
    finite = change[np.isfinite(change)]
    if len(finite):
        fast = np.quantile(finite, 0.95)
        slow[: len(change)] = (change < SLOW * fast) | (change == 0)
    return slow
