"""CQN against hand-computed losses and a slow version of the whole update."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learners import cqn
from learners.base import make_learner
from schemas.errors import ConfigError
from tests.learners.slow_cqn import SlowCQN
from tests.learners.worked import (
    SMALL,
    A,
    B,
    assert_near,
    assert_same,
    differ,
    doubles,
    learner,
    normaliser,
    rows,
)

GRID: dict[str, Any] = {"levels": 2, "bins": 3, "atoms": 11}
ONE = torch.ones(1, 1)


def test_dueling_by_hand() -> None:
    outputs = torch.tensor([[10.0], [1.0], [2.0], [6.0]])  # v, then a of three bins; one atom
    assert cqn.dueling(outputs).flatten().tolist() == [8.0, 9.0, 13.0]


@pytest.mark.parametrize(
    ("reward", "discount", "expected"),
    [
        (0.0, 1.0, [0.2, 0.3, 0.5]),
        (1.0, 0.0, [0.0, 0.0, 1.0]),  # ended with 1: all of it is there
        (0.5, 0.0, [0.0, 0.5, 0.5]),
        # -0.25, 0.25 and 0.75: three quarters of each stay with the nearer value
        (0.25, 0.5, [0.2 * 0.25, 0.2 * 0.75 + 0.3 * 0.75 + 0.5 * 0.25, 0.3 * 0.25 + 0.5 * 0.75]),
        (9.0, 0.9, [0.0, 0.0, 1.0]),  # beyond the ends
        (-9.0, 0.9, [1.0, 0.0, 0.0]),
    ],
)
def test_projection_by_hand(reward: float, discount: float, expected: list[float]) -> None:
    support = torch.tensor([-1.0, 0.0, 1.0])
    probs = torch.tensor([0.2, 0.3, 0.5]).view(1, 1, 1, 1, 3)
    found = cqn.projected(probs, reward * ONE, discount * ONE, support)
    assert found.flatten().tolist() == pytest.approx(expected, abs=1e-6)


@settings(max_examples=50)
@given(st.integers(0, 2**31), st.integers(2, 60), st.floats(-3, 3), st.floats(0, 1))
def test_projection_keeps_the_mass_and_inside_the_ends_the_mean(
    seed: int, atoms: int, reward: float, discount: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    support = torch.linspace(-2, 2, atoms, dtype=torch.float64)
    probs = torch.rand(1, 1, 2, 3, atoms, generator=generator, dtype=torch.float64).softmax(-1)
    shifted = cqn.projected(probs, reward * ONE.double(), discount * ONE.double(), support)
    assert shifted.min() >= 0
    np.testing.assert_allclose(shifted.sum(dim=-1), 1.0, atol=1e-12)
    if abs(reward) + 2 * discount <= 2:
        wanted = reward + discount * (probs @ support)
        np.testing.assert_allclose(shifted @ support, wanted, atol=1e-9)


def test_losses_by_hand() -> None:
    # One row, level and dim; two bins; three values -1, 0, 1. The first bin was taken.
    probs = torch.tensor([[0.5, 0.25, 0.25], [0.25, 0.25, 0.5]]).view(1, 1, 1, 1, 2, 3)
    choices = torch.zeros(1, 1, 1, 1, dtype=torch.int64)
    taken = cqn.chosen(probs, choices)
    assert taken.flatten().tolist() == [0.5, 0.25, 0.25]
    # cdfs 0.5 0.75 1 and 0.25 0.5 1: behind by 0.25 twice against the other, mean over both bins
    assert cqn.dominance_loss(probs, taken, ONE).item() == pytest.approx(0.5 / 2)
    better = cqn.chosen(probs, choices + 1)
    assert cqn.dominance_loss(probs, better, ONE).item() == 0.0
    # means -0.25 and 0.25, to be 0.1 better: short by 0.6; against itself by the margin
    support = torch.tensor([-1.0, 0.0, 1.0])
    q = probs @ support
    loss = cqn.margin_loss(q, taken @ support, 0.1, ONE)
    assert loss.item() == pytest.approx((0.6 + 0.1) / 2)
    targets = torch.tensor([0.0, 0.5, 0.5]).view(1, 1, 1, 1, 3)
    entropy = -(0.5 * math.log(0.25) + 0.5 * math.log(0.25))
    assert cqn.critic_loss(taken.log(), targets, ONE).item() == pytest.approx(entropy)


def test_losses_are_means_over_what_counts() -> None:
    probs = torch.rand(2, 4, 2, 3, 5, 7, generator=torch.Generator().manual_seed(0)).softmax(-1)
    choices = torch.ones(2, 4, 2, 3, dtype=torch.int64)
    taken = cqn.chosen(probs, choices)
    mask = torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 0]])
    whole = cqn.dominance_loss(probs, taken, mask)
    first = cqn.dominance_loss(probs[:1, :1], taken[:1, :1], ONE)
    third = cqn.dominance_loss(probs[:1, 2:3], taken[:1, 2:3], ONE)
    assert whole[0].item() == pytest.approx((first + third).item() / 2, rel=1e-6)
    assert whole[1].item() == 0.0


class Fixed:
    """A critic of one dim whose best bin is the second if nothing is known, then the last."""

    def __call__(self, features: torch.Tensor, known: torch.Tensor, level: int) -> torch.Tensor:
        probs = torch.full((*known.shape, 3, 2), 0.5)
        best = torch.where(known[..., 0] == 0, 1, 2) if level == 0 else torch.full((1, 1), 2)
        probs[..., 0, :, :].scatter_(-2, best.view(1, 1, 1, 1).expand(1, 1, 1, 2), 0.0)
        probs[0, 0, 0, int(best), 1] = 1.0
        self.seen = [*getattr(self, "seen", []), known.item()]
        return probs.log()


def test_zooms_into_the_best_bin_of_each_level() -> None:
    made = learner("cqn", levels=2, bins=3)
    codec = dataclasses.replace(made.codec, low=made.codec.low[:1], high=made.codec.high[:1])
    critic: Any = Fixed()
    cells = cqn.best_cells(critic, torch.zeros(1, 1, 4), codec, torch.tensor([0.0, 1.0]))
    assert codec.choices(cells).flatten().tolist() == [1, 2]
    assert critic.seen == [0.0, 0.0]  # the middle of the second of three bins is 0 again


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"levels": 1, "bins": 4, "critic_weight": 1.0, "value_low": -5.0, "value_high": 3.0},
        {"levels": 3, "bins": 2, "margin": 0.5, "demonstration_weight": 0.3},
    ],
)
def test_updates_equal_the_slow_version(form: dict[str, Any]) -> None:
    form = {**GRID, "tau": 0.1, **form}
    fast = learner("cqn", seed=3, decay=50.0, **form)
    slow = SlowCQN(fast.state(), dims=A, decay=50.0, **form)
    for seed in range(3):
        batch = rows(seed, 12)
        if seed:
            batch["is_demonstration"] = torch.arange(12) % 3 == 0
        fast.update(batch)
        slow.update(doubles(batch))
    assert_near(fast, slow)


def test_acts_by_the_slow_copy_and_learns_by_the_fast_one() -> None:
    made, other = learner("cqn", **GRID, critic_rate=1e-2), learner("cqn", **GRID)
    made.update(rows(0))
    states = rows(1)["observations"][None]
    found = made.greedy(states)
    made.critic.load_state_dict(other.critic.state_dict())
    assert torch.equal(made.greedy(states), found)
    made.policy.load_state_dict(other.policy.state_dict())
    assert torch.equal(made.greedy(states), other.greedy(states))


def test_demonstrations_count_only_where_rows_are_of_one() -> None:
    batch = {**rows(0), "is_demonstration": torch.zeros(B, dtype=torch.bool)}
    one, none, every = (learner("cqn", **GRID, critic_rate=1e-3) for _ in range(3))
    assert none.update(batch)["demonstration_loss"].item() == 0.0
    assert one.update(rows(0))["demonstration_loss"].item() > 0.0
    every.update({**batch, "is_demonstration": ~batch["is_demonstration"]})
    assert_same(one, every)
    assert differ(one, none, "critic/")
    weightless = learner("cqn", **GRID, critic_rate=1e-3, demonstration_weight=0.0)
    weightless.update(rows(0))
    assert_same(none, weightless)


def test_only_terminated_stops_bootstrapping() -> None:
    batch = rows(0)
    unchanged, same, other = (learner("cqn", **GRID) for _ in range(3))
    unchanged.update(batch)
    same.update({**batch, "truncated": ~batch["truncated"]})
    other.update({**batch, "discounts": torch.zeros(B)})
    assert_same(unchanged, same)
    assert differ(unchanged, other, "critic/")


def test_weights_shrink_apart_from_their_gradient() -> None:
    """Against PyTorch's AdamW on the same gradients."""
    made, before = learner("cqn", **GRID, critic_rate=1e-2, decay=0.3), learner("cqn", **GRID)
    twin = before.agents.flat["critic"].detach().clone().requires_grad_()
    adam = torch.optim.AdamW([twin], lr=1e-2, weight_decay=0.3)
    for seed in range(3):
        made.update(rows(seed))
        twin.grad = made.agents.flat["critic"].grad.clone()
        adam.step()
    torch.testing.assert_close(made.agents.flat["critic"].data, twin.data, rtol=1e-5, atol=1e-7)


