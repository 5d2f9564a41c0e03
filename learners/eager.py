"""What is left out of what `torch.compile` compiles, and called as it is instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

F = TypeVar("F", bound=Callable[..., Any])


def uncompiled(function: F) -> F:
    """Returns the function, which compiled code calls as it is."""
    return cast(F, torch.compiler.disable(function))  # type: ignore[no-untyped-call]
