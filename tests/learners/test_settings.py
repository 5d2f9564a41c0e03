from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from learners.base import learner_class, make_learner
from learners.grid import GridSettings
from learners.iql import IQLSettings
from learners.normaliser import Normaliser
from learners.settings import read_settings
from schemas.errors import ConfigError, UnknownNameError


def test_strings_become_values() -> None:
    settings = read_settings(IQLSettings, {"expectile": "0.9", "hidden": (64, 64)}, "iql")
    assert settings.expectile == 0.9
    assert settings.hidden == (64, 64)
    assert settings.temperature == 3.0


def test_an_unknown_key_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="'expectil'; did you mean 'expectile'"):
        read_settings(IQLSettings, {"expectil": 0.9}, "iql")


@pytest.mark.parametrize(
    ("key", "value"), [("expectile", 1.5), ("tau", "fast"), ("policy_decay", -1)]
)
def test_a_value_that_does_not_fit_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"Expected {key} of iql"):
        read_settings(IQLSettings, {key: value}, "iql")


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        IQLSettings().tau = 0.1  # type: ignore[misc]


def test_an_unknown_algorithm_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'iql'"):
        learner_class("iqll")


@pytest.mark.parametrize("name", ["bc", "iql"])
def test_algorithms_are_made_by_name(name: str) -> None:
    ones, zeros = np.ones(3, np.float32), np.zeros(3, np.float32)
    normaliser = Normaliser(("observations",), zeros, ones, ones[:2])
    learner = make_learner(name, {"hidden": (8,)}, normaliser)
    assert learner.name == name
    assert learner.act(np.zeros((5, 3), np.float32)).shape == (5, 2)
    assert learner.spread().shape == (2,)


@pytest.mark.parametrize("typed", ["64,32", "64, 32", "(64, 32)", "[64,32]"])
def test_several_values_are_read_as_people_type_them(typed: str) -> None:
    assert read_settings(IQLSettings, {"hidden": typed}).hidden == (64, 32)


def test_one_value_is_one_where_one_may_stand_for_all() -> None:
    assert read_settings(IQLSettings, {"hidden": "64"}).hidden == (64,)
    assert read_settings(GridSettings, {"action_low": "-2"}).action_low == -2.0
    assert read_settings(GridSettings, {"action_low": "-2, -1"}).action_low == (-2.0, -1.0)
    with pytest.raises(ConfigError, match="hidden"):
        read_settings(IQLSettings, {"hidden": "64,wide"})
