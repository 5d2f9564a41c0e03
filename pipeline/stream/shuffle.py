"""Epochs: every transition exactly once, in an order of which any part can be found at once.

Each epoch permutes chunks, what one block of the store holds, and then the rows of some chunks
that follow each other. So a reader that holds those chunks alone can serve it: data larger than
memory streams in whole chunks. Permutations sort Philox words, so they are uniform, and they are
a function of seed, epoch and place alone; what is kept between calls only saves time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.stream import plan
from pipeline.stream.index import TransitionIndex


@dataclass(frozen=True)
class _Epoch:
    """In which order one epoch goes through the chunks."""

    chunks: tuple[np.ndarray, ...]
    """Chunks whose rows are shuffled together, group after group."""
    ends: np.ndarray  # (G,) int64, rows up to the end of each group


class Shuffle:
    """The order of epochs over some transitions.

    Args:
        order: (N,) int64, transitions so that those of a chunk follow each other; None if they do
            as they are numbered.
        sizes: (C,) int64, transitions of each chunk.
        window: chunks whose rows are shuffled together.
        blocks: (C,) int64, the number of the block that holds each chunk.
    """

    def __init__(
        self,
        order: np.ndarray | None,
        sizes: np.ndarray,
        window: int,
        blocks: np.ndarray | None = None,
    ) -> None:
        self._blocks = np.arange(len(sizes)) if blocks is None else blocks
        self._order, self.sizes, self.window = order, sizes, window
        self._starts = np.cumsum(sizes) - sizes
        self._epochs: dict[tuple[int, int, int], _Epoch] = {}
        self._groups: dict[tuple[int, int, int, int], np.ndarray] = {}

    @classmethod
    def of(cls, index: TransitionIndex, window: int) -> Shuffle:
        """Returns the order over all transitions of an index."""
        spans = index.spans
        blocks, owner = np.unique(spans.block, return_inverse=True)
        sizes = np.bincount(owner, weights=spans.count, minlength=len(blocks)).astype(np.int64)
        order = None
        if (np.diff(owner) < 0).any():
            episodes = np.argsort(owner, kind="stable")
            count = spans.count[episodes]
            within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
            order = np.repeat(spans.number[episodes], count) + within
        return cls(order, sizes[sizes > 0], window, blocks[sizes > 0])

    def rows(self, places: np.ndarray, seed: int, domain: int) -> np.ndarray:
        """Returns the transitions at some places of the endless order, of the shape of `places`.

        Args:
            places: int64; N of them are an epoch.
            seed: 64-bit key.
            domain: tells apart independent orders under one seed.
        """
        flat = places.reshape(-1)
        if (np.diff(flat) < 0).any():  # batches of a mixture do not use all that they ask for
            flat, inverse = np.unique(flat, return_inverse=True)
            return self.rows(flat, seed, domain)[inverse].reshape(places.shape)
        found = np.empty(len(flat), np.int64)
        total = int(self.sizes.sum())
        done = 0
        while done < len(flat):
            epoch, at = divmod(int(flat[done]), total)
            plan_of = self._epoch(epoch, seed, domain)
            group = int(np.searchsorted(plan_of.ends, at, side="right"))
            start = int(plan_of.ends[group - 1]) if group else 0
            rows = self._group(epoch, group, seed, domain)
            last = epoch * total + int(plan_of.ends[group])
            stop = done + int(np.searchsorted(flat[done:], last))
            found[done:stop] = rows[flat[done:stop] - (epoch * total + start)]
            done = stop
        return found.reshape(places.shape)

    def coming(self, place: int, seed: int, domain: int) -> np.ndarray:
        """Returns the blocks of the chunks at a place, and of those that follow, int64.

        Args:
            place: in the endless order.
            seed: as for `rows`.
            domain: as for `rows`.
        """
        epoch, at = divmod(place, int(self.sizes.sum()))
        plan_of = self._epoch(epoch, seed, domain)
        group = int(np.searchsorted(plan_of.ends, at, side="right"))
        chunks = [plan_of.chunks[group]]
        if group + 1 < len(plan_of.chunks):
            chunks.append(plan_of.chunks[group + 1])
        else:
            chunks.append(self._make_epoch(epoch + 1, seed, domain).chunks[0])
        found: np.ndarray = self._blocks[list(dict.fromkeys(np.concatenate(chunks).tolist()))]
        return found

    def _epoch(self, epoch: int, seed: int, domain: int) -> _Epoch:
        key = (epoch, seed, domain)
        if key not in self._epochs:
            self._epochs = {key: self._make_epoch(epoch, seed, domain)}
        return self._epochs[key]

    def _make_epoch(self, epoch: int, seed: int, domain: int) -> _Epoch:
        count = len(self.sizes)
        width = -(-count // plan.WORDS_PER_BLOCK) * plan.WORDS_PER_BLOCK
        words = plan.words(seed, domain + plan.CHUNKS, epoch * width, count)
        order = _sorted(words)
        groups = [order[at : at + self.window] for at in range(0, count, self.window)]
        ends = np.cumsum([int(self.sizes[group].sum()) for group in groups])
        return _Epoch(tuple(groups), ends)

    def _group(self, epoch: int, group: int, seed: int, domain: int) -> np.ndarray:
        """The transitions of one group of chunks, shuffled."""
        key = (epoch, group, seed, domain)
        if key not in self._groups:
            plan_of = self._epoch(epoch, seed, domain)
            chunks = plan_of.chunks[group]
            size, start = self.sizes[chunks], self._starts[chunks]
            within = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
            rows = np.repeat(start, size) + within
            # Each group has words of its own: its place in the epoch, rounded up per group.
            block = plan.WORDS_PER_BLOCK
            epoch_words = -(-int(self.sizes.sum()) // block) * block + block * len(plan_of.ends)
            before = int(plan_of.ends[group]) - len(rows) + block * group
            first = epoch * epoch_words + -(-before // block) * block
            words = plan.words(seed, domain + plan.CHUNK_ROWS, first, len(rows))
            rows = rows[_sorted(words)]
            self._groups = {key: rows if self._order is None else self._order[rows]}
        return self._groups[key]


def _sorted(words: np.ndarray) -> np.ndarray:
    """Returns the stable order of some words; theirs is the only one unless some are equal."""
    order: np.ndarray = np.argsort(words)
    ranked = words[order]
    if (ranked[1:] == ranked[:-1]).any():  # which hardly ever happens
        order = np.argsort(words, kind="stable")
    return order
