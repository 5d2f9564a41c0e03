from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from learners.rollout import Collection, Exploration, Facts, collect
from learners.scripted import ENVIRONMENT, NOISE_LEVELS, PoleBalancer
from schemas.episode import Episode

FACTS = Facts(namespace="demo", kind="demonstration")


def test_the_sound_controller_holds_the_poles_and_the_flawed_one_drops_them() -> None:
    (sound,) = _play(PoleBalancer(is_flawed=False), 0.0, 1)
    flawed = _play(PoleBalancer(), 0.0, 8)
    assert sound.is_truncated
    assert sound.length == 1000
    assert all(episode.is_terminated for episode in flawed)
    assert 50 < np.mean([episode.length for episode in flawed]) < 200


def test_noise_costs_return() -> None:
    returns = [
        np.mean([e.episode_return for e in _play(PoleBalancer(), noise, 16)])
        for noise in (NOISE_LEVELS[0], NOISE_LEVELS[-1])
    ]
    assert returns[1] < 0.7 * returns[0]


def test_residual_noise_of_each_episode_ranks_the_known_levels() -> None:
    episodes = [e for noise in NOISE_LEVELS for e in _play(PoleBalancer(), noise, 8)]
    known = np.repeat(NOISE_LEVELS, 8)
    residuals = [
        np.square(e.actions - PoleBalancer().act(e.observations["observations"][:-1])).mean()
        for e in episodes
    ]
    groups = np.split(np.array(residuals), len(NOISE_LEVELS))
    assert groups[0].max() < 1e-12
    assert all(one.max() < two.min() for one, two in pairwise(groups))
    # Actions are cut to their bounds, which takes a little from the largest noise.
    assert np.sqrt(np.mean(groups[2])) == pytest.approx(known[16], rel=0.1)


def test_as_a_policy_it_draws_from_the_generator_it_is_given() -> None:
    observation = np.array([0.1, 0.05, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    noisy = PoleBalancer(noise=0.2)
    one, two = (noisy(observation, np.random.default_rng(7)) for _ in range(2))
    clean = PoleBalancer()(observation, np.random.default_rng(7))
    assert one == two != clean
    assert one.shape == (1,)
    assert one.dtype == np.float32
    assert noisy.name == "pole-balancer-flawed-0.2"


def _play(controller: PoleBalancer, noise: float, episodes: int) -> list[Episode]:
    plan = Collection(ENVIRONMENT, episodes=episodes, exploration=Exploration("gaussian", noise))
    return list(collect(controller, plan, FACTS))
