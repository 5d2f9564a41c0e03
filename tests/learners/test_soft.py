"""CQL, Cal-QL and RLPD against hand-computed losses and slow versions of the whole update."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from learners import cal_ql, cql, rlpd, soft
from learners.base import Transitions
from learners.ranks import ALONE, Ranks
from pipeline.stream.counts import interleave
from schemas.errors import ConfigError, UsageError
from tests.learners.slow_soft import SlowCalQL, SlowCQL, SlowRLPD
from tests.learners.worked import (
    SMALL,
    A,
    B,
    assert_near,
    assert_same,
    differ,
    doubles,
    learner,
    rows,
)

FORMS: list[dict[str, Any]] = [
    {},
    {"samples": 4, "sharpness": 0.5, "entropy_target": True},
    {"samples": 3, "lagrange": 0.8, "max_target": True, "weight": 5.0},
    {"samples": 3, "max_target": True, "entropy_target": True, "lowest_gap": 2.0},
]
for one in FORMS:
    one["tau"] = 0.1  # slow copies are to move far enough to tell
POLICY = {"policy_hidden": SMALL["hidden"]}


def test_losses_of_policy_and_temperature_by_hand() -> None:
    log_probs, q_t = torch.tensor([[-1.0, 2.0]]), torch.tensor([[3.0, 1.0]])
    alpha = torch.tensor([0.5], requires_grad=True)
    mask = torch.ones(1, 2)
    assert soft.policy_loss(log_probs, q_t, alpha, mask).item() == pytest.approx(
        (-0.5 - 3 + 1 - 1) / 2
    )
    loss = soft.temperature_loss(alpha, log_probs, -2.0, mask)
    assert loss.item() == pytest.approx(-0.5 * (0.5 - 2.0))
    loss.backward()
    # Entropy -0.5 is above the target of -2, so the temperature is to fall.
    assert alpha.grad is not None
    assert alpha.grad.item() == pytest.approx(1.5)


def test_conservative_gap_by_hand() -> None:
    gap = cql.conservative_gap(
        q_random=torch.tensor([1.0, 2.0]).view(1, 1, 2, 1),
        q_policy=torch.tensor([0.5]).view(1, 1, 1, 1),
        log_policy=torch.tensor([-0.3]).view(1, 1, 1),
        q_data=torch.tensor([4.0]).view(1, 1, 1),
        action_dims=3,
        sharpness=2.0,
    )
    # a uniform action on the box has density 1/8
    terms = [1.0 + math.log(8), 2.0 + math.log(8), 0.5 + 0.3]
    expected = 2.0 * math.log(sum(math.exp(term / 2.0) for term in terms)) - 4.0
    assert gap.item() == pytest.approx(expected, rel=1e-6)


def test_shifted_returns_by_hand() -> None:
    rewards, gamma = [1.0, 0.0, 3.0], 0.9
    raw = sum(gamma**k * r for k, r in enumerate(rewards))
    expected = sum(gamma**k * (10 * r - 5) for k, r in enumerate(rewards))
    found = cal_ql.shifted_returns(torch.tensor([raw]), torch.tensor([3]), gamma, 10.0, -5.0)
    assert found.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("failure", "success"), [(0.0, 1.0), (-1.0, 0.0)])
def test_failures_are_known_by_their_return(failure: float, success: float) -> None:
    gamma, returns, steps = 0.99, [], [1, 7, 300, 1, 7, 300]
    for number, count in enumerate(steps):
        rewards = [failure] * (count - 1) + [failure if number < 3 else success]
        returns.append(sum(gamma**k * r for k, r in enumerate(rewards)))
    found = cal_ql.endless_failures(torch.tensor(returns), torch.tensor(steps), gamma, failure)
    assert found.tolist() == [True] * 3 + [False] * 3


@pytest.mark.parametrize("form", FORMS)
def test_updates_of_cql_equal_the_slow_version(form: dict[str, Any]) -> None:
    fast = learner("cql", seed=5, **POLICY, **form)
    slow = SlowCQL(fast.state(), **form)
    for seed in range(4):
        fast.update(rows(seed))
        slow.update(doubles(rows(seed)))
    assert_near(fast, slow)


@pytest.mark.parametrize("form", FORMS[:3])
def test_updates_of_cal_ql_equal_the_slow_version(form: dict[str, Any]) -> None:
    form = {"weight": 5.0, "lagrange": None, "max_target": False, **form}
    fast = learner("cal_ql", seed=5, policy_rate=3e-5, lowest_gap=-math.inf, **POLICY, **form)
    slow = SlowCalQL(fast.state(), **form)
    plain = SlowCQL(fast.state(), **form)
    for seed in range(4):
        fast.update(rows(seed))
        for one in (slow, plain):
            one.update(doubles(rows(seed)))
    assert_near(fast, slow)
    with pytest.raises(AssertionError):
        assert_near(fast, plain)


def test_failed_returns_go_on_for_ever() -> None:
    batch = {
        **rows(0, 3),
        "returns_to_go": torch.tensor([0.0, 0.99**9, 0.0]),
        "steps_to_go": torch.tensor([10, 10, 1]),
    }
    settings = {"reward_scale": 10.0, "reward_shift": -5.0}
    floor = learner("cal_ql", **settings, failed_reward=0.0).value_floor(batch)[0]
    success = sum(0.99**k * -5 for k in range(9)) + 0.99**9 * 5
    assert floor.tolist() == pytest.approx([-500.0, success, -500.0], rel=1e-5)
    taken = learner("cal_ql", **settings).value_floor(batch)[0]
    cut = -5 * (1 - 0.99**10) / 0.01
    assert taken.tolist() == pytest.approx([cut, success, -5.0], rel=1e-5)


def test_calibration_stays_on_for_rollouts() -> None:
    """Returns count in every row alike; nothing tells old data from new."""
    low, high = rows(0), rows(0)
    low["returns_to_go"], high["returns_to_go"] = torch.full((B,), -9e9), torch.full((B,), 50.0)
    one, two, plain = learner("cal_ql"), learner("cal_ql"), learner("cal_ql")
    one.update(low)
    two.update(high)
    assert differ(one, two, "critics")
    assert not differ(one, two, "policy")
    plain.update({name: low[name] for name in low if name != "is_online"})
    assert_same(one, plain)


def test_conservative_values_are_lower_where_the_data_are_not() -> None:
    near = 0.2 * rows(0, 128)["actions"]
    batch = {**rows(0, 128), "actions": near, "discounts": torch.zeros(128)}
    batch["rewards"] = torch.zeros(128)

    def values_far_off(**settings: Any) -> float:
        made = learner("cql", critic_rate=3e-3, samples=4, **settings)
        for _ in range(60):
            made.update(batch)
        far = torch.full((1, 128, A), 0.9)
        pairs = torch.cat([batch["observations"][None], far], dim=-1)
        found: float = made.critics(pairs).mean().item()
        return found

    assert values_far_off(weight=5.0) < values_far_off(weight=0.0) - 0.5


@pytest.mark.parametrize("updates", [1, 4])
def test_updates_of_rlpd_equal_the_slow_version(updates: int) -> None:
    fast = learner("rlpd", seed=2, updates=updates, tau=0.1)
    assert fast.state()["critics/scales.0"].shape == (10, 1, 16)
    slow = SlowRLPD(fast.state(), updates=updates, tau=0.1)
    for seed in range(3):
        batch = rows(seed, updates * B)
        fast.update(batch)
        slow.update(doubles(batch))
    assert_near(fast, slow)


def test_the_least_of_a_few_members() -> None:
    q_tp1 = torch.tensor([[[5.0], [1.0], [3.0]], [[5.0], [1.0], [3.0]]])
    order = torch.tensor([[0.1, 0.9, 0.2], [0.8, 0.1, 0.2]])
    assert rlpd.least_of_some(q_tp1, order, 2).tolist() == [[3.0], [1.0]]
    assert rlpd.least_of_some(q_tp1, order, 1).tolist() == [[5.0], [1.0]]
    assert rlpd.least_of_some(q_tp1, order, 3).tolist() == [[1.0], [1.0]]


def test_rows_are_dealt_out_by_hand() -> None:
    flat = torch.arange(16.0).view(2, 8)
    b = Transitions(*[flat] * 6)
    # The second round begins one part further on, where the number of parts is even.
    assert [part.rewards.tolist() for part in rlpd.in_parts(b, 4)] == [
        [[0.0, 7.0], [8.0, 15.0]],
        [[1.0, 4.0], [9.0, 12.0]],
        [[2.0, 5.0], [10.0, 13.0]],
        [[3.0, 6.0], [11.0, 14.0]],
    ]
    with pytest.raises(UsageError, match="multiple"):
        rlpd.in_parts(b, 3)


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("parts", [1, 2, 5, 20])
def test_shares_of_ranks_are_dealt_out_as_their_shares_of_parts(parts: int, ranks: int) -> None:
    rounds, one = 24, torch.device("cpu")
    whole = rlpd.dealt(rounds, parts, ALONE, one)
    assert sorted(whole.flatten().tolist()) == list(range(rounds * parts))
    mine = rounds // ranks
    for rank in range(ranks):
        found = rlpd.dealt(mine, parts, Ranks(rank, ranks), one) + rank * mine * parts
        assert torch.equal(found, whole[:, rank * mine : (rank + 1) * mine])


@pytest.mark.parametrize("parts", [2, 3, 4, 5, 20])
def test_each_part_has_its_share_of_each_source(parts: int) -> None:
    rounds = 64
    owners = torch.tensor(interleave((rounds * parts // 2, rounds * parts // 2)))
    halves = owners[rlpd.dealt(rounds, parts, ALONE, owners.device)].sum(dim=1)
    assert halves.tolist() == [rounds // 2] * parts
    owners = torch.tensor(interleave((rounds * parts // 4, 3 * rounds * parts // 4)))
    quarters = owners[rlpd.dealt(rounds, parts, ALONE, owners.device)].sum(dim=1)
    assert (quarters - 3 * rounds // 4).abs().max() <= 8


def test_a_minimum_is_of_members_that_there_are() -> None:
    with pytest.raises(ConfigError, match="minimum of 3"):
        learner("rlpd", members=2, minimum_of=3)


@pytest.mark.parametrize("algo", ["cql", "cal_ql", "rlpd"])
def test_only_terminated_stops_bootstrapping(algo: str) -> None:
    settings = {"updates": 2} if algo == "rlpd" else {"samples": 2}
    batch = rows(0)
    unchanged, same, other = (learner(algo, **settings) for _ in range(3))
    unchanged.update(batch)
    same.update({**batch, "truncated": ~batch["truncated"]})
    other.update({**batch, "discounts": torch.zeros(B)})
    assert_same(unchanged, same)
    assert differ(unchanged, other, "critics")


@pytest.mark.parametrize("algo", ["cql", "rlpd"])
def test_exploration_is_a_sample_of_the_policy(algo: str) -> None:
    made = learner(algo, updates=1) if algo == "rlpd" else learner(algo)
    states = rows(0)["observations"]
    noise = torch.randn(B, A, generator=torch.Generator().manual_seed(1))
    expected, _ = made.policy.sample(states[None], noise[None])
    torch.testing.assert_close(made.explore(states, noise.numpy()), expected[0].detach().double())
    torch.testing.assert_close(made.explore(states, 0 * noise), made.act(states).double())
