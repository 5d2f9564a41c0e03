"""TD3+BC and ReBRAC against hand-computed losses and slow versions of the whole update."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from learners import rebrac, td3, td3_bc
from tests.learners.slow_td3 import SlowReBRAC, SlowTD3BC
from tests.learners.worked import (
    A,
    B,
    O,
    assert_near,
    assert_same,
    differ,
    doubles,
    learner,
    rows,
    windows,
)

ONES = torch.ones(2)


def test_smoothed_actions_by_hand() -> None:
    actions = torch.tensor([0.0, 0.2, 0.9, -0.9])
    noise = torch.tensor([1.0, 10.0, 10.0, -10.0])
    # 0.2 * 1; 0.2 * 10 cut to 0.5; beyond the box on either side
    found = td3.smoothed(actions, noise, 0.2, 0.5)
    assert found.tolist() == pytest.approx([0.2, 0.7, 1.0, -1.0])


def test_policy_loss_of_td3_bc_by_hand() -> None:
    q_t = torch.tensor([3.0, -1.0], requires_grad=True)
    acted = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    data = torch.tensor([[0.0, 0.0], [0.0, 2.0]])
    loss = td3_bc.policy_loss(q_t, acted, data, 2.5, ONES)
    # lambda = 2.5 / 2, mean Q = 1, mean squared error = (1 + 4) / 4
    assert loss.item() == pytest.approx(-2.5 / 2 + 5 / 4)
    loss.backward()
    # No gradient through lambda: each row gets -lambda / 2.
    assert q_t.grad is not None
    assert q_t.grad.tolist() == pytest.approx([-0.625, -0.625])


def test_each_agent_has_a_weight_of_its_own() -> None:
    q_t = torch.tensor([[1.0, 3.0], [-10.0, 30.0]])
    weights = td3.value_weight(q_t, torch.tensor([[1.0, 1.0], [1.0, 0.0]]))
    assert weights.tolist() == pytest.approx([1 / 2, 1 / 10])


def test_penalised_values_by_hand() -> None:
    values = rebrac.penalised_values(
        torch.tensor([5.0, 5.0]),
        torch.tensor([[1.0, 0.0], [1.0, 0.0]]),
        torch.tensor([[0.0, 2.0], [0.0, 2.0]]),
        torch.tensor([1.0, 0.0]),
        0.1,
    )
    assert values.tolist() == pytest.approx([5 - 0.1 * 5, 5.0])


def test_policy_loss_of_rebrac_by_hand() -> None:
    acted, data = torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    loss = rebrac.policy_loss(torch.tensor([3.0, 1.0]), acted, data, 0.5, ONES)
    # the distance is a sum over dims: 0.5 * (2 + 0) / 2, then minus mean Q / mean |Q|
    assert loss.item() == pytest.approx(0.5 - 1.0)


def test_updates_of_td3_bc_equal_the_slow_version() -> None:
    fast = learner("td3_bc", seed=3, tau=0.1)
    slow = SlowTD3BC(fast.state(), tau=0.1)
    for seed in range(5):
        fast.update(rows(seed))
        slow.update(doubles(rows(seed)))
    assert_near(fast, slow)


@pytest.mark.parametrize("beta2", [0.0, 0.7])
def test_updates_of_rebrac_equal_the_slow_version(beta2: float) -> None:
    fast = learner("rebrac", seed=3, policy_penalty=0.3, critic_penalty=beta2, tau=0.1)
    assert "critics/scales.0" in fast.state()
    slow = SlowReBRAC(fast.state(), beta1=0.3, beta2=beta2, tau=0.1)
    for seed in range(5):
        batch = windows(seed)
        fast.update(batch)
        first = {name: value[:, 0] for name, value in batch.items()}
        beside = {"next_actions": batch["actions"][:, 1], "goes_on": batch["mask"][:, 1]}
        slow.update(doubles({**first, **beside}))
    assert_near(fast, slow)


def test_the_policy_moves_every_second_time_and_targets_with_it() -> None:
    one, start = learner("td3_bc"), learner("td3_bc")
    losses = one.update(rows(0))
    assert losses["policy_loss"].isnan().all()
    for part in ("policy", "targets"):
        assert not differ(one, start, part)
    assert differ(one, start, "critics")
    losses = one.update(rows(1))
    assert losses["policy_loss"].isfinite().all()
    for part in ("policy/", "policy_target/", "targets/"):
        assert differ(one, start, part)


def test_the_policys_loss_leaves_the_critics_alone() -> None:
    one, two = learner("td3_bc"), learner("td3_bc", policy_every=5)
    for seed in range(4):
        one.update(rows(seed))
        two.update(rows(seed))
        if seed < 2:  # later targets differ
            assert not differ(one, two, "critics")


@pytest.mark.parametrize("algo", ["td3_bc", "rebrac"])
def test_only_terminated_stops_bootstrapping(algo: str) -> None:
    batch = windows(0) if algo == "rebrac" else rows(0)
    cut, ended = dict(batch), dict(batch)
    cut["truncated"] = ~batch["truncated"]
    ended["discounts"] = torch.zeros_like(batch["discounts"])
    unchanged, same, other = learner(algo), learner(algo), learner(algo)
    for _ in range(2):
        unchanged.update(batch)
        same.update(cut)
        other.update(ended)
    assert_same(unchanged, same)
    assert differ(unchanged, other, "critics")


def test_next_actions_count_only_where_there_are_some() -> None:
    batch = windows(0)
    moved = dict(batch)
    beyond = (batch["mask"][:, 1] == 0)[:, None]
    actions = batch["actions"].clone()
    actions[:, 1] = torch.where(beyond, 1.0, actions[:, 1])
    moved["actions"] = actions
    one, two = learner("rebrac"), learner("rebrac")
    one.update(batch)
    two.update(moved)
    assert_same(one, two)
    moved["actions"] = torch.where(torch.tensor([False, True])[:, None], 1.0, batch["actions"])
    three = learner("rebrac")
    three.update(moved)
    assert differ(one, three, "critics")


def test_rewards_are_scaled_then_shifted() -> None:
    batch = rows(0)
    one, two = learner("td3_bc", reward_scale=2.0, reward_shift=-1.0), learner("td3_bc")
    one.update(batch)
    two.update({**batch, "rewards": 2.0 * batch["rewards"] - 1.0})
    assert_same(one, two)


@pytest.mark.parametrize(
    ("algo", "held", "free"),
    [
        ("td3_bc", {"alpha": 0.01}, {}),
        ("rebrac", {"policy_penalty": 30.0}, {"policy_penalty": 0.1}),
    ],
)
def test_goes_where_values_are_high_as_far_as_it_may(
    algo: str, held: dict[str, Any], free: dict[str, Any]
) -> None:
    """The reward grows with actions, whose mean in the data is 0."""
    actions = torch.linspace(-0.5, 0.5, 33)[:, None].expand(-1, A)
    batch = {
        "observations": torch.ones(33, O),
        "next_observations": torch.ones(33, O),
        "actions": actions,
        "rewards": actions.sum(dim=1),
        "discounts": torch.zeros(33),
        "mask": torch.ones(33),
    }
    if algo == "rebrac":
        batch = {name: torch.stack([value, value], dim=1) for name, value in batch.items()}

    def learned(settings: dict[str, Any]) -> torch.Tensor:
        made = learner(algo, critic_rate=3e-3, policy_rate=3e-3, **settings)
        for _ in range(150):
            made.update(batch)
        return made.act(torch.ones(1, O))[0]

    assert (learned(held).abs() < 0.1).all()
    assert (learned(free) > 0.3).all()


def test_exploration_is_the_policys_own() -> None:
    made = learner("td3_bc", exploration=0.2)
    states = rows(0)["observations"]
    noise = torch.ones(B, A, dtype=torch.float64)
    expected = made.act(states).double() + 0.2
    torch.testing.assert_close(made.explore(states, noise), expected, rtol=0, atol=1e-6)


def test_policy_and_values_of_rebrac_begin_near_zero() -> None:
    made = learner("rebrac", seed=[0, 1], policy_layer_norm=True)
    pairs = torch.cat([rows(0)["observations"], rows(0)["actions"]], dim=1).expand(2, -1, -1)
    assert made.critics(pairs).abs().max() < 0.06
    assert made.act(rows(0)["observations"], agent=1).abs().max() < 0.02


def test_kept_settings_without_norm_mean_the_norm_of_their_time() -> None:
    """Checkpoints hold all settings of their time; who sets some gets the defaults of today."""
    kept = learner("rebrac").settings.model_dump(mode="json")
    assert kept.pop("norm") == "after"
    assert learner("rebrac", **kept).settings.norm == "before"
    batch = windows(0)
    old, new = learner("rebrac", **kept), learner("rebrac")
    assert_same(old, new)
    old.update(batch)
    new.update(batch)
    assert differ(old, new, "critics")
