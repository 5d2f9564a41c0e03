from __future__ import annotations

import numpy as np
import pytest

from pipeline.quality.integrity import check
from schemas.episode import Episode
from tests.quality.systems import episode


def healthy(steps: int = 20) -> Episode:
    rng = np.random.default_rng(0)
    return episode(
        "e",
        rng.normal(size=(steps + 1, 3)),
        rng.uniform(-1, 1, size=(steps, 2)),
        rewards=rng.normal(size=steps),
    )


def test_a_healthy_episode_is_whole() -> None:
    found = check(healthy())
    assert found.score == 1.0
    assert found.rows == 21
    assert found.faulty_rows == found.nan_rows == found.gap_rows == found.constant_channels == 0
    assert found.saturated_share is None


@pytest.mark.parametrize("k", [1, 3, 7])
def test_k_nan_rows_are_counted_exactly(k: int) -> None:
    states = healthy().observations["observations"].copy()
    rows = np.random.default_rng(k).choice(21, k, replace=False)
    states[rows, 0] = np.nan
    states[rows[0]] = np.nan  # several NaN in one row are one row
    found = check(healthy().replace(observations={"observations": states}))
    assert found.nan_rows == found.faulty_rows == k
    assert found.score == pytest.approx(1 - k / 21)


def test_inf_in_rewards_counts_beside_nan_in_actions() -> None:
    whole = healthy()
    rewards, actions = np.array(whole.rewards), np.array(whole.actions)
    rewards[4] = -np.inf
    actions[[4, 9]] = np.nan
    found = check(whole.replace(rewards=rewards, actions=actions))
    assert (found.inf_rows, found.nan_rows, found.faulty_rows) == (1, 2, 2)


def test_clocks_that_jump_or_go_back() -> None:
    clock = np.arange(20) * 0.1
    clock[10:] += 0.1  # twice the median step
    clock[15] = clock[14]
    found = check(healthy().replace(extras={"timestamp": clock}))
    assert found.gap_rows == 2  # the jump, and the step after the one that stood still
    assert found.backward_rows == 1
    assert found.faulty_rows == 3
    steady = check(healthy().replace(extras={"timestamp": np.arange(20) * 0.1}))
    assert steady.faulty_rows == 0


def test_end_flags_in_the_middle() -> None:
    flags = np.zeros(20, bool)
    flags[[5, 19]] = True
    found = check(healthy().replace(terminated=flags, truncated=False))
    assert found.early_ends == 1
    assert found.score == pytest.approx(1 - 1 / 21)


def test_constant_channels_and_saturation_are_only_reported() -> None:
    actions = np.array(healthy().actions)
    actions[:, 1] = 1.0
    found = check(healthy().replace(actions=actions), action_limit=1.0)
    assert found.constant_channels == 1
    assert found.saturated_share == pytest.approx(0.5)
    assert found.score == 1.0


def test_one_step_is_whole() -> None:
    found = check(episode("e", np.zeros((2, 1)), np.zeros((1, 1))))
    assert found.score == 1.0
