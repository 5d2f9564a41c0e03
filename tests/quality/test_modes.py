"""A demonstrator of two ways, and the smoothness of smoothed speeds."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.quality.jerk import ldlj
from schemas.episode import Episode
from tests.quality.systems import episode, measure_all

NOISE = 0.1
NAMES = ("length", "action_divergence", "action_divergence_modes")


def ways(modes: int, noise: float = NOISE, count: int = 100) -> list[Episode]:
    """Actions +-1 or, of one way, 0, with noise; which way is drawn at every step."""
    rng = np.random.default_rng(modes)
    episodes = []
    for number in range(count):
        states = rng.uniform(-1, 1, size=(51, 2))
        way = rng.choice([-1.0, 1.0], size=(50, 2)) if modes == 2 else np.zeros((50, 2))
        way[:, 1] = way[:, 0]
        episodes.append(episode(f"e{number}", states, way + noise * rng.normal(size=(50, 2))))
    return episodes


def raw(episodes: list[Episode], name: str) -> float:
    """A value in the action's own units, squared, per dim."""
    columns, values, _ = measure_all(episodes, metrics=NAMES)
    variance = np.concatenate([e.actions for e in episodes]).var(0).mean()
    assert np.isfinite(columns[name]).all()
    return float(values[name].value or 0.0) * float(variance)


def test_two_ways_read_as_their_noise() -> None:
    both, one = ways(2), ways(1)
    # A fitted policy reads the distance of the ways, the nearest actions their noise.
    assert raw(both, "action_divergence") == pytest.approx(1 + NOISE**2, rel=0.05)
    two_ways = raw(both, "action_divergence_modes") / NOISE**2
    one_way = raw(one, "action_divergence_modes") / NOISE**2
    assert 0.6 < two_ways < 1.2
    assert 0.25 < one_way < 0.5


def test_noise_within_a_way_is_told() -> None:
    calm, shaky = ways(2, 0.05, 50), ways(2, 0.2, 50)
    mixed = [*calm, *(e.replace(episode_id=f"s{e.episode_id}") for e in shaky)]
    columns, _, _ = measure_all(mixed, metrics=NAMES)
    found = columns["action_divergence_modes"]
    assert (found[50:, None] > found[:50]).mean() > 0.8


@pytest.mark.parametrize("samples", [100, 400, 4_000])
def test_a_minimum_jerk_reach_has_its_dimensionless_jerk(samples: int) -> None:
    t = np.linspace(0, 1, samples + 1)
    speed = 30 * t**2 - 60 * t**3 + 30 * t**4
    assert ldlj(speed, None) == pytest.approx(-np.log(204.8), abs=0.06)
    smooth = ldlj(speed)
    assert smooth == pytest.approx(-5.11, abs=0.03)
    noisy = speed + 0.01 * speed.max() * np.random.default_rng(0).normal(size=len(t))
    assert ldlj(noisy, None) < -9
    assert ldlj(noisy) == pytest.approx(smooth, abs=0.5)
    # It has no units, and shakes count.
    assert ldlj(7 * speed) == pytest.approx(smooth)
    assert ldlj(speed * (1 + 0.3 * np.sin(2 * np.pi * 8 * t))) < smooth - 1
