"""Parts of losses that several algorithms share, as pure functions."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Returns the mean over rows where mask is 1, 0 where there is none; (..., B) to (...)."""
    return (values * mask).sum(dim=-1) / mask.sum(dim=-1).clamp(min=1.0)


def gaussian_log_prob(actions: Tensor, means: Tensor, log_std: Tensor) -> Tensor:
    """Returns log N(a; mean, exp(log_std)^2) summed over action dims; (..., A) to (...)."""
    scaled = (actions - means) * torch.exp(-log_std)
    constant = log_std.sum(dim=-1) + 0.5 * math.log(2.0 * math.pi) * actions.shape[-1]
    return -0.5 * scaled.square().sum(dim=-1) - constant
