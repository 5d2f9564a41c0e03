"""One episode step by step: the readings whose means are its scores."""

from __future__ import annotations

import numpy as np

from pipeline.quality.action import action_steps
from pipeline.quality.blocks import blocks
from pipeline.quality.motion import idle_steps
from pipeline.quality.reference import ReferenceModel
from pipeline.quality.transition import transition_steps
from schemas.episode import Episode

STEP_METRICS = {
    "action_variance": "standardised action^2",
    "action_divergence": "standardised action^2",
    "transition_diversity": "nats",
    "idle": "1 where idle",
}
"""Names of the per-step arrays and their units; a mean over steps is the metric of that name."""


def step_readings(episode: Episode, model: ReferenceModel) -> dict[str, np.ndarray]:
    """Returns (T,) float64 arrays by the names of `STEP_METRICS`.

    NaN stands where a step cannot be scored (a row that is not finite, no next observation); an
    array that says nothing of any step is left out.

    Args:
        episode: of one of the layouts that the model knows.
        model: the reference, of the episode's spec.
    """
    found: dict[str, np.ndarray] = {}
    for block in blocks([episode], model.config.features):
        group = model.groups.get(block.layout)
        if group is None:
            continue
        placed = group.place(block)
        actions, transitions = action_steps(placed), transition_steps(placed)
        if actions is not None:
            found["action_variance"] = _spread(actions.rows, actions.variance, episode.length)
            found["action_divergence"] = _spread(actions.rows, actions.divergence, episode.length)
        if transitions is not None:
            found["transition_diversity"] = _spread(
                transitions.rows, transitions.surprisal, episode.length
            )
    is_idle = idle_steps(episode)
    if is_idle is not None:
        found["idle"] = is_idle.astype(np.float64)
    return {name: values for name, values in found.items() if np.isfinite(values).any()}


def _spread(rows: np.ndarray, values: np.ndarray, steps: int) -> np.ndarray:
    full = np.full(steps, np.nan)
    full[rows] = values
    return full
