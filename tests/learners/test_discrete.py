"""Discrete actions: losses by hand and by slow versions, CartPole from scripted play, refusals."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from learners.base import ALGORITHMS, make_learner
from learners.bc import cross_entropy
from learners.checkpoint import load_checkpoint, restore
from learners.data import fit, pin
from learners.discrete_cql import discrete_gap
from learners.evaluate import evaluate
from learners.finetune import FinetuneConfig, finetune
from learners.inputs import one_hot, sampled
from learners.normaliser import Normaliser
from learners.policy import decode_policy, encode_policy
from learners.rollout import Collection, Exploration, Facts, collect
from learners.train import TrainConfig, train
from pipeline.store.store import Store, open_store
from schemas.episode import Episode
from schemas.errors import ConfigError, SpecMismatchError
from tests.learners.slow_parts import Adam, Network, together
from tests.learners.worked import assert_near, rows

CARTPOLE = "CartPole-v1"
CHOICES, O = 3, 4  # noqa: E741
WITH_DISCRETE = ("arsq", "bc", "cql", "cqn", "iql")


def _normaliser() -> Normaliser:
    zeros, ones = np.zeros(O, np.float32), np.ones(O, np.float32)
    scale = np.ones(CHOICES, np.float32)
    return Normaliser(("observations",), zeros, ones, scale, choices=CHOICES)


def _learner(algo: str, seed: Any = 0, **settings: Any) -> Any:
    return make_learner(algo, {"hidden": (16, 16), **settings}, _normaliser(), seed)


def _rows(seed: int, count: int = 32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    actions = torch.randint(0, CHOICES, (count,), generator=generator)
    return {**rows(seed, count), "actions": actions}


# -- parts by hand ---------------------------------------------------------------------------------


def test_actions_enter_as_rows_of_0_and_1() -> None:
    found = one_hot(torch.tensor([[2.0], [0.0]]), 3)
    assert found.tolist() == [[0, 0, 1], [1, 0, 0]]


def test_cross_entropy_by_hand() -> None:
    # softmax (1/4, 3/4) and (1/2, 1/2); the third row is padding.
    logits = torch.tensor([[[0.0, math.log(3)], [5.0, 5.0], [9.0, 0.0]]])
    actions = torch.tensor([[[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]])
    found = cross_entropy(logits, actions, torch.tensor([[1.0, 1.0, 0.0]]))
    assert found.item() == pytest.approx(-(math.log(0.75) + math.log(0.5)) / 2)


def test_the_gap_of_discrete_cql_by_hand() -> None:
    values = torch.tensor([[[[0.0, math.log(3)]]]])
    actions = torch.tensor([[[1.0, 0.0]]])
    assert discrete_gap(values, actions, 1.0).item() == pytest.approx(math.log(4))
    # T log sum exp(Q / T) with T = 1/2: half of log(1 + 9).
    assert discrete_gap(values, actions, 0.5).item() == pytest.approx(0.5 * math.log(10))


def test_draws_follow_the_softmax_and_no_noise_is_the_best() -> None:
    scores = torch.tensor([0.0, math.log(2), math.log(5)]).expand(40_000, 3)
    drawn = sampled(scores, np.random.default_rng(0).standard_normal((40_000, 3)))
    shares = torch.bincount(drawn, minlength=3) / 40_000
    assert shares.tolist() == pytest.approx([1 / 8, 2 / 8, 5 / 8], abs=0.01)
    assert (sampled(scores[:5], np.zeros((5, 3))) == 2).all()
    with pytest.raises(SpecMismatchError, match="with 3 actions as the data have, came one with 2"):
        sampled(scores[:5], np.zeros((5, 2)))


# -- slow versions ---------------------------------------------------------------------------------


class SlowIQL:
    """IQL with a softmax and critics that read actions as rows of 0 and 1."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.value, self.policy = Network(state, "value/"), Network(state, "policy/trunk.")
        self.critics = [Network(state, "critics/", member) for member in range(2)]
        self.targets = [Network(state, "targets/", member) for member in range(2)]
        self.value_adam = Adam(self.value.parameters, 3e-4)
        self.policy_adam = Adam(self.policy.parameters, 3e-4)
        self.critic_adam = Adam([p for c in self.critics for p in c.parameters], 3e-4)

    def update(self, b: dict[str, Tensor]) -> None:
        s, s_next = b["observations"].double(), b["next_observations"].double()
        pairs = together(s, torch.eye(CHOICES, dtype=torch.float64)[b["actions"]])
        with torch.no_grad():
            q = torch.minimum(*(target(pairs)[:, 0] for target in self.targets))
        u = q - self.value(s)[:, 0]
        self.value_adam.step((torch.where(u < 0, 0.3, 0.7) * u**2).mean())
        with torch.no_grad():
            w = torch.exp(3.0 * (q - self.value(s)[:, 0])).clamp(max=100.0)
            y = b["rewards"] + b["discounts"] * self.value(s_next)[:, 0]
        odds = torch.softmax(self.policy(s), dim=1)[torch.arange(len(s)), b["actions"]]
        self.policy_adam.step(-(w * torch.log(odds)).mean())
        losses = [((critic(pairs)[:, 0] - y) ** 2).mean() for critic in self.critics]
        self.critic_adam.step(losses[0] + losses[1])
        for target, critic in zip(self.targets, self.critics, strict=True):
            target.follow(critic, 0.005)

    @property
    def networks(self) -> dict[tuple[str, int], Network]:
        twins = {(f"{n}/", k): getattr(self, n)[k] for n in ("critics", "targets") for k in (0, 1)}
        return {("value/", 0): self.value, ("policy/trunk.", 0): self.policy, **twins}


