"""ARSQ against hand-computed losses, its own identities and a slow version of the whole update."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learners import arsq
from learners.base import Learner, make_learner
from schemas.errors import ConfigError
from tests.learners.slow_arsq import SlowARSQ
from tests.learners.worked import (
    SMALL,
    A,
    B,
    O,
    assert_near,
    assert_same,
    differ,
    doubles,
    learner,
    normaliser,
    rows,
)

GRID: dict[str, Any] = {"levels": 2, "bins": 3}


def _all_choices(made: Any) -> torch.Tensor:
    """Every cell of all dims there is, (cells, D)."""
    cells = itertools.product(range(made.codec.cells), repeat=made.codec.dims)
    return torch.tensor(list(cells))


def _rough(made: Any, scale: float = 30.0) -> Any:
    """The same learner with last layers that tell choices apart; its agents' weights alike."""
    made.policy.weights.data.mul_(scale)
    made.values.weights[-1].data.mul_(scale)
    return made


def test_normalised_advantages_by_hand() -> None:
    # alpha 0.5: logits 0, 2 log 2 and log 2 weigh 1, 4 and 2, of 7
    raw = torch.tensor([0.0, math.log(2), 0.5 * math.log(2)])
    found = arsq.normalised(raw, 0.5)
    assert found.tolist() == pytest.approx([0.5 * math.log(w / 7) for w in (1, 4, 2)], abs=1e-6)
    assert torch.logsumexp(found / 0.5, dim=-1).item() == pytest.approx(0.0, abs=1e-6)


def test_leads_by_hand() -> None:
    # Three choices of probability 1/7, 4/7, 2/7 at alpha 0.5; the second, then the first is made.
    advantages = 0.5 * torch.tensor([1 / 7, 4 / 7, 2 / 7]).log().view(1, 1, 1, 1, 3)
    second, first = (torch.full((1, 1, 1), k) for k in (1, 0))
    odds = [0.5 * math.log(3 / 4), 0.5 * math.log(6 / 1)]
    assert arsq.odds_lead(advantages, second, 0.5, 9.0).item() == pytest.approx(odds[0], abs=1e-6)
    assert arsq.odds_lead(advantages, first, 0.5, 9.0).item() == pytest.approx(odds[1], abs=1e-6)
    assert arsq.odds_lead(advantages, second, 0.5, 0.1).item() == pytest.approx(-0.1)
    leads = [0.5 * math.log(1 / 4), 0.5 * math.log(2 / 4)]
    found = arsq.mean_lead(advantages, second, 9.0).item()
    assert found == pytest.approx(sum(leads) / 2, abs=1e-6)
    found = arsq.mean_lead(advantages, second, 0.5).item()
    assert found == pytest.approx((-0.5 + leads[1]) / 2, abs=1e-6)