def test_exploration_is_noise_of_a_share_of_the_range() -> None:
    range_of = np.array([[-1.0, 0.0], [1.0, 0.5]], np.float32)
    fitted = dataclasses.replace(normaliser((2.0, 1.0)), action_range=range_of)
    made = make_learner("cqn", {**SMALL, **GRID, "exploration": 0.1}, fitted)
    assert made.spread().tolist() == pytest.approx([0.1, 0.025])
    states, noise = rows(0)["observations"], torch.ones(B, A, dtype=torch.float64)
    expected = made.act(states).double() + torch.tensor([0.1, 0.025], dtype=torch.float64)
    torch.testing.assert_close(made.explore(states, noise), expected, rtol=0, atol=1e-6)
    acted = made.act(states)
    assert acted[:, 0].abs().max() < 1
    assert acted[:, 1].min() > 0


def test_finds_the_better_bins_and_what_they_are_worth() -> None:
    """One step, rewarded by how near both dims are to places that depend on the state."""
    generator = torch.Generator().manual_seed(0)
    count = 128
    side = (torch.rand(count, generator=generator) < 0.5).float() * 2 - 1
    actions = 2 * torch.rand(count, A, generator=generator) - 1
    batch = rows(0, count)
    batch["observations"] = side[:, None].expand(-1, 4)
    batch["actions"] = actions
    away = (actions[:, 0] - 0.5 * side).abs() + (actions[:, 1] + 0.5 * side).abs()
    batch["rewards"], batch["discounts"] = 1 - away / 2, torch.zeros(count)
    batch["is_demonstration"] = torch.zeros(count, dtype=torch.bool)
    made = learner("cqn", **{**GRID, "bins": 5}, critic_rate=5e-3, tau=0.2, critic_weight=1.0)
    for _ in range(120):
        made.update(batch)
    found = made.act(torch.tensor([[1.0] * 4, [-1.0] * 4]))
    wanted = torch.tensor([[0.5, -0.5], [-0.5, 0.5]])
    assert (found - wanted).abs().max() < 0.25


