"""Batches as TensorDicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from tensordict import NonTensorStack, TensorDict


def as_tensordict(batch: Mapping[str, Any]) -> TensorDict:
    """Returns a batch as a `TensorDict` whose batch size is its number of rows.

    Tensors are shared, not copied. Nested fields are nested; tuples are nested by their indices as
    texts, as a `TensorDict` has names only. Texts are a `NonTensorStack`.

    Args:
        batch: nested mappings of tensors, rows first.
    """
    rows = len(batch["indices"])
    return TensorDict({name: _entry(value, rows) for name, value in batch.items()}, [rows])


def _entry(value: Any, rows: int) -> Any:
    if isinstance(value, tuple):
        value = {str(index): child for index, child in enumerate(value)}
    if isinstance(value, Mapping):
        return TensorDict({name: _entry(child, rows) for name, child in value.items()}, [rows])
    if isinstance(value, np.ndarray):
        return NonTensorStack.from_list(value.tolist())
    return value
