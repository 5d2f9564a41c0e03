"""The Decision Transformer once more, plainly: one token, one head, one number at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.learners.slow_parts import Adam


@dataclass
class SlowDT:
    state: Mapping[str, Tensor]
    heads: int
    blocks: int
    return_scale: float = 1000.0
    rate: float = 1e-4
    warm_up: int = 10_000
    weight_decay: float = 1e-4
    largest_gradient: float = 0.25

    def __post_init__(self) -> None:
        start = "network/"
        self.p = {
            name[len(start) :]: tensor[0].double().clone().requires_grad_()
            for name, tensor in self.state.items()
            if name.startswith(start)
        }
        self.adam = Adam(list(self.p.values()), self.rate)

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.p[f"{name}.weight"] + self.p[f"{name}.bias"][0]

    def norm(self, name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        spread = torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-5)
        return centred / spread * self.p[f"{name}.scale"][0, 0] + self.p[f"{name}.shift"][0, 0]

    def attention(self, name: str, x: Tensor) -> Tensor:
        """(T, D) to (T, D): each token looks at those up to it."""
        width = x.shape[1]
        query, key, value = self.linear(f"{name}.attention_in", x).split(width, dim=1)
        size, found = width // self.heads, []
        for t in range(len(x)):
            parts = []
            for head in range(self.heads):
                own = slice(head * size, (head + 1) * size)
                scores = key[: t + 1, own] @ query[t, own] / math.sqrt(size)
                parts.append(torch.softmax(scores, 0) @ value[: t + 1, own])
            found.append(torch.cat(parts))
        return self.linear(f"{name}.attention_out", torch.stack(found))

    def actions(self, returns: Tensor, states: Tensor, actions: Tensor, places: Tensor) -> Tensor:
        """The action at each step of one window, which holds real steps alone."""
        tokens = []
        for t in range(len(states)):
            place = self.p["of_place.table"][int(places[t])]
            tokens.append(self.linear("of_return", returns[t : t + 1] / self.return_scale) + place)
            tokens.append(self.linear("of_state", states[t]) + place)
            tokens.append(self.linear("of_action", actions[t]) + place)
        x = self.norm("first_norm", torch.stack(tokens))
        for number in range(self.blocks):
            name = f"blocks.{number}"
            x = x + self.attention(name, self.norm(f"{name}.before_attention", x))
            hidden = self.linear(f"{name}.wide", self.norm(f"{name}.before_layers", x))
            x = x + self.linear(f"{name}.narrow", hidden.clamp(min=0))
        return torch.tanh(self.linear("to_action", self.norm("last_norm", x)[1::3]))

    def update(self, batch: Mapping[str, Tensor]) -> None:
        errors = []
        for row in range(len(batch["mask"])):
            real = int(batch["mask"][row].sum())
            names = ("returns_to_go", "observations", "actions", "timesteps")
            window = [batch[name][row, :real] for name in names]
            errors.append((self.actions(*window) - window[2]) ** 2)
        loss = torch.cat(errors).mean()
        gradients = torch.autograd.grad(loss, self.adam.parameters)
        norm = math.sqrt(sum(float((g**2).sum()) for g in gradients))
        factor = min(1.0, self.largest_gradient / norm)
        self.adam.rate = self.rate * min(1.0, (self.adam.t + 1) / self.warm_up)
        for parameter in self.adam.parameters:
            parameter.data = parameter.data * (1 - self.adam.rate * self.weight_decay)
        self.adam.apply([factor * g for g in gradients])