def test_leads_are_sums_over_the_choices_of_a_row() -> None:
    raw = torch.randn(2, 2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    advantages = arsq.normalised(raw, 0.1)
    choices = torch.arange(24).view(2, 3, 4) % 5
    for lead in (
        lambda a, c: arsq.odds_lead(a, c, 0.1, 0.2),
        lambda a, c: arsq.mean_lead(a, c, 0.2),
    ):
        whole = lead(advantages, choices)
        parts = [lead(advantages[..., n : n + 1, :], choices[..., n : n + 1]) for n in range(4)]
        torch.testing.assert_close(whole, sum(parts))


def test_known_before_each_choice_by_hand() -> None:
    # two levels of two dims: middles before level 0, before level 1 and at the end
    midpoints = torch.tensor([[0.0, 0.0], [0.1, 0.2], [0.3, 0.4]])
    expected = [[0.0, 0.0], [0.1, 0.0], [0.1, 0.2], [0.3, 0.2]]
    np.testing.assert_allclose(arsq.known_before(midpoints), expected)


@pytest.mark.parametrize("grid", [{"levels": 2, "bins": 3}, {"levels": 1, "bins": 5}])
def test_the_log_policy_sums_to_one_over_all_actions(grid: dict[str, int]) -> None:
    """And the value is alpha log sum exp(Q / alpha), for each twin: by enumeration."""
    made = _rough(learner("arsq", seed=1, alpha=0.1, **grid))
    cells = _all_choices(made)[None]  # (1, N, D)
    state = torch.randn(O, generator=torch.Generator().manual_seed(5))
    states = state.expand(1, cells.shape[1], O)
    raw = made.policy(states, arsq.known_before(made.codec.midpoints(cells)))
    advantages = arsq.normalised(raw, 0.1).double()
    total = arsq.taken(advantages, made.codec.choices(cells).flatten(-2)).sum(dim=-1)  # (1, 2, N)
    assert total.shape[-1] == grid["bins"] ** (grid["levels"] * A)
    np.testing.assert_allclose(torch.exp(total / 0.1).sum(dim=-1).detach(), 1.0, atol=1e-5)
    spread = (total / 0.1).exp().amax(dim=-1) * total.shape[-1]
    assert (spread > 2).all()  # by far not uniform
    v = made.values(states)[..., 0].double()  # (1, 2, N)
    q = v + total
    np.testing.assert_allclose(
        (0.1 * torch.logsumexp(q / 0.1, dim=-1)).detach(), v[..., 0].detach(), atol=1e-5
    )


def _enumerated(made: Any, states: torch.Tensor) -> torch.Tensor:
    """Probability of every cell under the policy that acts, (cells,), for one state (1, 1, O)."""
    found = []
    for cells in _all_choices(made):
        wanted = made.codec.choices(cells[None]).flatten().tolist()
        log_p = 0.0

        def pick(log_pi: torch.Tensor, _: int, wanted: list[int] = wanted) -> torch.Tensor:
            nonlocal log_p
            choice = wanted.pop(0)
            log_p += log_pi[0, 0, choice].item()
            return torch.full((1, 1), choice)

        made.cells_by(states, pick)
        found.append(math.exp(log_p))
    return torch.tensor(found, dtype=torch.float64)


def test_what_acts_is_a_policy_too_and_is_drawn_from_as_such() -> None:
    made = _rough(learner("arsq", seed=1, alpha=0.1, **GRID))
    state = torch.randn(1, O, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        probs = _enumerated(made, state[None])
    assert probs.sum().item() == pytest.approx(1.0, abs=1e-5)
    count = 20_000
    noise = torch.randn(count, A, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    drawn = made.codec.cell(made.explore(state.expand(count, O), noise))
    seen = torch.bincount(drawn[:, 0] * made.codec.cells + drawn[:, 1], minlength=len(probs))
    error = (seen / count - probs) / (probs * (1 - probs) / count).sqrt()
    assert error.abs().max() < 4.5
    assert (probs > 0.01).sum() > 5


def test_greedy_takes_the_likeliest_choice_in_sight_of_those_before() -> None:
    made = _rough(learner("arsq", seed=2, alpha=0.1, **GRID))
    state = torch.randn(1, 1, O, generator=torch.Generator().manual_seed(5))
    known, wanted = torch.zeros(1, 1, A), []
    ends = [(-1.0, 1.0)] * A
    for place in range(4):
        with torch.no_grad():
            choice = made.log_policy(state, known, place).argmax().item()
        low, high = ends[place % A]
        width = (high - low) / 3
        ends[place % A] = (low + choice * width, low + (choice + 1) * width)
        known = torch.tensor([[[(low + high) / 2 for low, high in ends]]])
        wanted.append(choice)
    cells = made.codec.cell(made.greedy(state))
    assert made.codec.choices(cells).flatten().tolist() == wanted
    torch.testing.assert_close(made.greedy(state), known)


@settings(max_examples=100)
@given(
    st.lists(st.floats(0, 1), min_size=2, max_size=8).filter(lambda p: sum(p) > 0.1),
    st.floats(0, 1, exclude_max=True),
)
def test_quantiles_fall_into_choices_by_their_probability(weights: list[float], at: float) -> None:
    probs = torch.tensor([weights], dtype=torch.float64)
    probs = probs / probs.sum()
    choice, within = arsq.quantile(probs, torch.tensor([at], dtype=torch.float64))
    before = probs[0, : choice.item()].sum().item()
    assert probs[0, choice.item()] > 0
    assert 0 <= within.item() < 1
    assert before + within.item() * probs[0, choice.item()].item() == pytest.approx(at, abs=1e-9)


def test_of_last_layers_only_the_one_at_hand_counts() -> None:
    """All places at once are the same as one after the other."""
    made = _rough(learner("arsq", (1, 2), **GRID))
    generator = torch.Generator().manual_seed(0)
    states, known = torch.randn(2, 5, O, generator=generator), torch.randn(2, 5, 4, A)
    with torch.no_grad():
        every = made.policy(states, known)
        for place in range(4):
            one = made.policy.at(states, known[:, :, place], place)
            torch.testing.assert_close(every[:, :, :, place], one, rtol=1e-5, atol=1e-6)
    last = made.policy.weights
    assert last.shape == (2 * arsq.TWINS, 4, 16, 3)


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"levels": 1, "bins": 5, "alpha": 0.3, "demonstration_term": "margin"},
        {"alpha": 0.05, "margin": 0.02, "demonstration_weight": 3.0, "bellman_weight": 0.1},
    ],
)
def test_updates_equal_the_slow_version(form: dict[str, Any]) -> None:
    form = {**GRID, "tau": 0.1, **form}
    fast = learner("arsq", seed=3, **form)
    start = {name: tensor.clone() for name, tensor in fast.state().items()}
    slow = SlowARSQ(start, dims=A, **form)
    for seed in range(3):
        batch = rows(seed, 12)
        if seed:
            batch["is_demonstration"] = torch.arange(12) % 3 == 0
        fast.update(batch)
        slow.update(doubles(batch))
    assert_near(fast, slow)
    state = fast.state()
    for name in ("weights", "biases"):
        theirs = torch.stack([getattr(twin, name).data for twin in slow.twins])
        mine = state[f"policy/{name}"].double()
        torch.testing.assert_close(mine, theirs, rtol=2e-5, atol=3e-6)


