"""Where the environment's bounds are known, the unit box is theirs: learning, acting, files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from learners.base import make_learner
from learners.bounds import action_bounds
from learners.checkpoint import load_checkpoint, restore
from learners.data import fit, pin
from learners.normaliser import Normaliser
from learners.policy import decode_policy, encode_policy
from learners.rollout import Collection, Exploration, Facts, collect
from learners.train import TrainConfig, train
from pipeline.store.store import Store, open_store
from schemas.errors import UnknownNameError
from tests.learners.homing import Homing

NARROW, SKEWED, FREE = "HomingNarrow-v0", "HomingSkewed-v0", "HomingFree-v0"
BOUNDS = {NARROW: (-0.4, 0.4), SKEWED: (-0.2, 0.6), FREE: (-np.inf, 0.5)}


class Bounded(Homing):
    """Homing with other bounds."""

    def __init__(self, low: float, high: float) -> None:
        self.action_space = gym.spaces.Box(low, high, (1,), np.float32)  # type: ignore[misc]


class Middling:
    """Does the same everywhere."""

    def act(self, observations: Any) -> np.ndarray:
        return np.full((len(observations), 1), 0.1)


@pytest.fixture(autouse=True)
def _registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path / "cache"))
    for name, (low, high) in BOUNDS.items():
        gym.register(name, lambda low=low, high=high: Bounded(low, high), max_episode_steps=12)
    yield
    for name in BOUNDS:
        gym.registry.pop(name)


def _store(folder: Path, environment: str) -> Store:
    store = open_store(folder / environment, create=True)
    noisy = Collection(environment, episodes=8, exploration=Exploration("gaussian", 0.2))
    store.append(collect(Middling(), noisy, Facts(namespace="demo", kind="demonstration")))
    return store


def _fitted(store: Store, environment: str | None) -> Normaliser:
    return fit(pin((store.url,)), False, environment=environment)


def test_bounds_are_the_environments() -> None:
    found = action_bounds(SKEWED)
    assert found is not None
    np.testing.assert_allclose(found, [[-0.2], [0.6]], rtol=1e-6)
    assert action_bounds(FREE) is None
    assert action_bounds("CartPole-v1") is None
    with pytest.raises(UnknownNameError):
        action_bounds("HomingNarow-v0")


@pytest.mark.parametrize("environment", [NARROW, SKEWED])
def test_the_unit_box_is_the_environments(tmp_path: Path, environment: str) -> None:
    store, (low, high) = _store(tmp_path, environment), BOUNDS[environment]
    fitted = _fitted(store, environment)
    np.testing.assert_allclose(fitted.action_scale, [0.4], rtol=1e-6)
    assert (fitted.action_centre is None) == (environment == NARROW)
    without = _fitted(store, None)
    assert (without.action_scale.tolist(), without.action_centre) == ([1.0], None)
    for algo in ("td3_bc", "cql", "iql", "arsq", "cqn"):
        made = _learner(algo, fitted)
        unit = made.scaler.to_unit(np.array([[low], [high], [(low + high) / 2]]))
        torch.testing.assert_close(unit, torch.tensor([[-1.0], [1.0], [0.0]]))
        torch.testing.assert_close(
            made.scaler.from_unit(unit), torch.tensor([[low], [high], [(low + high) / 2]])
        )


def test_without_finite_bounds_or_within_them_the_data_decide(tmp_path: Path) -> None:
    store = _store(tmp_path, SKEWED)
    assert _fitted(store, FREE).action_scale.tolist() == [1.0]
    # Data of the skewed box reach up to 0.6, beyond the narrow one.
    assert _fitted(store, NARROW).action_scale.tolist() == [1.0]


@pytest.mark.parametrize("environment", [NARROW, SKEWED])
def test_widths_are_of_the_box_and_have_no_middle(tmp_path: Path, environment: str) -> None:
    fitted = _fitted(_store(tmp_path, environment), environment)
    exploration = {"td3_bc": {"exploration": 0.5}, "iql": {}, "bc": {"loss": "likelihood"}}
    widths = {"td3_bc": 0.5 * 0.4, "iql": 0.4, "bc": 0.4}  # a Gaussian begins with spread 1
    for algo, settings in exploration.items():
        found = _learner(algo, fitted, **settings).spread()
        assert found.tolist() == pytest.approx([widths[algo]]), algo
    critic = _learner("cqn", fitted, exploration=1.0)
    reach = float(fitted.action_high[0] - fitted.action_low[0])
    assert critic.spread().tolist() == pytest.approx([reach / 2])
    middle = torch.full((1, 1, 1), 0.5 * float(fitted.action_high[0] + fitted.action_low[0]))
    unit = (critic.codec.high + critic.codec.low) / 2
    torch.testing.assert_close(critic.scaler.from_unit(unit.float()), middle[0, 0])


@pytest.mark.parametrize("algo", ["td3_bc", "cql"])
def test_a_policy_acts_alike_wherever_it_is_kept(tmp_path: Path, algo: str) -> None:
    store, seen = _store(tmp_path, SKEWED), np.linspace(-1, 1, 7)[:, None]
    out = tmp_path / "run"
    config = TrainConfig(
        algo=algo,
        data=(store.url,),
        out=str(out),
        steps=4,
        settings={"hidden": (8, 8)},
        batch_size=16,
        environment=SKEWED,
        evaluate_episodes=1,
    )
    train(config)
    kept = restore(load_checkpoint(out))
    sent, _ = decode_policy(encode_policy(kept, "run", 4), "run")
    assert torch.equal(sent.act(seen), kept.act(seen))
    noise = np.ones((7, 1))
    assert torch.equal(sent.explore(seen, noise), kept.explore(seen, noise))
    for one in (kept, sent):
        assert one.scaler.action_centre is not None
        assert one.scaler.action_centre.tolist() == pytest.approx([0.2])
        far = one.act(1e6 * np.array([[-1.0], [1.0]]))
        assert ((far >= -0.2 - 1e-6) & (far <= 0.6 + 1e-6)).all()


def _learner(algo: str, fitted: Normaliser, **settings: Any) -> Any:
    return make_learner(algo, {"hidden": (8, 8), **settings}, fitted)
