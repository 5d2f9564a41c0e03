"""The Decision Transformer against a slow version, and how it acts from its history."""

from __future__ import annotations

from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from learners.acting import Stoppable, StoppedError
from learners.base import make_learner
from learners.dt import DT, Steps, action_loss, cut_gradients
from learners.normaliser import Normaliser
from learners.rollout import Collection, Exploration, Facts, collect
from learners.transformer import Linear
from schemas.errors import ConfigError
from tests.learners.homing import ENVIRONMENT
from tests.learners.slow_dt import SlowDT
from tests.learners.worked import A, O, assert_same, doubles, learner

T = 4
FORM: dict[str, Any] = {
    "target_return": 6.0,
    "context": T,
    "longest": 12,
    "blocks": 2,
    "heads": 2,
    "width": 8,
    "dropout": 0.0,
    "return_scale": 10.0,
    "learning_rate": 1e-3,
    "warm_up": 2,
}


def test_the_loss_by_hand_counts_real_steps() -> None:
    acted = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]], [[2.0, 2.0], [9.0, 9.0]]]])
    mask = torch.tensor([[[1.0, 1.0], [1.0, 0.0]]])
    loss = action_loss(acted, torch.zeros(1, 2, 2, 2), mask)
    assert loss.tolist() == pytest.approx([(0.5 + 0.0 + 4.0) / 3])


def test_gradients_are_cut_for_each_agent_alone() -> None:
    made = Linear(2, 1, [torch.Generator(), torch.Generator()])
    made.weight.grad = torch.tensor([[[3.0], [0.0]], [[0.1], [0.0]]])
    made.bias.grad = torch.tensor([[[4.0]], [[0.0]]])
    cut_gradients(made, 2, 1.0)
    assert made.weight.grad.flatten().tolist() == pytest.approx([0.6, 0.0, 0.1, 0.0], abs=1e-5)
    assert made.bias.grad.flatten().tolist() == pytest.approx([0.8, 0.0], abs=1e-5)


def test_updates_equal_the_slow_version() -> None:
    fast = _learner(largest_gradient=0.05)
    slow = SlowDT(
        fast.state(),
        heads=2,
        blocks=2,
        return_scale=10.0,
        rate=1e-3,
        warm_up=2,
        largest_gradient=0.05,
    )
    for seed in range(4):
        fast.update(_windows(seed))
        slow.update(doubles(_windows(seed)))
    state = fast.state()
    for name, expected in slow.p.items():
        got = state[f"network/{name}"][0].double()
        torch.testing.assert_close(got, expected.data, rtol=1e-3, atol=2e-5, msg=name)


def test_padding_changes_nothing() -> None:
    batch = _windows(0)
    other = dict(batch)
    for name in ("observations", "actions", "returns_to_go"):
        padded = batch["mask"].view(*batch["mask"].shape, *[1] * (batch[name].ndim - 2)) == 0
        other[name] = torch.where(padded, torch.tensor(7.0), batch[name])
    assert not torch.equal(other["actions"], batch["actions"])
    one, two = _learner(), _learner()
    one.update(batch)
    two.update(other)
    assert_same(one, two)


def test_no_action_depends_on_what_comes_later_or_on_itself() -> None:
    made, batch = _learner(), _windows(0)
    steps, _ = made._steps({**batch, "mask": torch.ones(8, T)})
    before = made.acted(steps)
    for name in ("actions", "states", "returns"):
        changed = getattr(steps, name).clone()
        changed[:, :, 2] += 1.0
        after = made.acted(Steps(**{**vars(steps), name: changed}))
        first = 3 if name == "actions" else 2
        torch.testing.assert_close(after[:, :, :first], before[:, :, :first])
        assert not torch.allclose(after[:, :, first], before[:, :, first])


def test_the_rate_rises_to_its_full_height() -> None:
    made = _learner(warm_up=4)
    rates = []
    for seed in range(6):
        made.update(_windows(seed))
        rates.append(made.adam.rates[0])
    assert rates == pytest.approx([2.5e-4, 5e-4, 7.5e-4, 1e-3, 1e-3, 1e-3])


