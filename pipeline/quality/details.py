"""What a frozen reference says about itself, for the record beside a metric's value.

Where the score of an episode is a mean of readings without that episode, these are the textbook
in-sample figures of the whole reference: within-cluster variance, residual variance by degrees of
freedom, Gaussian entropy, and the entropy of discrete actions.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.quality.reference import GroupModel, ReferenceModel
from pipeline.quality.transition import pooled_noise


def reference_details(name: str, model: ReferenceModel) -> list[dict[str, Any]]:
    """Returns one JSON-able entry per layout of the reference, for one relative metric."""
    describe = {
        "action_variance": _variance,
        "action_divergence": _divergence,
        "action_divergence_h": _divergence,
        "transition_diversity": _transitions,
        "state_similarity": _surroundings,
        "coverage": _surroundings,
        "action_divergence_modes": _surroundings,
        "unique_share": _visited,
    }[name]
    return [
        {
            "task": layout.task,
            "clusters": len(group.centroids),
            "predictors": group.states.predictors,
            **describe(group),
        }
        for layout, group in model.groups.items()
    ]


def conditional_entropy(group: GroupModel) -> float | None:
    """Returns H(action | cluster) in nats, summed over discrete dims; None where there are none.

    -sum p ln p per cluster with the Miller-Madow correction (K - 1) / 2n, K classes seen, averaged
    over rows.
    """
    if group.policy is None or not group.targets.classes.any():
        return None
    moments = group.policy.moments
    rows = moments.count[:, None]
    first, nats = 0, 0.0
    for classes in group.targets.classes:
        if classes:
            p = np.clip(moments.mean_y[:, first : first + classes], 0.0, 1.0)
            plug_in = -(p * np.log(np.where(p > 0, p, 1.0))).sum(1)
            correction = (np.maximum((p > 0).sum(1), 1) - 1) / (2 * np.maximum(rows[:, 0], 1))
            nats += float((moments.count * (plug_in + correction)).sum() / moments.rows)
        first += max(int(classes), 1)
    return nats


def _variance(group: GroupModel) -> dict[str, Any]:
    found: dict[str, Any] = {"constant_actions": int(group.targets.constant.sum())}
    if group.policy is not None:
        moments = group.policy.moments
        found["value"] = float(moments.yy.sum() / moments.rows / group.targets.dims)
        found["rows"] = int(moments.rows)
    return found


def _surroundings(group: GroupModel) -> dict[str, Any]:
    known = group.surroundings
    if known is None:
        return {}
    return {
        "states": len(known.points),
        "dims": int(known.points.shape[1]),
        "radius": float(known.radius),
    }


def _visited(group: GroupModel) -> dict[str, Any]:
    if group.visited is None:
        return {}
    return {
        "distinct": group.visited.seen.estimate,
        "dims": len(group.visited.low),
        "reduced": group.visited.projection.shape[1] > 0,
        "bins_hit": [float(share) for share in group.visited.hit.mean(1)],
    }


def _divergence(group: GroupModel) -> dict[str, Any]:
    found: dict[str, Any] = {"constant_actions": int(group.targets.constant.sum())}
    if group.policy is None:
        return found
    variances = np.maximum(np.diagonal(group.policy.noise), 0.0)
    found["value"] = float(variances.sum() / group.targets.dims)
    found["rows"] = int(group.policy.moments.rows)
    found["shrinkage"] = group.policy.strength
    entropy = conditional_entropy(group)
    if entropy is None:
        found["rmse"] = [float(v) for v in np.sqrt(variances) * group.targets.std]
    else:
        found["conditional_entropy"] = entropy
    return found


def _transitions(group: GroupModel) -> dict[str, Any]:
    if group.dynamics is None:
        return {}
    noise = pooled_noise(group.dynamics.noise)
    return {
        "value": noise.entropy,
        "per_dim": noise.entropy / max(noise.dims, 1),
        "trace": float(np.trace(group.dynamics.noise)),
        "rows": int(group.dynamics.moments.rows),
        "shrinkage": group.dynamics.strength,
        "deterministic": noise.deterministic > 0,
        "deterministic_directions": noise.deterministic,
    }
