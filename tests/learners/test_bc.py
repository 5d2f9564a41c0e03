from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from learners.base import Learner, make_learner
from learners.bc import negative_log_likelihood, squared_error
from learners.normaliser import Normaliser

GAIN = torch.tensor([[0.5, -0.2], [0.1, 0.4], [0.0, 0.3]])  # (O, A)


def test_squared_error_by_hand() -> None:
    means = torch.tensor([[1.0, 0.0], [0.0, 0.0], [9.0, 9.0]])
    actions = torch.tensor([[0.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    mask = torch.tensor([1.0, 1.0, 0.0])
    assert squared_error(means, actions, mask).item() == pytest.approx((0.5 + 2.0) / 2)


def test_negative_log_likelihood_by_hand() -> None:
    loss = negative_log_likelihood(
        torch.zeros(1, 1), torch.tensor([math.log(2.0)]), torch.ones(1, 1), torch.ones(1)
    )
    assert loss.item() == pytest.approx(0.125 + math.log(2.0) + 0.5 * math.log(2 * math.pi))


@pytest.mark.parametrize(("loss", "updates"), [("mse", 600), ("likelihood", 1500)])
def test_recovers_a_linear_policy_and_its_noise(loss: str, updates: int) -> None:
    sigma = 0.1
    learner = _learner(loss)
    generator = torch.Generator().manual_seed(0)
    for _ in range(updates):
        learner.update(_batch(generator, sigma))
    batch = _batch(generator, 0.0)
    error = (learner.act(batch["observations"]) - batch["actions"]).abs().mean().item()
    assert error < 0.03
    expected = 0.0 if loss == "mse" else sigma
    assert learner.spread().tolist() == pytest.approx([expected] * 2, rel=0.15)


def test_padded_rows_teach_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    batch = _batch(generator, 0.1)
    mask = torch.arange(64) < 32
    spoilt = {**batch, "actions": torch.where(mask[:, None], batch["actions"], 100.0)}
    one, two = _learner("mse"), _learner("mse")
    one.update({**batch, "mask": mask})
    two.update({**spoilt, "mask": mask})
    for name, tensor in one.state().items():
        assert torch.equal(tensor, two.state()[name]), name


def _learner(loss: str) -> Learner:
    normaliser = Normaliser(
        ("observations",), np.zeros(3, np.float32), np.ones(3, np.float32), np.ones(2, np.float32)
    )
    settings = {"hidden": (32, 32), "loss": loss, "learning_rate": 3e-3}
    return make_learner("bc", settings, normaliser)


def _batch(generator: torch.Generator, sigma: float) -> dict[str, torch.Tensor]:
    states = torch.rand(64, 3, generator=generator) * 2 - 1
    noise = sigma * torch.randn(64, 2, generator=generator)
    return {
        "observations": states,
        "actions": states @ GAIN + noise,
        "mask": torch.ones(64, dtype=torch.bool),
    }
