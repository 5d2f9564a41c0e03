"""Doors from streams to `torch.utils.data`, which load torch when they are used."""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING

from schemas.errors import needs_extra

if TYPE_CHECKING:
    from pipeline.stream.datasets import StreamDataset, TransitionDataset
    from pipeline.stream.endless import Endless
    from pipeline.stream.loader import Stream


def iterable_dataset(stream: Endless, steps: int | None) -> StreamDataset:
    """Returns `datasets.StreamDataset`; errors are its own.

    Raises:
        MissingExtraError: if torch is not installed.
    """
    made: StreamDataset = _datasets().StreamDataset(stream, steps)
    return made


def map_dataset(stream: Stream) -> TransitionDataset:
    """Returns `datasets.TransitionDataset`; errors are its own.

    Raises:
        MissingExtraError: if torch is not installed.
    """
    made: TransitionDataset = _datasets().TransitionDataset(stream)
    return made


def _datasets() -> ModuleType:
    with needs_extra("learners", "torch"):
        from pipeline.stream import datasets  # noqa: PLC0415 - an optional extra
    return datasets
