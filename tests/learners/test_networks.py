"""Networks and policies against what they are meant to compute."""

from __future__ import annotations

import math

import pytest
import torch

from learners.networks import (
    FIRST_BIAS,
    MLP,
    Norm,
    SquashedGaussianPolicy,
    TanhPolicy,
    draw_uniformly,
    squashed_log_prob,
)
from learners.noise import Noise
from learners.optimiser import descend, flatten, frozen, make_adam
from tests.learners.slow_parts import Network, squashed


def _generators(count: int = 1) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


@pytest.mark.parametrize("layer_norm", [False, True, "after"])
def test_members_are_plain_networks(layer_norm: Norm) -> None:
    made = MLP((3, 8, 8, 2), _generators(2), members=3, layer_norm=layer_norm)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=_generators()[0])
    x = torch.randn(2, 5, 3, generator=_generators()[0])
    found = made(x)
    assert found.shape == (2, 3, 5, 2)
    for agent in range(2):
        for member in range(3):
            plain = Network(made.state_dict(), "", agent * 3 + member)
            plain.norms_after = layer_norm == "after"
            assert bool(plain.scales) == bool(layer_norm)
            expected = plain(x[agent].double()).float()
            torch.testing.assert_close(found[agent, member], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("layer_norm", "expected"), [(True, 1.0), ("after", 2.0)])
def test_layer_norm_stands_on_its_side_of_the_activation(layer_norm: Norm, expected: float) -> None:
    """Hidden (3, -1): before ReLU the norm is (1, -1), so (1, 0); after it, of (3, 0), (1, -1)."""
    network = MLP((1, 2, 1), _generators(), layer_norm=layer_norm)
    with torch.no_grad():
        network.weights[0].copy_(torch.tensor([[[3.0, -1.0]]]))
        network.weights[1].copy_(torch.tensor([[[1.0], [-1.0]]]))
    assert network(torch.ones(1, 1, 1)).item() == pytest.approx(expected, abs=1e-4)


def test_uniform_weights_are_each_agents_own() -> None:
    both, alone = (MLP((4, 64, 64, 2), _generators(n), members=3) for n in (2, 1))
    draw_uniformly(both, _generators(2), 3e-3)
    draw_uniformly(alone, _generators(1), 3e-3)
    for found, expected in zip(both.parameters(), alone.parameters(), strict=True):
        assert torch.equal(found[:3], expected)
    for weight, bias, bound in zip(both.weights, both.biases, (0.5, 0.125, 3e-3), strict=True):
        assert 0.97 * bound < weight.abs().max() <= bound
        is_last = bound == 3e-3
        assert bias.abs().max() <= 3e-3 if is_last else bool((bias == FIRST_BIAS).all())
        assert not torch.equal(weight[0], weight[1])


def test_activations_differ_and_are_named() -> None:
    x = torch.randn(1, 4, 3, generator=_generators()[0])
    found = [MLP((3, 8, 1), _generators(), activation=name)(x) for name in ("relu", "gelu", "tanh")]
    assert not torch.allclose(found[0], found[1])
    assert not torch.allclose(found[0], found[2])
    with pytest.raises(KeyError):
        MLP((3, 8, 1), _generators(), activation="none")


def test_dropped_units_are_made_up_for() -> None:
    made = MLP((3, 64, 1), _generators(), dropout=0.5, noise=Noise([0], "cpu"))
    x = torch.ones(1, 20_000, 3)
    dropped = made(x)
    made.eval()
    whole = made(x)[0, 0, 0].item()
    assert dropped.std() > 0.1
    assert dropped.mean().item() == pytest.approx(whole, abs=5 * dropped.std().item() / 141)


def test_a_tanh_policy_stays_in_the_box() -> None:
    policy = TanhPolicy((3, 8, 2), _generators())
    x = torch.randn(1, 50, 3, generator=_generators()[0])
    found = policy(100 * x)
    assert (found.abs() <= 1).all()
    assert found.abs().max() > 0.99
    expected = torch.tanh(Network(policy.state_dict(), "trunk.")(x[0].double()))
    torch.testing.assert_close(policy(x)[0], expected.float(), rtol=1e-4, atol=1e-5)


def test_the_density_of_squashed_actions_sums_to_one() -> None:
    """Over the box of one action, for narrow and wide spreads, by the trapezium rule."""
    actions = torch.linspace(-1, 1, 200_001, dtype=torch.float64)[1:-1]
    drawn = torch.atanh(actions)[:, None]
    for mean, log_std in ((0.0, -1.0), (0.7, 0.0), (-1.0, -2.0)):
        noise = (drawn - mean) / math.exp(log_std)
        log_probs = squashed_log_prob(drawn, noise, torch.tensor([log_std], dtype=torch.float64))
        assert torch.trapezoid(log_probs.exp(), actions).item() == pytest.approx(1.0, abs=2e-3)


def test_samples_and_densities_equal_the_plain_ones() -> None:
    policy = SquashedGaussianPolicy((3, 8, 2), _generators())
    x = torch.randn(1, 6, 3, generator=_generators()[0])
    noise = torch.randn(4, 1, 6, 2, generator=_generators()[0])
    actions, log_probs = policy.sample(x, noise)
    assert (actions.shape, log_probs.shape) == ((4, 1, 6, 2), (4, 1, 6))
    plain = Network(policy.state_dict(), "trunk.")
    for number in range(4):
        expected = squashed(plain, x[0].double(), noise[number, 0].double())
        torch.testing.assert_close(actions[number, 0], expected[0].float(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(log_probs[number, 0], expected[1].float(), rtol=1e-3, atol=1e-4)


def test_densities_far_out_are_finite() -> None:
    drawn = torch.tensor([[40.0, -40.0]], requires_grad=True)
    found = squashed_log_prob(drawn, torch.zeros(1, 2), torch.zeros(2))
    found.sum().backward()
    assert found.isfinite().all()
    assert drawn.grad is not None
    assert drawn.grad.isfinite().all()


def test_gradients_pass_through_what_is_frozen() -> None:
    network = MLP((3, 8, 1), _generators())
    x = torch.randn(1, 4, 3, requires_grad=True)
    flat = flatten(network.parameters())
    with frozen(network):
        loss = network(x).sum()
    loss.backward()
    assert x.grad is not None
    assert x.grad.abs().max() > 0
    assert flat.grad is not None
    assert not flat.grad.any()
    before = flat.detach().clone()
    descend(make_adam((flat, 0.1)), network(x.detach()).sum()[None])
    assert not torch.equal(flat, before)
