"""From the thread that gathers to the batches that a learner takes: what lies between the two."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.stream.batches import columns
from pipeline.stream.device_plan import plan_columns
from pipeline.stream.samplers import Drawn
from pipeline.stream.source import OpenVersion
from schemas.errors import needs_extra
from schemas.stream import StreamConfig

ORDER = "order/rows"


@dataclass(frozen=True)
class Carrier:
    """How the arrays of a gather become those of batches, wherever these are to be."""

    send: Callable[[Mapping[str, np.ndarray]], Any]
    """Called by who gathers."""
    receive: Callable[[Any], Mapping[str, Any]]
    """Called by who takes batches, with what was sent."""
    split: Callable[[Any], Sequence[Any]]
    """As `batches.Split`, of what was received."""
    says: str = ""
    """In words, for `describe`."""


def carrier(config: StreamConfig) -> Carrier:
    """Returns what makes a configured framework's batches, where they are to be.

    Raises:
        MissingExtraError: if torch is asked for and not installed.
        ConfigError: if it has no such device.
    """
    if config.framework == "numpy":
        return Carrier(_same, _same, list, said_ahead(config))
    with needs_extra("learners", "torch"):
        from pipeline.stream import torch_adapter, transport  # noqa: PLC0415 - an optional extra
    place = torch_adapter.torch_device(config.device)
    if place.type == "cpu" and not config.ahead:
        return Carrier(_same, _same, torch_adapter.split_array)
    way = transport.Transport(place)
    return Carrier(way.send, way.receive, torch_adapter.split_tensor, said_ahead(config) + way.says)


def said_ahead(config: StreamConfig) -> str:
    """Says how much is made ahead; nothing where nothing is."""
    return f" A thread keeps {config.ahead} gathers ahead." if config.ahead else ""


def packed(opened: OpenVersion, drawn: Drawn) -> dict[str, np.ndarray]:
    """Returns what is to be sent of some transitions: all columns, or what a device lacks."""
    return columns(opened, drawn) if opened.device is None else plan_columns(opened, drawn)


def unpacked(opened: OpenVersion, found: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the columns of what came of `packed`."""
    return found if opened.device is None else opened.device.columns(opened, found)


def packed_parts(
    opened: Sequence[OpenVersion], parts: Sequence[Mapping[str, np.ndarray]], order: np.ndarray
) -> dict[str, np.ndarray]:
    """Returns what is to be sent of the sources of a mixture.

    Args:
        opened: their versions.
        parts: what `packed` returned of each.
        order: (steps, rows) int64, where each row stands in the parts put together.
    """
    if all(one.device is None for one in opened):
        return {n: np.concatenate([part[n] for part in parts])[order] for n in parts[0]}
    named = enumerate(parts)
    found = {f"{k}/{name}": array for k, part in named for name, array in part.items()}
    return {ORDER: order, **found}


def unpacked_parts(
    opened: Sequence[OpenVersion], found: Mapping[str, Any], order: np.ndarray
) -> Mapping[str, Any]:
    """Returns the columns of what came of `packed_parts`."""
    if all(one.device is None for one in opened):
        return found
    parts = []
    for number, one in enumerate(opened):
        prefix = f"{number}/"
        mine = {n.removeprefix(prefix): v for n, v in found.items() if n.startswith(prefix)}
        parts.append(unpacked(one, mine))
    device = next(one.device for one in opened if one.device is not None)
    return device.joined(parts, found[ORDER], order)


def _same(found: Any) -> Any:
    return found
