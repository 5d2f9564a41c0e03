"""Prioritised draws: a sum tree over transitions, told of new priorities as training goes on.

After Schaul et al., "Prioritized Experience Replay" (ICLR 2016): a transition of priority p is
drawn with a probability in proportion to p^alpha, and its importance weight is (N P)^-beta over
the largest of its batch. What was not told of yet has the largest priority told so far.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.stream.index import TransitionIndex
from schemas.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from pipeline.stream.source import OpenVersion

Gathered = tuple[np.ndarray, np.ndarray]
AllGather = Callable[[Gathered], list[Gathered]]
"""Takes this rank's indices and priorities; returns those of all ranks, in order of the ranks."""

SMALLEST = 1e-6  # no transition is lost for ever


class Priorities:
    """One priority per transition of a version.

    Args:
        index: the transitions.
        version: id of their version.
        alpha: power of the priorities.
    """

    def __init__(self, index: TransitionIndex, version: str, alpha: float) -> None:
        self.index, self.version, self.alpha = index, version, alpha
        self.largest = 1.0
        self.values = np.ones(len(index))
        self._leaves = 1 << max(0, len(index) - 1).bit_length()
        self._sums = np.zeros(2 * self._leaves)  # node k has the children 2k and 2k + 1
        self._rebuild()

    def update(self, indices: Any, priorities: Any, all_gather: AllGather | None = None) -> None:
        """Tells of new priorities; of several for one transition the last counts.

        Args:
            indices: (n,) of transitions, as batches carry them.
            priorities: (n,) finite and not negative.
            all_gather: hands this rank's to all ranks; each must call it once per step.

        Raises:
            UsageError: if they do not fit.
        """
        mine = (as_array(indices).astype(np.int64), as_array(priorities).astype(np.float64))
        if mine[0].shape != mine[1].shape:
            raise UsageError(
                f"Expected one priority per index, came {mine[1].shape} for {mine[0].shape}."
            )
        every = [mine] if all_gather is None else all_gather(mine)
        positions = np.concatenate([np.asarray(part[0]) for part in every])
        values = np.concatenate([np.asarray(part[1]) for part in every])
        if not (np.isfinite(values) & (values >= 0)).all():
            raise UsageError("Expected finite priorities of at least 0, came others.")
        if len(values):
            self.put(self.index.numbers_at(positions), values)

    def put(self, numbers: np.ndarray, values: np.ndarray) -> None:
        """Sets the priorities of some transitions by number."""
        self.values[numbers] = np.maximum(values, SMALLEST)
        self.largest = max(self.largest, float(values.max()))
        nodes = np.unique(numbers) + self._leaves
        self._sums[nodes] = self.values[nodes - self._leaves] ** self.alpha
        while nodes[0] > 1:  # sums are remade from their parts, so no rounding adds up
            nodes = np.unique(nodes >> 1)
            self._sums[nodes] = self._sums[2 * nodes] + self._sums[2 * nodes + 1]

    def draw(self, words: np.ndarray, beta: float) -> Gathered:
        """Returns transitions and their importance weights, (steps, batch_size) each."""
        left = (words >> np.uint64(11)) * 2.0**-53 * self._sums[1]
        nodes = np.ones(words.shape, np.int64)
        for _ in range(self._leaves.bit_length() - 1):
            nodes *= 2
            first = self._sums[nodes]
            # Rounding must not lead to what lies past the last leaf, where all sums are 0.
            goes_right = (left >= first) & (self._sums[nodes + 1] > 0)
            left = np.where(goes_right, left - first, left)
            nodes += goes_right
        chance = self._sums[nodes] / self._sums[1]
        weights = (len(self.index) * chance) ** -beta
        return nodes - self._leaves, weights / weights.max(axis=1, keepdims=True)

    def carried(self, index: TransitionIndex, version: str) -> Priorities:
        """Returns the priorities for another version; episodes that both have keep theirs."""
        made = Priorities(index, version, self.alpha)
        made.largest = self.largest
        made.values[:] = self.largest
        mine, theirs = self.index.spans, index.spans
        known = {name: at for at, name in enumerate(self.index.episode_ids)}
        for at, name in enumerate(index.episode_ids):
            before = known.get(name)
            if before is not None and mine.count[before] == theirs.count[at]:
                old = slice(mine.number[before], mine.number[before] + mine.count[before])
                new = slice(theirs.number[at], theirs.number[at] + theirs.count[at])
                made.values[new] = self.values[old]
        made._rebuild()
        return made

    def state(self) -> dict[str, Any]:
        """Returns all priorities as plain values."""
        packed = zlib.compress(self.values.astype("<f8").tobytes(), 1)
        values = base64.b64encode(packed).decode()
        return {"version": self.version, "largest": self.largest, "values": values}

    def load(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state`.

        Raises:
            ConfigError: if it is not a state of this version's priorities.
        """
        size = self.values.nbytes
        try:
            unpack = zlib.decompressobj()
            values = np.frombuffer(
                unpack.decompress(base64.b64decode(state["values"]), size), "<f8"
            )
            largest, version = float(state["largest"]), str(state["version"])
        except (KeyError, TypeError, ValueError, zlib.error, binascii.Error) as error:
            raise ConfigError(
                "Expected priorities that state_dict() returned, came something else."
            ) from error
        is_whole = len(values) == len(self.values) and (np.isfinite(values) & (values > 0)).all()
        if version != self.version or not is_whole or not largest > 0:
            raise ConfigError(
                f"Expected priorities of {len(self.values)} transitions of version "
                f"{self.version[:8]}, came others."
            )
        self.values[:] = values
        self.largest = largest
        self._rebuild()

    def _rebuild(self) -> None:
        self._sums[:] = 0
        self._sums[self._leaves : self._leaves + len(self.values)] = self.values**self.alpha
        level = self._leaves
        while level > 1:
            below = self._sums[level : 2 * level]
            self._sums[level // 2 : level] = below[::2] + below[1::2]
            level //= 2


def priorities_for(
    opened: OpenVersion,
    before: Priorities | None,
    state: Mapping[str, Any] | None = None,
) -> Priorities | None:
    """Returns the priorities of an open version; None if its sampler has none.

    Args:
        opened: the version.
        before: what was told so far, of it or of another version.
        state: what `Priorities.state` returned, to go on from.
    """
    if opened.config.sampler != "prioritised":
        return None
    version = opened.version.id
    if before is not None and before.version == version:
        return before
    if before is not None:
        return before.carried(opened.index, version)
    made = Priorities(opened.index, version, opened.config.priority_alpha)
    if state is not None:
        made.load(state)
    return made


def as_array(values: Any) -> np.ndarray:
    """Tensors of any device as an array."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
    return np.asarray(values).reshape(-1)


def gathering(all_gather: AllGather | None, world_size: int) -> AllGather | None:
    """Returns what gathers priorities of all ranks; None for a single one.

    Raises:
        UsageError: if there are several ranks and nothing gathers.
    """
    if all_gather is None and world_size > 1:
        raise UsageError(
            f"Expected all_gather=, as each of {world_size} ranks must know all priorities, came "
            f"none."
        )
    return all_gather
