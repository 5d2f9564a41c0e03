"""How gathered arrays become batches."""

from __future__ import annotations

import numpy as np

from pipeline.stream.batches import split_batches


def test_the_only_nested_observation_is_nested_too():
    found = {
        "observations/state": np.arange(12.0).reshape(2, 3, 2),
        "actions": np.zeros((2, 3, 1)),
        "next_observations/state": np.ones((2, 3, 2)),
    }
    first, second = split_batches(found, list)
    assert list(first) == ["observations", "actions", "next_observations"]
    assert list(first["observations"]) == ["state"]
    np.testing.assert_array_equal(second["observations"]["state"], found["observations/state"][1])
