"""The experiments: rows of (question, score, mean, low, high) over seeds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from schemas.episode import Episode
from tests.validation.cloning import clone
from tests.validation.point_mass import Setting, demonstrate, success_rate
from tests.validation.scores import auc, badness, interval, rank_correlation, without_length

LEVELS = (0.0, 0.005, 0.01, 0.02, 0.04)
ROLLOUTS = 400


@dataclass(frozen=True)
class Row:
    """One figure with its 95 % interval over seeds."""

    experiment: str
    what: str
    score: str
    mean: float
    low: float
    high: float


def _rows(experiment: str, found: dict[tuple[str, str], list[float]]) -> list[Row]:
    return [
        Row(experiment, what, score, *interval(values)) for (what, score), values in found.items()
    ]


def ranking(seeds: Sequence[int], per_level: int = 40) -> list[Row]:
    """A: five levels of demonstrator noise; does a score rank episodes by it?"""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for seed in seeds:
        episodes = [
            episode
            for level in LEVELS
            for episode in demonstrate(Setting(policy=level), per_level, seed, f"p{level}")
        ]
        noise = np.repeat(LEVELS, per_level)
        lengths = np.array([episode.length for episode in episodes])
        for name, scores in badness(episodes, seed).items():
            found["Spearman with the true noise", name].append(rank_correlation(scores, noise))
            found["AUC, noise >= 0.02", name].append(auc(scores, noise >= 0.02))
            controlled = without_length(scores, lengths)
            found["AUC, length-controlled", name].append(auc(controlled, noise >= 0.02))
    return _rows("A", found)


def specificity(seeds: Sequence[int]) -> list[Row]:
    """B: clean, system-noise and policy-noise episodes; which of the noises does a score mean?"""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for seed in seeds:
        clean = demonstrate(Setting(), 80, seed, "clean")
        system = demonstrate(Setting(system=0.02), 60, seed, "system")
        policy = demonstrate(Setting(policy=0.02), 60, seed, "policy")
        kinds = np.repeat([0, 1, 2], [80, 60, 60])
        for name, scores in badness([*clean, *system, *policy], seed).items():
            noisy, calm = kinds > 0, kinds < 2
            found["AUC, policy against system noise", name].append(
                auc(scores[noisy], kinds[noisy] == 2)
            )
            found["AUC, system noise against clean", name].append(
                auc(scores[calm], kinds[calm] == 1)
            )
    return _rows("B", found)


def cloning(seeds: Sequence[int]) -> list[Row]:
    """C: success of a cloned policy by the noise in its demonstrations."""
    settings = {
        "clean": Setting(),
        **{f"system {level}": Setting(system=level) for level in LEVELS[2:]},
        **{f"policy {level}": Setting(policy=level) for level in LEVELS[2:]},
    }
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for seed in seeds:
        for name, setting in settings.items():
            demonstrations = demonstrate(setting, 100, seed, name)
            for count in (20, 100):
                policy = clone(demonstrations[:count], seed)
                rate = success_rate(policy, 0.0, ROLLOUTS, seed)
                found[f"success, {count} episodes", name].append(rate)
        for count in (20, 100):
            what = f"success, {count} episodes"
            gap = found[what, "system 0.04"][-1] - found[what, "policy 0.04"][-1]
            found[what, "gap, system 0.04 less policy 0.04"].append(gap)
    return _rows("C", found)


def filtering(seeds: Sequence[int]) -> list[Row]:
    """D: success after keeping the best 40 % by each score, against all, random and the oracle."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for seed in seeds:
        groups = (
            demonstrate(Setting(), 60, seed, "clean"),
            demonstrate(Setting(policy=0.04), 60, seed, "noisy"),
            demonstrate(Setting(random_side=True), 30, seed, "sides"),
        )
        episodes = [episode for group in groups for episode in group]
        is_clean = np.repeat([True, False, False], [60, 60, 30])
        kept = int(0.4 * len(episodes))
        scored = badness(episodes, seed)
        choices: dict[str, Iterable[int]] = {  # equal scores in random order
            name: np.lexsort((scored["random"], np.nan_to_num(scores, nan=np.inf)))[:kept]
            for name, scores in scored.items()
        }
        choices["all"] = range(len(episodes))
        choices["oracle"] = np.flatnonzero(is_clean)
        for name, chosen in choices.items():
            some: list[Episode] = [episodes[at] for at in chosen]
            rate = success_rate(clone(some, seed), 0.0, ROLLOUTS, seed)
            found["success", name].append(rate)
            found["share of kept that is clean", name].append(float(is_clean[list(chosen)].mean()))
    return _rows("D", found)
