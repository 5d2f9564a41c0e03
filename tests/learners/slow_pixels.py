"""IQL from pixels once more: plain float64 parts for one agent, convolutions patch by patch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.learners.slow_parts import Adam, Network, together


class Camera:
    """One camera's network: 3 x 3 convolutions, a projection, layer norm, tanh."""

    def __init__(self, state: Mapping[str, Tensor], prefix: str, strides: tuple[int, ...]) -> None:
        names = [f"{kind}.{layer}" for kind in ("weights", "biases") for layer in (0, 1)]
        names += ["projection", "offset", "norm_scale", "norm_shift"]
        self.strides = strides
        self.named = {
            name: state[f"{prefix}{name}"].double().clone().requires_grad_() for name in names
        }

    def __call__(self, pictures: Tensor) -> Tensor:
        """Pictures (B, H, W, C) of 0 to 255 to features (B, F)."""
        hidden = pictures.double().movedim(-1, 1) / 255 - 0.5
        for layer, stride in enumerate(self.strides):
            weight, bias = self.named[f"weights.{layer}"], self.named[f"biases.{layer}"]
            rows, columns = ((size - 3) // stride + 1 for size in hidden.shape[2:])
            out = [
                [
                    torch.einsum(
                        "bcyx,ocyx->bo",
                        hidden[:, :, stride * y : stride * y + 3, stride * x : stride * x + 3],
                        weight,
                    )
                    for x in range(columns)
                ]
                for y in range(rows)
            ]
            stacked = torch.stack([torch.stack(row, dim=-1) for row in out], dim=-2)
            hidden = (stacked + bias[:, None, None]).clamp(min=0)
        flat = hidden.reshape(len(hidden), -1) @ self.named["projection"][0]
        flat = flat + self.named["offset"][0]
        flat = flat - flat.mean(dim=1, keepdim=True)
        flat = flat / torch.sqrt((flat**2).mean(dim=1, keepdim=True) + 1e-5)
        return torch.tanh(flat * self.named["norm_scale"][0] + self.named["norm_shift"][0])

    @property
    def parameters(self) -> list[Tensor]:
        return list(self.named.values())

    def follow(self, other: Camera, tau: float) -> None:
        for mine, theirs in zip(self.parameters, other.parameters, strict=True):
            mine.data = (1 - tau) * mine.data + tau * theirs.data


class SlowPixelIQL:
    """One agent with one camera of two convolutions.

    Args:
        state: of the learner, before its first update.
        discrete: whether the policy is a softmax.
    """

    rate = 3e-4
    expectile, temperature, limit, tau = 0.7, 3.0, 100.0, 0.005

    def __init__(self, state: Mapping[str, Tensor], *, discrete: bool = False) -> None:
        self.discrete = discrete
        strides = (2, 2)
        self.camera = Camera(state, "encoder/cameras.0.", strides)
        self.slow_camera = Camera(state, "slow_encoder/cameras.0.", strides)
        self.value, self.policy = Network(state, "value/"), Network(state, "policy/trunk.")
        self.log_std = state.get("policy/log_std", torch.zeros(1, 0))[0].double().requires_grad_()
        self.critics = [Network(state, "critics/", member) for member in range(2)]
        self.targets = [Network(state, "targets/", member) for member in range(2)]
        self.value_adam = Adam(self.value.parameters, self.rate)
        self.policy_adam = Adam([*self.policy.parameters, self.log_std], self.rate)
        parts = [p for critic in self.critics for p in critic.parameters]
        self.critic_adam = Adam([*parts, *self.camera.parameters], self.rate)

    def update(self, b: Mapping[str, Any]) -> None:
        """Takes one update.

        Args:
            b: `numbers`, `pictures` and their `next_` ones, moved as they were, `actions`,
                `rewards`, `discounts`; float64.
        """

        def through(camera: Camera, prefix: str = "") -> Tensor:
            return together(camera(b[f"{prefix}pictures"]), b[f"{prefix}numbers"])

        with torch.no_grad():
            s, s_next = through(self.camera), through(self.camera, "next_")
            slow = together(through(self.slow_camera), b["actions"])
            q = torch.minimum(*(target(slow)[:, 0] for target in self.targets))
        u = q - self.value(s)[:, 0]
        self.value_adam.step(((self.expectile - (u < 0).double()).abs() * u**2).mean())

        with torch.no_grad():
            w = torch.exp(self.temperature * (q - self.value(s)[:, 0])).clamp(max=self.limit)
            y = b["rewards"] + b["discounts"] * self.value(s_next)[:, 0]
        policy_loss = -(w * self._log_prob(s, b["actions"])).mean()
        pairs = together(through(self.camera), b["actions"])
        critic_loss = sum(((critic(pairs)[:, 0] - y) ** 2).mean() for critic in self.critics)
        assert isinstance(critic_loss, Tensor)
        policy_parts = self.policy_adam.parameters
        policy_gradients = torch.autograd.grad(policy_loss, policy_parts, allow_unused=True)
        self.policy_adam.apply(
            [
                torch.zeros_like(part) if gradient is None else gradient
                for part, gradient in zip(policy_parts, policy_gradients, strict=True)
            ]
        )
        self.critic_adam.step(critic_loss)
        for target, critic in zip(self.targets, self.critics, strict=True):
            target.follow(critic, self.tau)
        self.slow_camera.follow(self.camera, self.tau)

    def _log_prob(self, s: Tensor, actions: Tensor) -> Tensor:
        if self.discrete:
            logits = self.policy(s)
            odds = logits - torch.log(torch.exp(logits).sum(dim=1, keepdim=True))
            return odds[torch.arange(len(s)), actions.argmax(dim=1)]
        normal = torch.distributions.Normal(torch.tanh(self.policy(s)), torch.exp(self.log_std))
        return normal.log_prob(actions).sum(dim=1)

    @property
    def networks(self) -> dict[tuple[str, int], Any]:
        found: dict[tuple[str, int], Any] = {
            ("value/", 0): self.value,
            ("policy/trunk.", 0): self.policy,
        }
        for member in range(2):
            found["critics/", member] = self.critics[member]
            found["targets/", member] = self.targets[member]
        return found