def test_a_return_to_reach_must_be_given() -> None:
    with pytest.raises(ConfigError, match="target_return"):
        learner("dt")
    with pytest.raises(ConfigError, match="heads"):
        _learner(heads=3)


def test_acts_as_the_network_does_on_the_whole_history() -> None:
    """Longer than the context, in two copies of which one begins anew."""
    made = _learner(seed=4)
    memory = made.remembering(2)
    random = np.random.default_rng(0)
    past: list[list[tuple[Tensor, Tensor, float, int]]] = [[], []]
    for step in range(7):
        states = torch.as_tensor(random.normal(size=(2, O)), dtype=torch.float32)
        acted = memory.act(states)
        for copy in range(2):
            done = past[copy]
            wanted = 6.0 - sum(reward for _, _, reward, _ in done)
            known = done[-(T - 1) :]
            rewards = [reward for _, _, reward, _ in known]
            returns = [wanted + sum(rewards[k:]) for k in range(len(rewards))] + [wanted]
            steps = Steps(
                torch.tensor(returns)[None, None] / 10.0,
                torch.stack([*(one[0] for one in known), states[copy]])[None, None],
                torch.stack([*(one[1] for one in known), torch.zeros(A)])[None, None],
                torch.arange(len(done) - len(known), len(done) + 1)[None, None],
            )
            torch.testing.assert_close(acted[copy], made.acted(steps)[0, 0, -1].detach())
            action = random.uniform(-1, 1, A).astype(np.float32)
            memory.after(copy, action, float(step))
            done.append((states[copy], torch.as_tensor(action), float(step), len(done)))
        if step == 2:
            memory.begin(1)
            past[1] = []


@pytest.mark.usefixtures("homing")
@pytest.mark.parametrize("kind", ["none", "gaussian", "policy"])
def test_episodes_do_not_depend_on_how_many_are_played_at_once(kind: Any) -> None:
    zero, one = np.zeros(1, np.float32), np.ones(1, np.float32)
    made = make_learner("dt", FORM, Normaliser(("observations",), zero, one, one), 1)
    plan = Collection(ENVIRONMENT, episodes=5, exploration=Exploration(kind, 0.3))
    alone = Collection(ENVIRONMENT, episodes=5, exploration=Exploration(kind, 0.3), slots=1)
    facts = Facts(namespace="here")
    for left, right in zip(collect(made, plan, facts), collect(made, alone, facts), strict=True):
        mine, theirs = (e.flat_actions["actions"] for e in (left, right))
        np.testing.assert_allclose(np.asarray(mine), np.asarray(theirs), atol=1e-5)
        assert left.length == right.length


@pytest.mark.usefixtures("homing")
def test_who_can_be_stopped_acts_from_its_history_as_others_do() -> None:
    zero, one = np.zeros(1, np.float32), np.ones(1, np.float32)
    made = make_learner("dt", FORM, Normaliser(("observations",), zero, one, one), 1)
    plan, facts, stop = Collection(ENVIRONMENT, episodes=3), Facts(namespace="here"), Event()
    acting = Stoppable(made, stop)
    for left, right in zip(collect(made, plan, facts), collect(acting, plan, facts), strict=True):
        mine, theirs = (np.asarray(e.flat_actions["actions"]) for e in (left, right))
        np.testing.assert_array_equal(mine, theirs)
    stop.set()
    with pytest.raises(StoppedError):
        list(collect(acting, plan, facts))


def _learner(seed: int = 0, **settings: Any) -> DT:
    made = learner("dt", seed, **{**FORM, **settings})
    assert isinstance(made, DT)
    return made


def _windows(seed: int, count: int = 8) -> dict[str, Tensor]:
    """Windows of T steps, of which the last ones may be padding."""
    generator = torch.Generator().manual_seed(seed)
    real = torch.randint(1, T + 1, (count, 1), generator=generator)
    first = torch.randint(0, 9, (count, 1), generator=generator)
    return {
        "observations": torch.randn(count, T, O, generator=generator),
        "actions": 2 * torch.rand(count, T, A, generator=generator) - 1,
        "returns_to_go": 10 * torch.randn(count, T, generator=generator),
        "timesteps": first + torch.arange(T),
        "mask": (torch.arange(T) < real).float(),
    }
