"""Smoothness as the logarithm of dimensionless jerk (LDLJ), of a low-passed speed.

-ln(T^3 / v_peak^2 * integral of |v''|^2 dt) (Hogan and Sternad 2009): -5.32, minus the logarithm of
204.8, for a minimum-jerk reach. Two derivatives amplify noise without bound: 1 % of it reads -8 to
-23 instead, so the speed is smoothed first, by a Gaussian that leaves half of the amplitude at a
cut-off of 10 periods per episode. That leaves a minimum-jerk reach at -5.1.
"""

from __future__ import annotations

import numpy as np

from pipeline.quality.motion import action_speed
from schemas.episode import Episode

PERIODS = 10.0
"""Per episode; faster components of the speed are smoothed away."""


def log_dimensionless_jerk(episode: Episode) -> float:
    """Returns the LDLJ of an episode's action speed; NaN where `smoothness` has none either."""
    speed = action_speed(episode)
    return float("nan") if speed is None else ldlj(speed)


def ldlj(speed: np.ndarray, periods: float | None = PERIODS) -> float:
    """Returns the LDLJ of (T,) evenly sampled speeds; the rate cancels.

    Args:
        speed: (T,) float64, not all zero, T at least 8.
        periods: cut-off of the low-pass; None smooths nothing.
    """
    if periods is not None:
        speed = _smoothed(speed, periods)
    steps = len(speed) - 1
    bends = np.diff(speed, 2) * steps**2  # the second derivative in units of the duration
    peak = float(np.abs(speed).max())
    roughness = float((bends**2).sum() / steps) / max(peak, np.finfo(float).tiny) ** 2
    return -float(np.log(max(roughness, np.finfo(float).tiny)))


def _smoothed(speed: np.ndarray, periods: float) -> np.ndarray:
    """The speed convolved with a Gaussian; what lies beyond either end is mirrored at it."""
    steps = len(speed) - 1
    width = np.sqrt(2 * np.log(2)) * steps / (2 * np.pi * periods)
    reach = min(int(np.ceil(4 * width)), steps)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(width, 1e-9)) ** 2)
    padded = np.pad(speed, reach, mode="reflect", reflect_type="odd")
    return np.convolve(padded, kernel / kernel.sum(), mode="valid")
