"""IQL once more in plain float64 NumPy, gradients by hand: the reference the learner is held to.

Written from the paper's equations; shares no code with `learners`. Parameters come in as lists of
(weight (I, O), bias (O,)) per network, so that both start from the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

Layers = list[list[np.ndarray]]


def forward(layers: Layers, x: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    inputs = []
    for index, (weight, bias) in enumerate(layers):
        inputs.append(x)
        x = x @ weight + bias
        if index < len(layers) - 1:
            x = np.maximum(x, 0)
    return x, inputs


def backward(layers: Layers, inputs: list[np.ndarray], d_out: np.ndarray) -> list[np.ndarray]:
    gradients: list[np.ndarray] = []
    for index in reversed(range(len(layers))):
        gradients[:0] = [inputs[index].T @ d_out, d_out.sum(axis=0)]
        d_out = d_out @ layers[index][0].T
        if index:
            d_out = d_out * (inputs[index] > 0)
    return gradients


@dataclass
class Adam:
    rate: float
    t: int = 0
    m: list[np.ndarray] = field(default_factory=list)
    v: list[np.ndarray] = field(default_factory=list)

    def step(self, parameters: list[np.ndarray], gradients: list[np.ndarray]) -> None:
        self.t += 1
        if not self.m:
            self.m = [np.zeros_like(g) for g in gradients]
            self.v = [np.zeros_like(g) for g in gradients]
        for i, (p, g) in enumerate(zip(parameters, gradients, strict=True)):
            self.m[i] = 0.9 * self.m[i] + 0.1 * g
            self.v[i] = 0.999 * self.v[i] + 0.001 * g * g
            m_hat = self.m[i] / (1 - 0.9**self.t)
            v_hat = self.v[i] / (1 - 0.999**self.t)
            p -= self.rate * m_hat / (np.sqrt(v_hat) + 1e-8)


def flat(layers: Layers) -> list[np.ndarray]:
    return [array for layer in layers for array in layer]


@dataclass
class SlowIQL:
    value: Layers
    policy: Layers
    log_std: np.ndarray
    critics: list[Layers]
    targets: list[Layers]
    rate: float = 3e-4
    expectile: float = 0.7
    temperature: float = 3.0
    limit: float = 100.0
    tau: float = 0.005
    uses_old_value: bool = False
    """The mistake of a public re-implementation: policy and critics read V before its update."""

    def __post_init__(self) -> None:
        self.adams = {name: Adam(self.rate) for name in ("value", "policy", "critics")}

    def update(self, s, a, r, discounts, s_next) -> None:  # type: ignore[no-untyped-def]
        n = len(s)
        pairs = np.concatenate([s, a], axis=1)
        q = np.min([forward(t, pairs)[0][:, 0] for t in self.targets], axis=0)
        old_v, old_next = forward(self.value, s)[0][:, 0], forward(self.value, s_next)[0][:, 0]

        v, inputs = forward(self.value, s)
        u = q - v[:, 0]
        weight = np.abs(self.expectile - (u < 0))
        gradients = backward(self.value, inputs, (-2 * weight * u / n)[:, None])
        self.adams["value"].step(flat(self.value), gradients)

        v, v_next = forward(self.value, s)[0][:, 0], forward(self.value, s_next)[0][:, 0]
        if self.uses_old_value:
            v, v_next = old_v, old_next
        w = np.minimum(np.exp(self.temperature * (q - v)), self.limit)
        out, inputs = forward(self.policy, s)
        mean, variance = np.tanh(out), np.exp(2 * self.log_std)
        d_mean = -w[:, None] * (a - mean) / variance / n
        d_log_std = -(w[:, None] * ((a - mean) ** 2 / variance - 1)).sum(axis=0) / n
        gradients = backward(self.policy, inputs, d_mean * (1 - mean**2))
        self.adams["policy"].step([*flat(self.policy), self.log_std], [*gradients, d_log_std])

        y = r + discounts * v_next
        gradients = []
        for critic in self.critics:
            out, inputs = forward(critic, pairs)
            gradients += backward(critic, inputs, 2 * (out - y[:, None]) / n)
        self.adams["critics"].step([p for c in self.critics for p in flat(c)], gradients)
        for target, critic in zip(self.targets, self.critics, strict=True):
            for old, new in zip(flat(target), flat(critic), strict=True):
                old += self.tau * (new - old)
