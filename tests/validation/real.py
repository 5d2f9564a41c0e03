"""The same questions of labelled simulator data, and of a real set with known copies."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from connectors import registry
from pipeline.quality.duplicates import originals
from pipeline.quality.score import SIGNATURES, fit_reference, score_episodes
from schemas.episode import Episode
from schemas.metrics import MeasureConfig
from tests.validation.experiments import Row
from tests.validation.scores import auc, badness, rank_correlation


def read(name: str, where: Path) -> list[Episode]:
    """All healthy episodes of a dataset, in its order."""
    source = registry.source(name)
    found = [f.episode for u in source.discover(str(where)).units for f in source.read(u)]
    return [
        episode.replace(episode_id=str(at))
        for at, episode in enumerate(found)
        if episode is not None
    ]


def labelled(data: Path) -> list[Row]:
    """Meta-World demonstrations of three tasks with known noise, slowness and pauses."""
    episodes = read("robomimic", data / "metaworld" / "robomimic_labelled.hdf5")
    scores = badness(episodes, 0)
    task = np.array([e.task for e in episodes])
    kind = np.array([e.columns.get("source_kind") or e.columns.get("kind") for e in episodes])
    sigma = np.array([e.columns["sigma"] for e in episodes], float)
    clean = (kind == "policy") & (sigma == 0)
    paused = np.array(
        [(np.abs(e.flat_actions["actions"][:, :3]).max(1) == 0).any() for e in episodes]
    )
    rows = []
    for name, values in scores.items():
        for what, chosen, truth in (
            ("AUC, policy against system noise, sigma >= 0.3", sigma >= 0.3, kind == "policy"),
            ("AUC, slow against clean", clean | (kind == "slow"), kind == "slow"),
            ("AUC, paused against clean", clean | ((kind == "pause") & paused), kind == "pause"),
        ):
            per_task = [
                auc(values[chosen & (task == t)], truth[chosen & (task == t)])
                for t in sorted(set(task))
            ]
            rows.append(Row("Meta-World", what, name, *_spread(per_task)))
        policy = kind == "policy"
        per_task = [
            rank_correlation(values[policy & (task == t)], sigma[policy & (task == t)])
            for t in sorted(set(task))
        ]
        rows.append(Row("Meta-World", "Spearman with sigma", name, *_spread(per_task)))
    return rows


def copies(data: Path) -> Row:
    """The Bridge sample, whose validation episodes are those of its training split."""
    episodes = read("rlds", data / "public" / "bridge_v2_sample" / "1.0.0")
    config = MeasureConfig(metrics=("duplicate_of",))
    table = score_episodes(episodes, fit_reference(lambda: episodes, config))
    found = originals(table[SIGNATURES].to_pylist())
    flagged = sum(at is not None for at in found)
    what = f"copies flagged among {len(episodes)} episodes"
    return Row("Bridge", what, "duplicate_of", flagged, flagged, flagged)


def _spread(values: list[float]) -> tuple[float, float, float]:
    """Mean, smallest and largest over tasks."""
    return float(np.mean(values)), float(np.min(values)), float(np.max(values))
