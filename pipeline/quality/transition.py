"""How noisy the system itself is: the entropy of the next state given state and action.

y = s' - s in raw units is fitted on [state; action] like actions are on states. With S the pooled
covariance of what the fits leave over in the reference, a step's reading is the Gaussian surprisal
(d ln 2 pi + ln |S| + r^T S^-1 r) / 2 nats over all d state dims, whose mean over the reference is
the entropy (d ln(2 pi e) + ln |S|) / 2. Misfit of a curved system adds to it: an upper bound.
Differences of kNN entropies are not an alternative; their bias is nats per dim.

Directions that the fits predict to a variance of 1e-12 count as deterministic: clamped, flagged.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.quality.action import MAX_FAULTY_SHARE, episode_means
from pipeline.quality.columns import moving_columns
from pipeline.quality.leave_out import Rows, leave_out
from pipeline.quality.reference import Placed

VARIANCE_FLOOR = 1e-12
"""In squared units of the state."""


@dataclass(frozen=True)
class Noise:
    """A pooled residual covariance, ready for densities."""

    log_determinant: float
    whitening: np.ndarray  # (d, d) float64, rows turn residuals into unit noise
    deterministic: int
    """Directions that were clamped."""

    @property
    def dims(self) -> int:
        """Number of state dims, d."""
        return len(self.whitening)

    @property
    def entropy(self) -> float:
        """Nats of a Gaussian of this covariance."""
        return float(0.5 * (self.dims * np.log(2 * np.pi * np.e) + self.log_determinant))


def pooled_noise(covariance: np.ndarray) -> Noise:
    """Returns the density of a (d, d) covariance with its eigenvalues clamped."""
    values, vectors = np.linalg.eigh(covariance)
    clamped = np.maximum(values, VARIANCE_FLOOR)
    return Noise(
        log_determinant=float(np.log(clamped).sum()),
        whitening=vectors / np.sqrt(clamped),
        deterministic=int((values <= VARIANCE_FLOOR).sum()),
    )


@dataclass(frozen=True)
class TransitionSteps:
    """Per-step readings of a block's scorable rows."""

    rows: np.ndarray  # (n,) int64, positions in the block
    surprisal: np.ndarray  # (n,) float64, nats


def transition_steps(placed: Placed) -> TransitionSteps | None:
    """Returns per-step surprisals of a block; None where the task has no dynamics fit."""
    block, model = placed.block, placed.model
    rows = np.flatnonzero(block.moving)
    if model.dynamics is None or not len(rows):
        return None
    controls = model.controls.encode(block.actions[rows])
    found = leave_out(
        model.dynamics,
        Rows(
            x=np.concatenate([placed.predictors[rows], controls], axis=1),
            y=block.changes[rows][:, moving_columns(block.layout.states, model.states.kept)],
            labels=placed.labels[rows],
            episodes=block.episodes[rows],
            copies=placed.copies,
        ),
    )
    noise = pooled_noise(model.dynamics.noise)
    return TransitionSteps(rows, surprisal(found.residual, noise, found.leverage))


def surprisal(residual: np.ndarray, noise: Noise, leverage: np.ndarray | float) -> np.ndarray:
    """Returns (n,) nats of (n, d) residuals under a Gaussian of some noise."""
    distance = ((residual @ noise.whitening) ** 2).sum(1) / (1 + leverage)
    return np.asarray(0.5 * (noise.dims * np.log(2 * np.pi) + noise.log_determinant + distance))


def score_transitions(placed: Placed) -> dict[str, np.ndarray]:
    """Returns `transition_diversity` of a block's episodes, (E,) nats, NaN for none."""
    block = placed.block
    count = len(block.lengths)
    steps = transition_steps(placed)
    if steps is None:
        return {"transition_diversity": np.full(count, np.nan)}
    faulty = block.faulty_transitions > MAX_FAULTY_SHARE * block.lengths
    scores = episode_means(steps.surprisal, block.episodes[steps.rows], count)
    return {"transition_diversity": np.where(faulty, np.nan, scores)}
