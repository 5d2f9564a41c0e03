"""The rows of one put as an episode, by a plan that is made once for each layout.

`schemas.arrow.episode_from_rows` makes an episode of any rows, and checks everything anew. Here the
layout says beforehand what an episode of it is: names, dtypes and shapes hold for all of them, the
lengths follow from the number of rows, and the facts were checked by `EpisodeFacts`. A layout, or
an episode, of which that cannot be said beforehand is left to the general way; both make equal
episodes.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from schemas.episode import Episode
from schemas.rollouts import EpisodeFacts, utc
from schemas.rows import FLAGS, RowLayout

KNOWN_ROWS = 1024
"""Of so few rows flags are remembered by their bits."""
_TEXTS = ("task", "policy", "policy_version", "source", "source_key")


@dataclass(frozen=True)
class _Column:
    """Where a field is, and what."""

    name: str
    index: int
    dtype: np.dtype
    shape: tuple[int, ...]
    """Of one row."""
    size: int
    """Numbers of one row."""
    is_list: bool


class Plan:
    """How rows of one layout become episodes."""

    def __init__(self, layout: RowLayout) -> None:
        """Makes a plan for a layout that `schemas.puts` checked."""
        self.layout = layout
        columns = [
            _Column(
                name=name,
                index=index,
                dtype=field.numpy_dtype,
                shape=field.shape,
                size=int(np.prod(field.shape, dtype=np.int64)),
                is_list=bool(field.shape),
            )
            for index, (name, field) in enumerate(layout.fields.items())
            if name not in FLAGS
        ]
        self._observations = [one for one in columns if one.name.startswith("observations")]
        self._actions = [one for one in columns if one.name.startswith("actions")]
        self._rewards = [one for one in columns if one.name == "rewards"]
        self._extras = [one for one in columns if one.name.startswith("extras/")]
        is_one = any(one.name == "actions" for one in self._actions)
        self.is_plain = (
            not layout.has_packed
            and bool(self._observations)
            and not (is_one and len(self._actions) > 1)
            and all(one.size and one.dtype.kind in "iuf" and one.dtype.isnative for one in columns)
        )
        """True if episodes of the layout can be made in this way."""

    def episode(
        self,
        episode_id: str,
        facts: EpisodeFacts,
        rows: pa.RecordBatch,
        flags: Mapping[str, np.ndarray],
    ) -> Episode | None:
        """Returns the episode that checked rows make; None leaves it to the general way.

        Args:
            episode_id: its id.
            facts: as they came.
            rows: T+1 of them, without nulls.
            flags: of those rows.
        """
        if not self.is_plain or not _is_ascii(episode_id, facts):
            return None
        count = rows.num_rows
        steps = count - 1
        seen = steps if facts.final_observation == "missing" else count
        full = self.layout.full_extras
        named = {one.name: _numbers(rows, one, steps) for one in self._actions}
        # Nothing is left for `Episode` to check or to bring into another form.
        episode = object.__new__(Episode)
        episode.__dict__.update(
            facts.__dict__,
            episode_id=episode_id,
            observations={one.name: _numbers(rows, one, seen) for one in self._observations},
            actions=named.get("actions", named or None),
            rewards=_numbers(rows, self._rewards[0], steps) if self._rewards else None,
            terminated=flags["terminated"][:-1],
            truncated=flags["truncated"][:-1],
            collected_at=utc(facts.collected_at),
            columns=dict(facts.columns),
            labels=dict(facts.labels),
            extras={
                one.name.removeprefix("extras/"): _numbers(
                    rows, one, count if one.name in full else steps
                )
                for one in self._extras
            },
            spec=self.layout.spec,
        )
        return episode


def flags_of(rows: pa.RecordBatch | pa.Table) -> dict[str, np.ndarray]:
    """Returns the flags of some rows, (rows,) bool each."""
    first = rows.num_columns - len(FLAGS)
    return {name: _bits(rows.column(first + number)) for number, name in enumerate(FLAGS)}


def _bits(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Returns booleans without nulls, (rows,).

    Arrow would let other threads in meanwhile, which takes much longer than the work itself.
    """
    if not isinstance(column, pa.Array):
        return np.asarray(column.to_numpy())
    start, stop = column.offset, column.offset + len(column)
    held = memoryview(column.buffers()[1])
    if not start and stop <= KNOWN_ROWS:
        return _known_bits(bytes(held[: -(-stop // 8)]), stop)
    bits = np.frombuffer(held, np.uint8)
    return np.unpackbits(bits, count=stop, bitorder="little")[start:].view(bool)


@functools.lru_cache(maxsize=1024)
def _known_bits(held: bytes, count: int) -> np.ndarray:
    """Returns booleans, (count,), that nobody may write to: most episodes have the same flags."""
    bits = np.unpackbits(np.frombuffer(held, np.uint8), count=count, bitorder="little")
    bits.flags.writeable = False
    return bits.view(bool)


def _numbers(rows: pa.RecordBatch, column: _Column, count: int) -> np.ndarray:
    """Returns the first rows of a plain field as they lie there, (count, *shape)."""
    found = rows.column(column.index)
    first = found.offset * column.size
    if column.is_list:
        found = found.values
        first += found.offset
    values = np.frombuffer(
        found.buffers()[1], column.dtype, count * column.size, first * column.dtype.itemsize
    )
    return values.reshape(count, *column.shape) if column.is_list else values


def _is_ascii(episode_id: str, facts: EpisodeFacts) -> bool:
    """True if all texts are plain: others might be none that can be stored."""
    said = facts.__dict__
    return (
        episode_id.isascii()
        and all(said[name] is None or said[name].isascii() for name in _TEXTS)
        and all(
            name.isascii() and (not isinstance(value, str) or value.isascii())
            for some in (facts.columns, facts.labels)
            for name, value in some.items()
        )
    )
