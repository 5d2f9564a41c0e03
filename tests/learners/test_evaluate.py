"""Judging policies: whatever the number of copies, the same returns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from learners.base import Learner, make_learner
from learners.evaluate import evaluate
from learners.normaliser import Normaliser
from learners.scores import wilson_interval
from schemas.errors import ConfigError
from tests.learners.homing import ENVIRONMENT


def _hopper(algo: str) -> Learner:
    """A fresh network for Hopper-v5, whose episodes differ in the last digit of an action."""
    numbers = Normaliser(
        ("observations",),
        mean=np.zeros(11, np.float32),
        scale=np.ones(11, np.float32),
        action_scale=np.ones(3, np.float32),
    )
    settings: dict[str, Any] = {"hidden": (256, 256)}
    if algo == "dt":
        settings = {"target_return": 100.0, "context": 4, "width": 32, "blocks": 1}
    return make_learner(algo, settings, numbers, seed=3)


@pytest.mark.parametrize("algo", ["bc", "td3_bc", "iql", "dt"])
def test_copies_change_no_return(algo: str) -> None:
    pytest.importorskip("mujoco")
    learner = _hopper(algo)
    episodes = 5 if algo == "dt" else 11
    alone = evaluate(learner, "Hopper-v5", episodes, copies=1)
    assert len(set(alone.returns)) == episodes
    for copies in (4,) if algo == "dt" else (2, 8, 11):
        assert evaluate(learner, "Hopper-v5", episodes, copies=copies) == alone


class Homeward:
    """Goes home, and keeps how many rows it was shown."""

    def __init__(self) -> None:
        self.shown: set[int] = set()

    def act(self, observations: Any) -> np.ndarray:
        self.shown.add(len(observations))
        return np.clip(-2.0 * np.asarray(observations), -1.0, 1.0)


@pytest.mark.usefixtures("homing")
def test_a_policy_is_always_shown_as_many_rows() -> None:
    actor, told = Homeward(), []
    for copies in (1, 3, 20):
        evaluate(actor, ENVIRONMENT, 20, copies=copies, report=told.append)
    assert actor.shown == {8}
    assert told == 3 * list(range(1, 21))


@pytest.mark.usefixtures("homing")
def test_success_rates_have_an_interval() -> None:
    found = evaluate(Homeward(), ENVIRONMENT, 12)
    assert (found.success, found.successes) == (1.0, (True,) * 12)
    assert found.success_interval == wilson_interval(12, 12)


@pytest.mark.usefixtures("homing")
def test_no_copies_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least one copy"):
        evaluate(Homeward(), ENVIRONMENT, 1, copies=0)
