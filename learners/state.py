"""Modules and optimisers as flat named tensors, and back: what checkpoints are made of."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def module_state(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    """Returns a module's parameters as `<prefix>/<name>`."""
    return {f"{prefix}/{name}": tensor for name, tensor in module.state_dict().items()}


def load_module_state(module: nn.Module, prefix: str, state: Mapping[str, Tensor]) -> None:
    """Inverse of `module_state`."""
    module.load_state_dict(_below(prefix, state))


def adam_state(optimiser: torch.optim.Adam, prefix: str) -> dict[str, Tensor]:
    """Returns step counts and both moments as `<prefix>/<index>/<name>`."""
    states = optimiser.state_dict()["state"]
    return {
        f"{prefix}/{index}/{name}": tensor
        for index, entries in states.items()
        for name, tensor in entries.items()
    }


def load_adam_state(optimiser: torch.optim.Adam, prefix: str, state: Mapping[str, Tensor]) -> None:
    """Inverse of `adam_state`; learning rates stay as they are."""
    entries: dict[int, dict[str, Tensor]] = {}
    for key, tensor in _below(prefix, state).items():
        index, name = key.split("/", 1)
        # A loaded Adam keeps the tensors it is given and changes them in place.
        entries.setdefault(int(index), {})[name] = tensor.clone()
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": entries, "param_groups": groups})


def _below(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    start = f"{prefix}/"
    return {key[len(start) :]: value for key, value in state.items() if key.startswith(start)}
