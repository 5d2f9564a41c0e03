"""A causal transformer, stacked over agents that train side by side.

The blocks are those of GPT-2, with ReLU: layer norm before attention and before the two layers that
follow, each added to what came in. As everywhere, the first axis of each parameter is the agents'.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from learners.noise import Noise

INITIAL_STD = 0.02


class Linear(nn.Module):
    """One linear map per agent, (K, ..., I) to (K, ..., O); weights normal, biases 0."""

    def __init__(self, fan_in: int, fan_out: int, generators: Sequence[torch.Generator]) -> None:
        super().__init__()
        drawn = [torch.randn(1, fan_in, fan_out, generator=one) for one in generators]
        self.weight = nn.Parameter(INITIAL_STD * torch.cat(drawn))
        self.bias = nn.Parameter(torch.zeros(len(generators), 1, fan_out))

    def forward(self, inputs: Tensor) -> Tensor:
        """Maps the last axis."""
        rows = inputs.flatten(1, -2)
        return torch.baddbmm(self.bias, rows, self.weight).view(*inputs.shape[:-1], -1)


class Norm(nn.Module):
    """Layer norm with a scale and a shift per agent."""

    def __init__(self, width: int, agents: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(agents, 1, 1, width))
        self.shift = nn.Parameter(torch.zeros(agents, 1, 1, width))

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalises the last axis of (K, B, T, D)."""
        return functional.layer_norm(inputs, inputs.shape[-1:]) * self.scale + self.shift


class Embedding(nn.Module):
    """One table of vectors per agent."""

    def __init__(self, count: int, width: int, generators: Sequence[torch.Generator]) -> None:
        super().__init__()
        drawn = [torch.randn(1, count, width, generator=one) for one in generators]
        self.table = nn.Parameter(INITIAL_STD * torch.cat(drawn))

    def forward(self, numbers: Tensor) -> Tensor:
        """Maps (K, B, T) int64 to (K, B, T, D)."""
        width = self.table.shape[-1]
        rows = numbers.flatten(1)[..., None].expand(-1, -1, width)
        return self.table.gather(1, rows).view(*numbers.shape, width)


class Dropout(nn.Module):
    """Drops numbers in training, each agent those of its own generator."""

    def __init__(self, share: float, noise: Noise) -> None:
        super().__init__()
        self.share, self.noise = share, noise

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns the inputs (K, ...), some of them 0 and the others larger for it."""
        if not self.share or not self.training:
            return inputs
        keep = 1.0 - self.share
        return inputs * (self.noise.uniform(*inputs.shape[1:]) < keep) / keep


class Block(nn.Module):
    """Attention to what came before, then two layers; both added to their inputs.

    Args:
        width: D.
        heads: that share it.
        generators: one per agent.
        dropout: applied to what is added.
    """

    def __init__(
        self, width: int, heads: int, generators: Sequence[torch.Generator], dropout: Dropout
    ) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.before_attention = Norm(width, len(generators))
        self.attention_in = Linear(width, 3 * width, generators)
        self.attention_out = Linear(width, width, generators)
        self.before_layers = Norm(width, len(generators))
        self.wide = Linear(width, 4 * width, generators)
        self.narrow = Linear(4 * width, width, generators)

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps (K, B, T, D); a token sees itself and those before it."""
        tokens = tokens + self.dropout(self._attend(self.before_attention(tokens)))
        hidden = torch.relu(self.wide(self.before_layers(tokens)))
        found: Tensor = tokens + self.dropout(self.narrow(hidden))
        return found

    def _attend(self, tokens: Tensor) -> Tensor:
        agents, rows, length, width = tokens.shape
        parts = self.attention_in(tokens).view(agents * rows, length, 3, self.heads, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)  # (K B, heads, T, D / heads)
        seen = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        joined = seen.transpose(1, 2).reshape(agents, rows, length, width)
        attended: Tensor = self.attention_out(joined)
        return attended