def test_demonstrations_count_only_where_rows_are_of_one() -> None:
    batch = {**rows(0), "is_demonstration": torch.zeros(B, dtype=torch.bool)}
    one, none, every, without = (
        learner("arsq", **GRID, demonstration_weight=weight) for weight in (1.0, 1.0, 1.0, 0.0)
    )
    assert none.update(batch)["demonstration_loss"].item() == 0.0
    one.update(rows(0))
    every.update({**batch, "is_demonstration": ~batch["is_demonstration"]})
    without.update(rows(0))
    assert_same(one, every)
    assert differ(one, none, "policy/")
    assert_same(none, without)


def test_only_terminated_stops_bootstrapping() -> None:
    batch = rows(0)
    unchanged, same, other = (_rough(learner("arsq", **GRID)) for _ in range(3))
    unchanged.update(batch)
    same.update({**batch, "truncated": ~batch["truncated"]})
    other.update({**batch, "discounts": torch.zeros(B)})
    assert_same(unchanged, same)
    assert differ(unchanged, other, "values/")


def test_rewards_are_scaled_then_shifted() -> None:
    batch = rows(0)
    one = learner("arsq", **GRID, reward_scale=2.0, reward_shift=-1.0)
    two = learner("arsq", **GRID)
    one.update(batch)
    two.update({**batch, "rewards": 2.0 * batch["rewards"] - 1.0})
    assert_same(one, two)


def test_a_demonstrated_choice_is_left_alone_once_it_leads_enough() -> None:
    """Without rewards to learn from, the policy goes to the demonstrated cell, and stops there."""
    batch = {**rows(0), "actions": torch.tensor([[0.7, -0.7]]).expand(B, A)}
    made = learner("arsq", **GRID, alpha=0.1, bellman_weight=0.0, advantage_rate=3e-3)
    for _ in range(150):
        losses = made.update(batch)
    found = made.codec.choices(made.codec.cell(made.act(batch["observations"])))
    assert torch.equal(found, made.codec.encode(batch["actions"]))
    assert losses["demonstration_loss"].item() == pytest.approx(-2 * 4 * 10 * 0.1, rel=0.02)


def test_a_policy_of_dims_that_belong_together_is_learned() -> None:
    """Two of four corners are good; each dim on its own would find all of them alike."""
    generator = torch.Generator().manual_seed(0)
    sides = torch.randint(0, 2, (256, A), generator=generator) * 2 - 1
    batch = {**rows(0, 256), "actions": 0.5 * sides, "discounts": torch.zeros(256)}
    batch["rewards"] = (sides[:, 0] == sides[:, 1]).float()
    form = {"levels": 1, "bins": 2, "alpha": 0.2, "demonstration_weight": 0.0, "activation": "relu"}
    made = learner("arsq", **form, advantage_rate=1e-2, value_rate=1e-2)
    for _ in range(150):
        made.update(batch)
    state = torch.zeros(1, 1, O)
    with torch.no_grad():
        probs = _enumerated(made, state)  # (- -), (- +), (+ -), (+ +)
    good = math.exp(1 / 0.2)
    expected = torch.tensor([good, 1, 1, good], dtype=torch.float64) / (2 * good + 2)
    torch.testing.assert_close(probs, expected, atol=0.05, rtol=0)


def test_a_rare_good_action_is_found_that_each_dim_on_its_own_misses() -> None:
    """The example that the paper begins with: what is common hides what is good."""
    modes = torch.tensor([[0.6, 0.6], [0.6, -0.6], [-0.6, 0.6]])
    which = torch.tensor([0] * 8 + [1] * 36 + [2] * 36)
    batch = {**rows(0, 80), "actions": modes[which], "discounts": torch.zeros(80)}
    batch["rewards"] = torch.tensor([1.0, 0.1, -1.0])[which]
    batch["is_demonstration"] = torch.zeros(80, dtype=torch.bool)
    batch["observations"] = torch.ones(80, O)
    form = {"levels": 1, "bins": 2}
    rates = {"advantage_rate": 1e-2, "value_rate": 1e-2}
    aware = learner("arsq", **form, **rates, alpha=0.05)
    alone = learner("cqn", **form, critic_rate=1e-2, critic_weight=1.0, tau=0.2)
    for _ in range(100):
        aware.update(batch)
        alone.update(batch)
    assert aware.act(torch.ones(1, O)).tolist() == [[0.5, 0.5]]
    # Means of a dim: 0.26 beyond 0 against -1, and -0.64 against 0.1.
    assert alone.act(torch.ones(1, O)).tolist() == [[0.5, -0.5]]


