"""The product at the heart of every learner: a stack of MLPs with ReLU, forward and backward.

Networks of 256 units are small: beside their matrix products, what costs is memory that is fetched
anew for each intermediate result, and products so narrow that libraries do them badly. So the
layers are one function of autograd's, which applies ReLU and its gradient in place, and turns
products with few outputs over. The numbers are those of the plain formula.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

NARROW = 16
"""Outputs up to which a product is done as its transpose, whose rows are long."""


def stacked_mlp(inputs: Tensor, layers: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Returns W_n relu(... relu(W_1 x + b_1) ...) + b_n of N networks; differentiable once.

    Args:
        inputs: (N, B, I).
        layers: weights (N, I, O) and biases (N, 1, O) of each layer.

    Returns:
        (N, B, O) of the last layer.
    """
    flat = [parameter for layer in layers for parameter in layer]
    if not torch.is_grad_enabled():
        return _forward(inputs, flat)[-1]
    found: Tensor = _Stacked.apply(inputs, *flat)  # type: ignore[no-untyped-call]
    return found


def _forward(inputs: Tensor, flat: Sequence[Tensor]) -> list[Tensor]:
    """The inputs of each layer, then the outputs of the last."""
    kept = [inputs]
    last = len(flat) // 2 - 1
    for index in range(last + 1):
        weight, bias = flat[2 * index], flat[2 * index + 1]
        if index < last:
            kept.append(torch.baddbmm(bias, kept[-1], weight).relu_())
        else:
            kept.append(_product(kept[-1], weight, bias))
    return kept


def _product(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The last layer, (N, B, O)."""
    if weight.shape[2] > NARROW:
        return torch.baddbmm(bias, hidden, weight)
    turned = torch.baddbmm(bias.mT, weight.mT, hidden.mT)
    return turned.mT


class _Stacked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, *flat: Tensor) -> Tensor:
        *kept, outputs = _forward(inputs, flat)
        ctx.save_for_backward(*kept, *flat[::2])
        return outputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        count = len(ctx.saved_tensors) // 2
        kept, weights = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        found: list[Tensor | None] = [None] * (2 * count)
        for index in reversed(range(count)):
            hidden, weight = kept[index], weights[index]
            if ctx.needs_input_grad[1 + 2 * index]:
                found[2 * index] = _of_weight(hidden, grad)
                found[2 * index + 1] = grad.sum(dim=1, keepdim=True)
            if index:
                grad = torch.bmm(grad, weight.mT) if weight.shape[2] > 1 else grad * weight.mT
                torch.ops.aten.threshold_backward.grad_input(grad, hidden, 0, grad_input=grad)
            elif ctx.needs_input_grad[0]:
                return torch.bmm(grad, weight.mT), *found
        return None, *found


def _of_weight(hidden: Tensor, grad: Tensor) -> Tensor:
    """The gradient of a weight, (N, I, O)."""
    if grad.shape[2] > NARROW:
        return torch.bmm(hidden.mT, grad)
    return torch.bmm(grad.mT, hidden).mT
