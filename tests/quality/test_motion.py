"""Idle steps and smoothness against episodes whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.quality.motion import idle, smoothness, sparc
from schemas.episode import Episode


def moving(steps: int, seed: int = 0, **changes: object) -> Episode:
    rng = np.random.default_rng(seed)
    actions = rng.uniform(0.3, 1.0, (steps, 3)) * rng.choice([-1, 1], (steps, 3))
    states = np.concatenate([np.zeros((1, 3)), np.cumsum(actions, 0)])
    return Episode("e", states, actions, truncated=True, **changes)  # type: ignore[arg-type]


def with_pause(episode: Episode, at: int, steps: int, gripper: float | None = None) -> Episode:
    """Inserts steps of zero action in which nothing moves; a gripper dim stays as it is."""
    actions = np.insert(episode.flat_actions["actions"], [at] * steps, 0.0, axis=0)
    states = np.concatenate([np.zeros((1, 3)), np.cumsum(actions, 0)])
    if gripper is not None:
        actions = np.concatenate([actions, np.full((len(actions), 1), gripper)], axis=1)
    return Episode("e", states, actions, truncated=True)


@pytest.mark.parametrize("pause", [0, 1, 7, 19])
@pytest.mark.parametrize("gripper", [None, 0.8])
def test_inserted_zero_steps_are_counted_exactly(pause: int, gripper: float | None) -> None:
    found = idle(with_pause(moving(60), 20, pause, gripper))
    assert found is not None
    assert (found.idle, found.longest) == (pause, pause)
    assert (found.leading, found.trailing) == (0, 0)
    assert found.fraction == pause / (60 + pause)


def test_leading_and_trailing_pauses_are_told_apart() -> None:
    found = idle(with_pause(with_pause(moving(40), 0, 5), 45, 3))
    assert found is not None
    assert (found.leading, found.trailing, found.idle, found.longest) == (5, 3, 8, 5)


def test_a_steady_push_is_not_idle() -> None:
    actions = np.tile([0.5, -0.2, 0.9], (50, 1))
    states = np.concatenate([np.zeros((1, 3)), np.cumsum(actions, 0)])
    found = idle(Episode("e", states, actions, truncated=True))
    assert found is not None
    assert found.idle == 0


def test_edges_of_idle() -> None:
    assert idle(Episode("e", np.zeros((4, 2)), None, truncated=True)) is None
    still = idle(Episode("e", np.zeros((5, 2)), np.zeros((4, 2)), truncated=True))
    assert still is not None
    assert (still.idle, still.leading, still.trailing) == (4, 4, 4)
    broken = moving(20)
    actions = broken.flat_actions["actions"].copy()
    actions[3] = np.nan
    found = idle(broken.replace(actions=actions))
    assert found is not None
    assert found.idle == 0


def minimum_jerk_speed(rate: float, seconds: float) -> np.ndarray:
    """Speed of a minimum-jerk reach of unit length: 30 t^2 (1 - t)^2 on unit time."""
    t = np.linspace(0, 1, round(rate * seconds) + 1)
    return 30 * t**2 * (1 - t) ** 2


@pytest.mark.parametrize("rate", [10.0, 50.0, 100.0, 1000.0])
@pytest.mark.parametrize("seconds", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_minimum_jerk_reads_the_same_at_any_rate_and_duration(
    rate: float, seconds: float, noise: float
) -> None:
    speed = minimum_jerk_speed(rate, seconds)
    speed = speed + noise * np.random.default_rng(0).normal(size=len(speed))
    assert sparc(np.abs(speed), rate) == pytest.approx(-1.40, abs=0.015)


def test_jerky_motion_reads_lower() -> None:
    speed = minimum_jerk_speed(50, 4)
    t = np.arange(len(speed)) / 50
    assert sparc(speed * (1 + 0.5 * np.sin(2 * np.pi * 3 * t)), 50) < sparc(speed, 50) - 0.1


def test_smoothness_of_episodes() -> None:
    speed = minimum_jerk_speed(20, 3)[:, None]
    reach = Episode("e", np.zeros((len(speed) + 1, 1)), speed, truncated=True, fps=20.0)
    assert smoothness(reach) == pytest.approx(-1.40, abs=0.015)
    assert np.isnan(smoothness(moving(7)))
    assert np.isnan(smoothness(Episode("e", np.zeros((11, 1)), np.zeros((10, 1)))))
    discrete = Episode("e", np.zeros((11, 1)), np.arange(10))
    assert np.isnan(smoothness(discrete))
    broken = speed.copy()
    broken[4] = np.inf
    assert np.isnan(smoothness(reach.replace(actions=broken)))