class SlowCQL:
    """Q-learning with twin critics, pushed down where the data are not."""

    def __init__(self, state: dict[str, Tensor], weight: float) -> None:
        self.weight = weight
        self.critics = [Network(state, "critics/", member) for member in range(2)]
        self.targets = [Network(state, "targets/", member) for member in range(2)]
        self.adam = Adam([p for c in self.critics for p in c.parameters], 3e-4)

    def update(self, b: dict[str, Tensor]) -> None:
        s, s_next = b["observations"].double(), b["next_observations"].double()
        every = torch.arange(len(s))
        with torch.no_grad():
            best = torch.minimum(*(critic(s_next) for critic in self.critics)).argmax(dim=1)
            slow = torch.minimum(*(target(s_next) for target in self.targets))[every, best]
            y = b["rewards"] + b["discounts"] * slow
        loss = torch.zeros((), dtype=torch.float64)
        for critic in self.critics:
            values = critic(s)
            done = values[every, b["actions"]]
            gap = torch.log(torch.exp(values).sum(dim=1)) - done
            loss = loss + ((done - y) ** 2).mean() + self.weight * gap.mean()
        self.adam.step(loss)
        for target, critic in zip(self.targets, self.critics, strict=True):
            target.follow(critic, 0.005)

    @property
    def networks(self) -> dict[tuple[str, int], Network]:
        return {(f"{n}/", k): getattr(self, n)[k] for n in ("critics", "targets") for k in (0, 1)}


def test_iql_is_its_slow_version() -> None:
    fast = _learner("iql")
    slow = SlowIQL(fast.state())
    for step in range(20):
        fast.update(_rows(step))
        slow.update(_rows(step))
    assert_near(fast, slow)


def test_cql_is_its_slow_version() -> None:
    fast = _learner("cql", weight=2.0)
    slow = SlowCQL(fast.state(), 2.0)
    for step in range(20):
        fast.update(_rows(step))
        slow.update(_rows(step))
    assert_near(fast, slow)


@pytest.mark.parametrize(
    ("algo", "settings"), [("bc", {"dropout": 0.1}), ("iql", {}), ("cql", {"lagrange": 1.0})]
)
def test_agents_side_by_side_are_as_alone(algo: str, settings: dict[str, Any]) -> None:
    both = _learner(algo, (3, 8), **settings)
    alone = [_learner(algo, seed, **settings) for seed in (3, 8)]
    for step in range(3):
        batches = [_rows(10 * step + number) for number in range(2)]
        both.update({name: torch.cat([one[name] for one in batches]) for name in batches[0]})
        for one, batch in zip(alone, batches, strict=True):
            one.update(batch)
    for number, one in enumerate(alone):
        mine, theirs = both.state(number), one.state()
        assert mine.keys() == theirs.keys()
        for name, tensor in mine.items():
            torch.testing.assert_close(tensor, theirs[name], rtol=1e-4, atol=1e-5)


