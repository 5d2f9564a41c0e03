"""Behaviour cloning with a small network, the yardstick for filtered data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from schemas.episode import Episode
from tests.validation.point_mass import Policy

WIDTH = 96
UPDATES = 1_500
BATCH = 256


def clone(episodes: Sequence[Episode], seed: int) -> Policy:
    """Returns the policy that a 96 x 96 network learns from demonstrations."""
    states = np.concatenate([np.asarray(e.observations["observations"])[:-1] for e in episodes])
    actions = np.concatenate([e.flat_actions["actions"] for e in episodes])
    mean, scale = states.mean(0), states.std(0) + 1e-6
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Linear(6, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 2)
    )
    x = torch.as_tensor((states - mean) / scale, dtype=torch.float32)
    y = torch.as_tensor(actions, dtype=torch.float32)
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, UPDATES)
    draws = torch.Generator().manual_seed(seed)
    for _ in range(UPDATES):
        rows = torch.randint(len(x), (BATCH,), generator=draws)
        loss = nn.functional.mse_loss(network(x[rows]), y[rows])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        decay.step()

    def policy(observed: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            scaled = torch.as_tensor((observed - mean) / scale, dtype=torch.float32)
            return np.asarray(network(scaled).numpy(), np.float64)

    return policy
