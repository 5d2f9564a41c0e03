"""An episode as T+1 rows, the layout of shards, tails and caches.

Row t holds o_t, a_t, r_{t+1} and the end flags; the last row holds the final observation with the
step fields padded. So the next observation is the next row, an observation is stored once, and a
transition is two neighbouring rows. `valid` marks real steps, `observation_valid` real
observations; padding is NaN for floats and 0 otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from schemas.episode import Episode
from schemas.packed import Rows, join, pad_row, spec_of
from schemas.spec import DatasetSpec, FieldSpec

FLAGS = ("terminated", "truncated", "valid", "observation_valid")


@dataclass(frozen=True)
class RowLayout:
    """What the rows of a group of episodes hold; equal for every episode of a shard or tail."""

    spec: DatasetSpec
    extras: Mapping[str, FieldSpec]
    """Extras by full name, `extras/<name>`."""
    full_extras: frozenset[str]
    """Those extras whose last row is real (T+1 rows in the episode)."""

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for equal layouts; usable for grouping."""
        return (self.spec, tuple(sorted(self.extras.items())), self.full_extras)

    @cached_property
    def fields(self) -> Mapping[str, FieldSpec]:
        """All arrays of a row, flags included."""
        flag = FieldSpec("|b1", ())
        return {**self.spec.fields, **self.extras, **dict.fromkeys(FLAGS, flag)}

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of one row, all arrays together."""
        return sum(field.row_bytes for field in self.fields.values())

    @cached_property
    def has_packed(self) -> bool:
        """True if some rows may weigh more than `plain_bytes`: pictures, texts, ragged ones."""
        return any(field.encoding != "raw" for field in self.fields.values())

    @cached_property
    def plain_bytes(self) -> int:
        """Bytes of the plain arrays of one row: what it takes besides encoded ones."""
        return sum(field.row_bytes for field in self.fields.values() if field.encoding == "raw")


def layout_of(episode: Episode) -> RowLayout:
    """Returns the row layout of one episode."""
    if not episode.extras:
        return _plain_layout(episode.spec)
    extras = {f"extras/{name}": array for name, array in episode.extras.items()}
    return RowLayout(
        spec=episode.spec,
        extras={name: spec_of(array) for name, array in extras.items()},
        full_extras=frozenset(n for n, a in extras.items() if len(a) == episode.length + 1),
    )


@lru_cache(maxsize=64)
def _plain_layout(spec: DatasetSpec) -> RowLayout:
    return RowLayout(spec, {}, frozenset())


def to_rows(episode: Episode) -> dict[str, Rows]:
    """Returns all fields of an episode with T+1 rows each."""
    rows = episode.length + 1
    padded = {name: _pad(array, rows) for name, array in episode.arrays.items()}
    padded["terminated"] = _pad(np.asarray(episode.terminated), rows)
    padded["truncated"] = _pad(np.asarray(episode.truncated), rows)
    padded["valid"] = np.arange(rows) < rows - 1
    seen = np.ones(rows, bool)
    seen[-1] = episode.final_observation == "present"
    padded["observation_valid"] = seen
    return padded


def join_rows(episodes: Iterable[Episode]) -> dict[str, Rows]:
    """Returns the rows of several episodes of one layout, one after the other."""
    kept = list(episodes)
    ends = np.cumsum([episode.length + 1 for episode in kept])
    held = [episode.arrays for episode in kept]
    joined = {name: _join_field([arrays[name] for arrays in held], ends) for name in held[0]}
    for name in ("terminated", "truncated"):
        joined[name] = _join_arrays([getattr(episode, name) for episode in kept], ends)
    valid = np.ones(ends[-1], bool)
    valid[ends - 1] = False
    seen = np.ones(ends[-1], bool)
    seen[ends - 1] = [episode.final_observation == "present" for episode in kept]
    return {**joined, "valid": valid, "observation_valid": seen}


def _join_field(pieces: list[Rows], ends: np.ndarray) -> Rows:
    arrays = [piece for piece in pieces if isinstance(piece, np.ndarray)]
    if len(arrays) == len(pieces):
        return _join_arrays(arrays, ends)
    lengths = np.diff(ends, prepend=0).tolist()
    return join([_pad(piece, rows) for piece, rows in zip(pieces, lengths, strict=True)])


def _join_arrays(pieces: list[np.ndarray], ends: np.ndarray) -> np.ndarray:
    """Copies each array once: those that lack their last row are padded where they end up."""
    first = pieces[0]
    joined = np.empty((ends[-1], *first.shape[1:]), first.dtype)
    start = 0
    for piece, end in zip(pieces, ends.tolist(), strict=True):
        joined[start : start + len(piece)] = piece
        joined[start + len(piece) : end] = np.nan if first.dtype.kind == "f" else 0
        start = end
    return joined


def cut_padding(name: str, rows: Rows, final_observation: str, full_extra: bool) -> Rows:
    """Returns the real entries of one field of one episode's T+1 rows.

    Args:
        name: the field's full name.
        rows: (T+1, ...), one episode's rows of that field.
        final_observation: as in the episode row; `missing` cuts the observations' last row.
        full_extra: True for an extra whose last row is real.
    """
    if name.startswith("observations"):
        return rows[:-1] if final_observation == "missing" else rows
    return rows if full_extra else rows[:-1]


def _pad(array: Rows, rows: int) -> Rows:
    return array if len(array) == rows else pad_row(array)