def test_the_multiplier_of_cql_grows_while_the_gap_is_too_large() -> None:
    learner = _learner("cql", lagrange=0.01)
    before = learner.multiplier().item()
    assert learner.update(_rows(0))["gap"].item() > 0.01
    assert learner.multiplier().item() > before


# -- kinds of actions ------------------------------------------------------------------------------


@pytest.mark.parametrize("algo", sorted(ALGORITHMS.keys() - set(WITH_DISCRETE)))
def test_algorithms_without_a_form_for_them_refuse(algo: str) -> None:
    settings = {"target_return": 1.0} if algo == "dt" else {}
    said = rf"Expected continuous actions \(arrays of floats\) for {algo}, came discrete ones, 3 of"
    with pytest.raises(SpecMismatchError, match=said):
        make_learner(algo, settings, _normaliser())


def _episodes(actions: np.ndarray) -> list[Episode]:
    steps = len(actions)
    observations = np.random.default_rng(0).normal(size=(steps + 1, 2)).astype(np.float32)
    rewards = np.ones(steps)
    return [
        Episode(
            episode_id="e",
            observations=observations,
            actions=actions,
            rewards=rewards,
            terminated=True,
        )
    ]


def test_there_are_as_many_actions_as_the_data_or_the_environment_have(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s", create=True)
    store.append(_episodes(np.array([0, 2, 1], np.int32)))
    pinned = pin((store.url,))
    assert fit(pinned, False).choices == 3
    assert fit(pinned, False, environment="Acrobot-v1").choices == 3
    assert fit(pinned, False, environment="CliffWalking-v1").choices == 4
    assert fit(pinned, False, environment=CARTPOLE).choices == 3  # the data say more


def test_floats_and_several_integers_are_numbers(tmp_path: Path) -> None:
    for name, actions in {"floats": np.ones(3), "several": np.ones((3, 2), np.int64)}.items():
        store = open_store(tmp_path / name, create=True)
        store.append(_episodes(actions))
        assert fit(pin((store.url,)), False).choices is None


def test_actions_below_0_are_refused(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s", create=True)
    store.append(_episodes(np.array([0, -1, 1])))
    with pytest.raises(SpecMismatchError, match="discrete actions from 0 on, came -1"):
        fit(pin((store.url,)), False)


# -- acting ----------------------------------------------------------------------------------------


class Balancer:
    """Pushes the cart to where the pole falls, and slowly back to the middle."""

    gains = np.array([0.05, 0.2, 1.0, 0.6])

    def act(self, observations: Any) -> np.ndarray:
        return (np.asarray(observations) @ self.gains > 0).astype(np.int64)


def _play(episodes: int, seed: int = 0) -> list[Episode]:
    plan = Collection(CARTPOLE, episodes=episodes, seed=seed)
    return list(collect(Balancer(), plan, Facts(namespace="demo", kind="demonstration")))


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Scripted play of CartPole, and a cache that is nobody else's."""
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path / "cache"))
    store = open_store(tmp_path / "store", create=True)
    store.append(_play(6))
    return store


def _run(world: Store, out: Path, algo: str, steps: int, **settings: Any) -> Path:
    config = TrainConfig(
        algo=algo,
        data=(world.url,),
        out=str(out),
        steps=steps,
        batch_size=64,
        settings={"hidden": (32, 32), **settings},
    )
    train(config)
    return out


def test_rollouts_are_integers_of_the_environments_dtype() -> None:
    episode = _play(1)[0]
    assert episode.actions.dtype == np.int64
    assert episode.actions.shape == (episode.length,)
    assert set(episode.actions) == {0, 1}
    assert episode.length == 500


