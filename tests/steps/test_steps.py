"""Validation and naming: what is refused, and what everything is called."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.steps.name import episode_ids, qualified
from pipeline.steps.validate import fault_of
from schemas.episode import Episode
from schemas.packed import Packed
from tests.episodes import episode


def test_a_healthy_episode_has_no_fault():
    assert fault_of(episode("a")) is None


@pytest.mark.parametrize("field", ["observations", "actions", "rewards"])
@pytest.mark.parametrize(("value", "code"), [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "inf")])
def test_values_that_are_not_finite_are_named_with_their_step(field, value, code):
    arrays = {
        "observations": np.zeros((4, 2)),
        "actions": np.zeros((3, 1)),
        "rewards": np.zeros(3),
    }
    arrays[field][2] = value
    broken = Episode("a", arrays["observations"], arrays["actions"], arrays["rewards"])
    fault = fault_of(broken)
    assert fault is not None
    assert fault.code == code
    assert field in fault.message
    assert "step 2" in fault.message


def test_encoded_rows_are_looked_into_where_they_are_numbers():
    for value, code in ((0.0, None), (np.nan, "nan"), (np.inf, "inf")):
        ragged = Packed.ragged([np.zeros((0, 2)), np.zeros((2, 2)), np.full((1, 2), value)])
        fault = fault_of(Episode("a", {"points": ragged, "says": Packed.texts(["", "a", "b"])}))
        assert (fault and fault.code) == code
        assert fault is None or "observations/points" in fault.message
        assert fault is None or "step 2" in fault.message


def test_extras_may_hold_nan():
    kept = episode("a").replace(extras={"qpos": np.full((20, 3), np.nan)})
    assert fault_of(kept) is None


def test_an_episode_without_steps_is_refused():
    fault = fault_of(Episode("a", np.zeros((1, 2)), np.zeros((0, 1)), np.zeros(0)))
    assert fault is not None
    assert fault.code == "length_mismatch"


def test_equal_content_is_counted_and_native_ids_are_kept():
    named = episode_ids([(None, "aa"), ("ns/1", "aa"), (None, "bb"), (None, "aa")])
    assert named == ["c-aa-0", "ns/1", "c-bb-0", "c-aa-1"]


def test_native_ids_need_a_namespace():
    assert qualified("ns", "episode_0") == "ns/episode_0"
    assert qualified(None, "episode_0") is None
    assert qualified("ns", None) is None
