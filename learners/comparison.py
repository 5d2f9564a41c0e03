"""Versions of data compared by the policies they taught: differences, and an answer in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from learners.data import Pinned
from learners.judge import GroupScore, Judged, group_score, normalized
from learners.scores import Spread, spread

ANSWERS = {
    "better": "yes, at 95 %",
    "worse": "no, it hurt, at 95 %",
    "unclear": "cannot tell",
}
Verdict = Literal["better", "worse", "unclear"]


@dataclass(frozen=True)
class Size:
    """What a version holds."""

    ids: frozenset[str]
    """Of its episodes."""
    steps: int

    @property
    def episodes(self) -> int:
        """How many."""
        return len(self.ids)


@dataclass(frozen=True)
class Arm:
    """One version, and the runs that learned from it."""

    letter: str
    reference: str
    """As it was asked for."""
    version: Pinned
    size: Size
    judged: tuple[Judged, ...]
    """One per seed, in their order."""

    @property
    def score(self) -> GroupScore:
        """Of its runs."""
        return group_score(self.judged)


@dataclass(frozen=True)
class Difference:
    """How much better the policies of one version do than those of the first."""

    letter: str
    removed: int
    """Episodes that the first version has and this one has not."""
    added: int
    returns: Spread
    """Paired differences of returns."""
    normalized: Spread | None
    success: Spread | None
    """Of success, from -1 to 1; None where episodes do not say."""

    @property
    def score(self) -> Literal["success", "return"]:
        """By which it is judged: success, where it is known."""
        return "return" if self.success is None else "success"

    @property
    def found(self) -> Spread:
        """The difference it is judged by."""
        return self.returns if self.success is None else self.success

    @property
    def verdict(self) -> Verdict:
        """What its interval says."""
        low, high = self.found.interval
        if low > 0:
            return "better"
        return "worse" if high < 0 else "unclear"


@dataclass(frozen=True)
class Comparison:
    """Several versions against the first of them."""

    arms: tuple[Arm, ...]
    differences: tuple[Difference, ...]

    def sentences(self) -> list[str]:
        """Returns question and answer for each version but the first."""
        first = self.arms[0]
        return [
            f"{_question(first, arm, found)} {_figures(first, arm, found)}: "
            f"{ANSWERS[found.verdict]}."
            for arm, found in zip(self.arms[1:], self.differences, strict=True)
        ]

    def document(self) -> dict[str, Any]:
        """As plain JSON."""
        return {
            "versions": [_arm_facts(arm) for arm in self.arms],
            "differences": [
                {
                    **asdict(one),
                    "score": one.score,
                    "mean": one.found.mean,
                    "interval": one.found.interval,
                    "verdict": one.verdict,
                    "sentence": sentence,
                }
                for one, sentence in zip(self.differences, self.sentences(), strict=True)
            ],
        }


def compare(arms: Sequence[Arm]) -> Comparison:
    """Compares versions with the first.

    Args:
        arms: with runs of the same seeds, judged on the same starts.
    """
    first, *others = arms
    return Comparison(tuple(arms), tuple(_difference(first, arm) for arm in others))


def _difference(first: Arm, arm: Arm) -> Difference:
    ours, base = _returns(arm), _returns(first)
    evaluation = first.judged[0].evaluation
    wins, base_wins = _successes(arm), _successes(first)
    scores, base_scores = (normalized(one, evaluation.environment) for one in (ours, base))
    seed = evaluation.seed
    return Difference(
        letter=arm.letter,
        removed=len(first.size.ids - arm.size.ids),
        added=len(arm.size.ids - first.size.ids),
        returns=spread(ours - base, seed),
        normalized=_of(scores, base_scores, seed),
        success=_of(wins, base_wins, seed),
    )


def _of(ours: np.ndarray | None, base: np.ndarray | None, seed: int) -> Spread | None:
    return None if ours is None or base is None else spread(ours - base, seed)


def _returns(arm: Arm) -> np.ndarray:
    """(K, N) float64."""
    return np.array([one.evaluation.returns for one in arm.judged], np.float64)


def _successes(arm: Arm) -> np.ndarray | None:
    """(K, N) float64, or None if an episode does not say."""
    said = [one.evaluation.successes for one in arm.judged]
    return None if any(one is None for one in said) else np.array(said, np.float64)


def _question(first: Arm, arm: Arm, found: Difference) -> str:
    before, after = first.size.episodes, arm.size.episodes
    if found.removed and not found.added:
        return f"Did removing {found.removed:,} of {before:,} episodes help?"
    if found.added and not found.removed:
        return f"Did adding {found.added:,} episodes to {before:,} help?"
    if not found.added:
        return f"Do the same {before:,} episodes teach the same?"
    return (
        f"Did going from {before:,} to {after:,} episodes ({found.removed:,} removed, "
        f"{found.added:,} added) help?"
    )


def _figures(first: Arm, arm: Arm, found: Difference) -> str:
    scale, unit = (100.0, " points of success") if found.score == "success" else (1.0, " of return")
    low, high = found.found.interval
    mean, low, high = (scale * at for at in (found.found.mean, low, high))
    digits = 1 if high == low else max(0, 2 - math.floor(math.log10(high - low)))
    told, *ends = (_told(at, digits) for at in (mean, low, high))
    interval = ", ".join(ends)
    pair = f"{arm.letter} - {first.letter}"
    return f"{pair} = {told}{unit} [{interval}] over {len(arm.judged)} seeds"


def _told(value: float, digits: int) -> str:
    """As many digits as the interval is worth, and no minus before a zero."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def _arm_facts(arm: Arm) -> dict[str, Any]:
    score = arm.score
    return {
        "letter": arm.letter,
        "data": arm.reference,
        "version": arm.version.version,
        "episodes": arm.size.episodes,
        "steps": arm.size.steps,
        "runs": list(score.runs),
        "return": asdict(score.returns),
        "normalized": asdict(score.normalized) if score.normalized else None,
        "success": asdict(score.success) if score.success else None,
    }