def test_noise_on_numbers_is_refused() -> None:
    plan = Collection(CARTPOLE, episodes=1, exploration=Exploration("gaussian", 0.1))
    with pytest.raises(ConfigError, match=r"`none` or `policy` among Discrete\(2\)"):
        list(collect(Balancer(), plan, Facts(namespace="x")))


def test_an_action_that_the_environment_lacks_is_refused() -> None:
    class Wild:
        def act(self, observations: Any) -> np.ndarray:
            return np.full(len(observations), 2)

    with pytest.raises(SpecMismatchError, match=r"an action of Discrete\(2\), came 2"):
        list(collect(Wild(), Collection(CARTPOLE, episodes=1), Facts(namespace="x")))


def test_cloning_balances_the_pole(world: Store, tmp_path: Path) -> None:
    run = _run(world, tmp_path / "run", "bc", 400, learning_rate=3e-3)
    learner = restore(load_checkpoint(run))
    untrained = _learner_like(learner)
    assert learner.act(np.zeros((2, 4))).dtype == torch.int64
    assert evaluate(learner, CARTPOLE, 5).mean_return > 450
    assert evaluate(untrained, CARTPOLE, 5).mean_return < 150


def _learner_like(learner: Any) -> Any:
    return make_learner(learner.name, learner.settings.model_dump(), learner.normaliser, 1)


class Careless:
    """Does anything."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(0)

    def act(self, observations: Any) -> np.ndarray:
        return self.random.integers(0, 2, len(observations))


FAST = {"critic_rate": 1e-3, "tau": 0.02}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algo", "settings", "least", "most"),
    [
        ("bc", {}, 0, 60),
        ("iql", {**FAST, "value_rate": 1e-3, "policy_rate": 1e-3, "temperature": 10.0}, 70, 500),
        ("cql", {**FAST, "weight": 0.1}, 70, 500),
    ],
)
def test_values_make_more_of_careless_play_than_cloning(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    algo: str,
    settings: dict[str, Any],
    least: float,
    most: float,
) -> None:
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path / "cache"))
    plan = Collection(CARTPOLE, episodes=300, seed=100)
    careless = list(collect(Careless(), plan, Facts(namespace="careless")))
    assert np.mean([episode.length for episode in careless]) < 30
    store = open_store(tmp_path / "careless", create=True)
    store.append(careless)
    config = TrainConfig(
        algo=algo,
        data=(store.url,),
        out=str(tmp_path / "run"),
        steps=1500,
        batch_size=128,
        discount=0.98,
        settings={"hidden": (64, 64), **settings},
    )
    train(config)
    learner = restore(load_checkpoint(tmp_path / "run"))
    assert least <= evaluate(learner, CARTPOLE, 5).mean_return <= most


@pytest.mark.parametrize("algo", ["iql", "cql"])
def test_fine_tuning_goes_through_the_store(world: Store, tmp_path: Path, algo: str) -> None:
    run = _run(world, tmp_path / "run", algo, 20)
    config = FinetuneConfig(
        run=str(run),
        environment=CARTPOLE,
        into=world.url,
        env_steps=60,
        round_steps=30,
        updates_per_step=0.2,
        evaluate_episodes=1,
    )
    found = finetune(config)
    rollouts = open_store(world.url).version(found.data[-1].version)
    played = rollouts.episode(rollouts.episodes()["episode_id"][0].as_py())
    assert played.actions.dtype == np.int64
    assert played.policy == algo


@pytest.mark.parametrize("algo", ["bc", "iql", "cql"])
def test_a_published_policy_acts_as_its_learner(algo: str) -> None:
    learner = _learner(algo, seed=5)
    learner.update(_rows(0))
    taken, step = decode_policy(encode_policy(learner, "r", 1), "r")
    states = np.random.default_rng(0).normal(size=(50, O)).astype(np.float32)
    noise = np.random.default_rng(1).standard_normal((50, CHOICES))
    assert step == 1
    assert torch.equal(taken.act(states), learner.act(states))
    drawn = learner.explore(states, noise)
    assert drawn.dtype == torch.int64
    assert torch.equal(taken.explore(states, noise), drawn)
    assert not torch.equal(drawn, learner.act(states))
