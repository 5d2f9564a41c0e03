"""IQL against hand-computed losses and against a slow NumPy version of the whole update."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch

from learners.base import make_learner
from learners.inputs import Scaler
from learners.iql import (
    IQL,
    advantage_weights,
    critic_loss,
    critic_targets,
    expectile_loss,
    policy_loss,
)
from learners.losses import gaussian_log_prob, masked_mean
from learners.networks import MLP
from learners.normaliser import Normaliser
from learners.optimiser import cosine_rate
from tests.learners.slow_iql import Layers, SlowIQL, flat

O, A, B = 4, 2, 32  # noqa: E741
ONES = torch.ones(4)


def test_expectile_loss_by_hand() -> None:
    errors = torch.tensor([1.0, -1.0, 2.0, -3.0])
    # 0.7 * 1, 0.3 * 1, 0.7 * 4, 0.3 * 9
    assert expectile_loss(errors, 0.7, ONES).item() == pytest.approx((0.7 + 0.3 + 2.8 + 2.7) / 4)


def test_expectile_half_is_half_the_squared_error() -> None:
    errors = torch.tensor([1.0, -1.0, 2.0, -3.0])
    assert expectile_loss(errors, 0.5, ONES).item() == pytest.approx(0.5 * 15 / 4)


def test_advantage_weights_by_hand_and_limited() -> None:
    weights = advantage_weights(torch.tensor([0.0, 1.0, -1.0, 1000.0]), 3.0, 100.0)
    assert weights.tolist() == pytest.approx([1.0, math.exp(3), math.exp(-3), 100.0], rel=1e-6)


def test_policy_loss_by_hand() -> None:
    log_probs, weights = torch.tensor([-1.0, -2.0]), torch.tensor([3.0, 0.5])
    assert policy_loss(log_probs, weights, torch.ones(2)).item() == pytest.approx(2.0)


def test_gaussian_log_prob_by_hand() -> None:
    actions, means = torch.tensor([[0.5, -0.5]]), torch.tensor([[0.0, 0.5]])
    log_std = torch.tensor([0.0, math.log(2.0)])
    expected = sum(
        -0.5 * ((a - m) / s) ** 2 - math.log(s) - 0.5 * math.log(2 * math.pi)
        for a, m, s in ((0.5, 0.0, 1.0), (-0.5, 0.5, 2.0))
    )
    assert gaussian_log_prob(actions, means, log_std).item() == pytest.approx(expected, rel=1e-6)


def test_critic_loss_sums_both_critics() -> None:
    q_t = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    loss = critic_loss(q_t, torch.tensor([1.0, 0.0]), torch.ones(2))
    assert loss.item() == pytest.approx(4 / 2 + 1 / 2)


def test_masked_rows_do_not_count() -> None:
    values, mask = torch.tensor([1.0, 5.0, 100.0]), torch.tensor([1.0, 1.0, 0.0])
    assert masked_mean(values, mask).item() == 3.0
    assert masked_mean(values, torch.zeros(3)).item() == 0.0


def test_termination_stops_bootstrapping_and_truncation_does_not() -> None:
    gamma = 0.99
    terminated = torch.tensor([False, True, False])
    discounts = gamma * (~terminated).float()
    targets = critic_targets(torch.ones(3), discounts, torch.full((3,), 10.0))
    assert targets.tolist() == pytest.approx([1 + 9.9, 1.0, 1 + 9.9])


def test_updates_never_read_truncated() -> None:
    batch = _batch(0)
    one, two = _iql(), _iql()
    one.update(batch)
    two.update({**batch, "truncated": torch.ones(B, dtype=torch.bool)})
    _assert_same_state(one, two)


def test_updates_read_discounts() -> None:
    batch = _batch(0)
    one, two = _iql(), _iql()
    one.update(batch)
    two.update({**batch, "discounts": torch.zeros(B)})
    assert not torch.equal(one.state()["critics/weights.0"], two.state()["critics/weights.0"])


def test_next_observations_of_terminated_steps_are_never_read() -> None:
    batch = _batch(0)
    ended = batch["discounts"] == 0
    assert ended.any()
    other = torch.where(ended[:, None], torch.tensor(7.0), batch["next_observations"])
    one, two = _iql(), _iql()
    one.update(batch)
    two.update({**batch, "next_observations": other})
    _assert_same_state(one, two)


@pytest.mark.parametrize("expectile", [0.5, 0.9])
def test_five_updates_equal_the_slow_version(expectile: float) -> None:
    fast = _iql(expectile=expectile)
    slow = _slow(fast, expectile=expectile)
    _update_both(fast, slow, 5)
    for got, expected in _pairs(fast, slow):
        np.testing.assert_allclose(got, expected, rtol=2e-4, atol=2e-6)


def test_policy_and_critics_use_the_new_value() -> None:
    fast = _iql(value_rate=0.05)
    right, wrong = _slow(fast), _slow(fast, uses_old_value=True)
    for slow in (right, wrong):
        slow.adams["value"].rate = 0.05
    _update_both(fast, right, 1)
    _update_both(_iql(value_rate=0.05), wrong, 1)
    state = fast.state()
    names = [*(f"policy/trunk.weights.{i}" for i in range(3)), "policy/log_std"]
    got = np.concatenate([state[name].numpy().ravel() for name in names])

    def distance(slow: SlowIQL) -> float:
        arrays = [*(layer[0] for layer in slow.policy), slow.log_std]
        return float(np.abs(np.concatenate([a.ravel() for a in arrays]) - got).max())

    assert distance(right) < 1e-5 < 1e-4 < distance(wrong)


def test_act_is_deterministic_and_in_the_environments_units() -> None:
    learner = _iql(normaliser=_normaliser(action_scale=(2.0, 1.0)))
    states = 100 * torch.randn(64, O, generator=torch.Generator().manual_seed(0))
    actions = learner.act(states)
    assert torch.equal(actions, learner.act(states))
    assert actions[:, 0].abs().max() > 1
    assert (actions.abs() <= torch.tensor([2.0, 1.0])).all()


def test_dropout_acts_in_training_only_and_resumes() -> None:
    one, two = _iql(dropout=0.5), _iql(dropout=0.5)
    one.update(_batch(0))
    two.load_state({name: tensor.clone() for name, tensor in one.state().items()})
    for learner in (one, two):
        learner.update(_batch(1))
    _assert_same_state(one, two)
    states = _batch(2)["observations"]
    assert torch.equal(one.act(states), one.act(states))


def test_policy_rate_falls_to_zero_along_a_cosine() -> None:
    assert cosine_rate(1.0, 0, 10) == 1.0
    assert cosine_rate(1.0, 5, 10) == pytest.approx(0.5)
    assert cosine_rate(1.0, 10, 10) == cosine_rate(1.0, 25, 10) == pytest.approx(0.0)
    learner = _iql(policy_decay=2)
    for step in range(4):
        before = learner.state()["policy/log_std"].clone()
        learner.update(_batch(step))
        moved = not torch.equal(before, learner.state()["policy/log_std"])
        assert moved == (step < 2)


def test_learns_the_value_of_a_two_step_chain() -> None:
    """One state leads to another, which ends: V = 1 + 0.5 * 2, and V = 2; truncated or not."""
    states = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]).repeat(16, 1)
    batch = {
        "observations": states,
        "next_observations": states.roll(-1, dims=0),
        "actions": torch.zeros(32, A),
        "rewards": torch.tensor([1.0, 2.0]).repeat(16),
        "discounts": torch.tensor([0.5, 0.0]).repeat(16),
        "truncated": torch.tensor([True, False]).repeat(16),
        "mask": torch.ones(32, dtype=torch.bool),
    }
    learner = _iql(tau=0.1, value_rate=3e-3, critic_rate=3e-3)
    for _ in range(600):
        learner.update(batch)
    values = learner.value(states[None, :2])[0, 0, :, 0].tolist()
    assert values == pytest.approx([2.0, 2.0], abs=0.05)


def test_rewards_are_scaled_then_shifted() -> None:
    batch = _batch(0)
    one, two = _iql(reward_scale=2.0, reward_shift=-1.0), _iql()
    one.update(batch)
    two.update({**batch, "rewards": 2.0 * batch["rewards"] - 1.0})
    _assert_same_state(one, two)


def test_seeds_make_the_networks() -> None:
    one, two, other = _iql(seed=1), _iql(seed=1), _iql(seed=2)
    _assert_same_state(one, two)
    assert not torch.equal(one.state()["value/weights.0"], other.state()["value/weights.0"])


def test_members_of_an_ensemble_are_independent() -> None:
    generator = torch.Generator().manual_seed(0)
    network = MLP((3, 8, 1), [generator], members=2)
    first, second = (
        MLP((3, 8, 1), [generator]),
        MLP((3, 8, 1), [generator]),
    )
    for member, single in enumerate((first, second)):
        for name, tensor in single.state_dict().items():
            tensor.copy_(network.state_dict()[name][member : member + 1])
    x = torch.randn(1, 5, 3, generator=generator)
    torch.testing.assert_close(network(x), torch.cat([first(x), second(x)], dim=1))


def test_standardised_states_and_scaled_actions() -> None:
    scaler = Scaler(_normaliser(mean=1.0, scale=2.0, action_scale=(4.0, 1.0)), "cpu")
    assert scaler.states(torch.full((1, O), 5.0)).tolist() == [[2.0] * O]
    unit = scaler.to_unit(np.array([[2.0, 1.0]]))
    assert unit.tolist() == [[0.5, 1.0]]
    assert scaler.from_unit(unit).tolist() == [[2.0, 1.0]]


def _normaliser(
    mean: float = 0.0, scale: float = 1.0, action_scale: tuple[float, float] = (1.0, 1.0)
) -> Normaliser:
    return Normaliser(
        ("observations",),
        np.full(O, mean, np.float32),
        np.full(O, scale, np.float32),
        np.array(action_scale, np.float32),
    )


def _iql(normaliser: Normaliser | None = None, seed: int = 0, **settings: Any) -> IQL:
    settings = {"hidden": (16, 16), **settings}
    learner = make_learner("iql", settings, normaliser or _normaliser(), seed)
    assert isinstance(learner, IQL)
    return learner


def _batch(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    terminated = torch.rand(B, generator=generator) < 0.3
    return {
        "observations": torch.randn(B, O, generator=generator),
        "next_observations": torch.randn(B, O, generator=generator),
        "actions": 2 * torch.rand(B, A, generator=generator) - 1,
        "rewards": torch.randn(B, generator=generator),
        "terminated": terminated,
        "truncated": torch.zeros(B, dtype=torch.bool),
        "discounts": 0.99 * (~terminated).float(),
        "mask": torch.ones(B, dtype=torch.bool),
    }


def _layers(state: dict[str, torch.Tensor], prefix: str, member: int = 0) -> Layers:
    def array(kind: str, index: int) -> np.ndarray:
        return state[f"{prefix}{kind}.{index}"][member].numpy().astype(np.float64)

    return [[array("weights", i), array("biases", i)[0]] for i in range(3)]


def _slow(learner: IQL, **settings: Any) -> SlowIQL:
    state = learner.state()
    return SlowIQL(
        value=_layers(state, "value/"),
        policy=_layers(state, "policy/trunk."),
        log_std=state["policy/log_std"][0].numpy().astype(np.float64),
        critics=[_layers(state, "critics/", member) for member in (0, 1)],
        targets=[_layers(state, "targets/", member) for member in (0, 1)],
        **settings,
    )


def _update_both(fast: IQL, slow: SlowIQL, updates: int) -> None:
    for seed in range(updates):
        batch = _batch(seed)
        fast.update(batch)
        slow.update(
            *(
                batch[name].numpy().astype(np.float64)
                for name in (
                    "observations",
                    "actions",
                    "rewards",
                    "discounts",
                    "next_observations",
                )
            )
        )


def _pairs(fast: IQL, slow: SlowIQL) -> list[tuple[np.ndarray, np.ndarray]]:
    state = fast.state()
    found = [(state["policy/log_std"][0].numpy(), slow.log_std)]
    networks = [("value/", 0, slow.value), ("policy/trunk.", 0, slow.policy)]
    networks += [("critics/", m, slow.critics[m]) for m in (0, 1)]
    networks += [("targets/", m, slow.targets[m]) for m in (0, 1)]
    for prefix, member, layers in networks:
        found += zip(flat(_layers(state, prefix, member)), flat(layers), strict=True)
    return found


def _assert_same_state(one: IQL, two: IQL) -> None:
    left, right = copy.copy(one.state()), two.state()
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name
