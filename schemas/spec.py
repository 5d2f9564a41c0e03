"""What an episode's arrays look like: `FieldSpec` for one named array, `DatasetSpec` for all.

A version holds one or more specs; a shard belongs to exactly one. The format carries encodings
and several specs from its first version, so that camera streams can join without a new format.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from schemas.errors import SpecMismatchError

Encoding = Literal["raw", "frames", "video", "ragged", "text"]

# Kinds of dtype that a `raw` field may have: bool, signed and unsigned integers, floats.
RAW_KINDS = "biuf"


@dataclass(frozen=True)
class FieldSpec:
    """One named array of an episode, without its first (time) axis."""

    dtype: str
    """NumPy dtype string in little-endian form, such as `<f4` or `|b1`; `str` for text."""
    shape: tuple[int, ...]
    """Shape of one decoded row; -1 for an axis that varies from row to row."""
    encoding: Encoding = "raw"
    """`raw` array; encoded pictures (`frames`), `ragged` arrays or `text`, all three as offsets +
    bytes; or `video` (media file + timestamps)."""

    @property
    def numpy_dtype(self) -> np.dtype:
        """The NumPy dtype."""
        return np.dtype(self.dtype)

    @property
    def is_regular(self) -> bool:
        """True if decoded rows make one array of numbers: no texts, no axis that varies."""
        return self.encoding not in ("text", "ragged") and min(self.shape, default=0) >= 0

    @property
    def row_bytes(self) -> int:
        """Bytes of one decoded row; an axis that varies counts once."""
        return self.numpy_dtype.itemsize * abs(math.prod(self.shape))

    def __str__(self) -> str:
        encoding = "" if self.encoding == "raw" else f" {self.encoding}"
        return f"{self.numpy_dtype.name}{list(self.shape)}{encoding}"


@dataclass(frozen=True)
class DatasetSpec:
    """The fields that make up a spec's identity: observations, actions, rewards.

    `actions` and `rewards` may be absent from single episodes (imitation data, action-free
    video); extras are never part of a spec.
    """

    fields: Mapping[str, FieldSpec]

    def __post_init__(self) -> None:
        object.__setattr__(self, "fields", dict(sorted(self.fields.items())))

    def __hash__(self) -> int:
        return hash(tuple(self.fields.items()))

    def accepts(self, other: DatasetSpec) -> bool:
        """True if episodes of `other` fit: same arrays, apart from absent nullable fields.

        Actions of several arrays are there together or not at all.
        """
        missing = self.fields.keys() - other.fields.keys()
        halves = _actions(missing) and _actions(other.fields.keys())
        return (
            all(self.fields.get(name) == field for name, field in other.fields.items())
            and all(is_nullable(name) for name in missing)
            and not halves
        )

    def merged(self, other: DatasetSpec) -> DatasetSpec | None:
        """Returns the spec that accepts both; None if a shared field differs, or lacks in one."""
        if self.accepts(other):
            return self
        merged = DatasetSpec({**self.fields, **other.fields})
        if other.accepts(self) or (merged.accepts(self) and merged.accepts(other)):
            return merged
        return None

    def merge(self, other: DatasetSpec, where: str) -> DatasetSpec:
        """Returns the spec that accepts both.

        Raises:
            SpecMismatchError: if a shared field differs, or a field that must be there is not.
        """
        merged = self.merged(other)
        if merged is None:
            raise SpecMismatchError(
                f"Expected episodes of the spec [{self}], came [{other}] "
                f"({differences(self, other)}); ingest them into another store, or cast the "
                f"source.",
                where=where,
            )
        return merged

    def __str__(self) -> str:
        return ", ".join(f"{name} {field}" for name, field in self.fields.items())


def is_nullable(name: str) -> bool:
    """True for fields that a single episode may lack: actions and rewards."""
    return name == "rewards" or bool(_actions([name]))


def _actions(names: Iterable[str]) -> set[str]:
    return {name for name in names if name == "actions" or name.startswith("actions/")}


def differences(one: DatasetSpec, two: DatasetSpec) -> str:
    """Says in words where two specs differ."""
    said = []
    for name in sorted(one.fields.keys() | two.fields.keys()):
        left, right = one.fields.get(name), two.fields.get(name)
        if left != right:
            said.append(f"{name}: {left or 'absent'} against {right or 'absent'}")
    return "; ".join(said)
