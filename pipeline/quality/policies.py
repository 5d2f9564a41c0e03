"""How far two demonstrators' policies are apart, as a Kullback-Leibler divergence in nats.

Each policy is a Gaussian around a linear fit of action on state. KL(p, q), averaged over the states
of p, is then 0.5 (E d^T S_q^-1 d + tr(S_q^-1 S_p) - k + ln |S_q| / |S_p|), with d the difference
of their means, S their noise and k the action dims. Merged moments say it exactly; the policies'
curvature and modes they do not see.
"""

from __future__ import annotations

import numpy as np

from pipeline.quality.fits import own_slopes
from pipeline.quality.moments import CrossMoments

NOISE_FLOOR = 1e-8
"""Share of the actions' variance below which what is left of them is rounding, not noise."""


def policy_divergence(p: CrossMoments, q: CrossMoments) -> float:
    """Returns KL(p, q) per step, over p's states.

    Args:
        p: moments of states (x) and actions (y) of one demonstrator, in one cluster.
        q: the same of another, on the same scale.

    Returns:
        NaN where either has fewer than twice as many rows as coefficients, or no noise at all.
    """
    dims, actions = p.xy.shape[1:]
    if min(p.rows, q.rows) < 2 * (dims + actions + 1):
        return float("nan")
    (slopes_p, noise_p), (slopes_q, noise_q) = _policy(p), _policy(q)
    if min(np.linalg.eigvalsh(noise).min() for noise in (noise_p, noise_q)) <= 0:
        return float("nan")
    # d(s) = gap + (s - mean of p) turn, whose second moment over p's states is exact.
    turn = slopes_p - slopes_q
    gap = p.mean_y[0] - q.mean_y[0] - (p.mean_x[0] - q.mean_x[0]) @ slopes_q
    spread = np.outer(gap, gap) + turn.T @ (p.xx[0] / p.rows) @ turn
    inside = np.linalg.solve(noise_q, spread + noise_p)
    volumes = np.linalg.slogdet(noise_q)[1] - np.linalg.slogdet(noise_p)[1]
    return float(0.5 * (np.trace(inside) - actions + volumes))


def _policy(moments: CrossMoments) -> tuple[np.ndarray, np.ndarray]:
    """Slopes (p, q) and residual covariance (q, q); zero where the actions are deterministic."""
    slopes = own_slopes(moments)[0][0]
    crossed = slopes.T @ moments.xy[0]
    left = moments.within - crossed - crossed.T + slopes.T @ moments.xx[0] @ slopes
    noise = (left + left.T) / (2 * (moments.rows - 1 - len(slopes)))
    floor = NOISE_FLOOR * float(moments.yy[0].mean()) / moments.rows
    if np.linalg.eigvalsh(noise).min() <= floor:
        return slopes, np.zeros_like(noise)
    return slopes, noise