def test_rewards_are_scaled_then_shifted() -> None:
    batch = rows(0)
    one, two = learner("cqn", **GRID, reward_scale=2.0, reward_shift=-1.0), learner("cqn", **GRID)
    one.update(batch)
    two.update({**batch, "rewards": 2.0 * batch["rewards"] - 1.0})
    assert_same(one, two)


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="values from 2"):
        learner("cqn", value_low=2.0, value_high=1.0)
    with pytest.raises(ConfigError, match="cells are more than"):
        learner("cqn", levels=16)
    with pytest.raises(ConfigError, match="last layer of"):
        learner("cqn", levels=1, bins=4096, atoms=1024)


# -- discrete actions ------------------------------------------------------------------------------


def test_discrete_actions_are_the_bins_of_one_level() -> None:
    fitted = dataclasses.replace(normaliser((1.0,) * 3), choices=3)
    made = make_learner(
        "cqn", {**SMALL, "critic_rate": 3e-3, "tau": 0.2, "exploration": 0.1}, fitted
    )
    actions = torch.arange(96) % 3
    batch = {**rows(0, 96), "actions": actions, "discounts": torch.zeros(96)}
    batch["rewards"] = torch.tensor([0.0, 1.0, -1.0])[actions]
    batch["is_demonstration"] = torch.zeros(96, dtype=torch.bool)
    for _ in range(150):
        made.update(batch)
    states = batch["observations"]
    assert made.act(states).dtype == torch.int64
    assert made.act(states).tolist() == [1] * 96
    q = 0.1 * made.greedy(states[None])[0]
    torch.testing.assert_close(q.mean(dim=0), torch.tensor([0.0, 1.0, -1.0]), atol=0.1, rtol=0)