# -- discrete actions: soft Q-learning -------------------------------------------------------------


def _discrete(count: int, seed: int = 0, **form: Any) -> Learner:
    fitted = dataclasses.replace(normaliser((1.0,) * count), choices=count)
    return make_learner("arsq", {**SMALL, **form}, fitted, seed)


def test_one_choice_is_soft_q_learning_by_hand() -> None:
    """The loss is that of V + A against r + discount min V', A normalised."""
    made: Any = _rough(_discrete(3, alpha=0.5, demonstration_weight=0.0))
    batch = {**rows(0, 6), "actions": torch.tensor([0, 1, 2, 0, 1, 2])}
    with torch.no_grad():
        s, s_next = batch["observations"][None], batch["next_observations"][None]
        raw = made.policy(s, torch.zeros(1, 6, 1, 1))[0, :, :, 0].double()  # (2, 6, 3)
        v = made.values(s)[0, ..., 0].double()  # (2, 6)
        v_next = made.targets(s_next)[0, ..., 0].double()
    losses = []
    for twin in range(2):
        for row in range(6):
            weights = [math.exp(raw[twin, row, a].item() / 0.5) for a in range(3)]
            advantage = 0.5 * math.log(weights[int(batch["actions"][row])] / sum(weights))
            target = batch["rewards"][row].item()
            target += batch["discounts"][row].item() * v_next[:, row].min().item()
            losses.append((v[twin, row].item() + advantage - target) ** 2)
    found = made.update(batch)["bellman_loss"].item()
    assert found == pytest.approx(sum(losses) / 6, rel=1e-5)


def test_converges_to_the_soft_values_of_a_small_world() -> None:
    """Three states in a ring and two actions, to stay or to go on; against value iteration."""
    alpha, gamma = 0.5, 0.6
    rewards = [[0.0, 0.5], [0.2, -0.3], [1.0, 0.0]]
    v = [0.0] * 3
    for _ in range(200):
        q = [[rewards[s][a] + gamma * v[(s + a) % 3] for a in (0, 1)] for s in range(3)]
        v = [alpha * math.log(sum(math.exp(x / alpha) for x in row)) for row in q]
    pairs = [(s, a) for s in range(3) for a in (0, 1)] * 4
    eye = torch.cat([torch.eye(3), torch.zeros(3, 1)], dim=1)
    batch = {
        "observations": torch.stack([eye[s] for s, _ in pairs]),
        "next_observations": torch.stack([eye[(s + a) % 3] for s, a in pairs]),
        "actions": torch.tensor([a for _, a in pairs]),
        "rewards": torch.tensor([rewards[s][a] for s, a in pairs]),
        "discounts": torch.full((24,), gamma),
        "mask": torch.ones(24),
    }
    fast = {"tau": 0.1, "advantage_rate": 1e-2, "value_rate": 1e-2}
    made: Any = _discrete(2, alpha=alpha, demonstration_weight=0.0, **fast)
    for _ in range(300):
        made.update(batch)
    with torch.no_grad():
        values = made.values(eye[None])[0, ..., 0]
        log_pi = made.greedy(eye[None])[0]
    torch.testing.assert_close(values, torch.tensor([v, v]), atol=0.03, rtol=0)
    wanted = torch.tensor([[(q[s][a] - v[s]) / alpha for a in (0, 1)] for s in range(3)])
    torch.testing.assert_close(log_pi, wanted, atol=0.1, rtol=0)
    assert made.act(eye).tolist() == wanted.argmax(dim=1).tolist()


def test_discrete_actions_are_drawn_from_the_policy() -> None:
    made: Any = _rough(_discrete(4, alpha=0.1))
    state, count = torch.ones(1, O), 20_000
    probs = made.greedy(state[None])[0, 0].double().exp()
    noise = torch.randn(count, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = torch.bincount(made.explore(state.expand(count, O), noise), minlength=4)
    assert probs.sum().item() == pytest.approx(1.0, abs=1e-5)
    error = (drawn / count - probs) / (probs * (1 - probs) / count).sqrt()
    assert error.abs().max() < 4.5


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="cells are more than"):
        learner("arsq", levels=16)
    with pytest.raises(ConfigError, match="hidden"):
        learner("arsq", hidden=())
    with pytest.raises(ConfigError, match="'cql' or 'margin'"):
        learner("arsq", demonstration_term="hinge")
