"""Which numbers a batch is made of, as a pure function of seed, step and size.

Nothing is remembered between batches: sample i of global step k is word k * ceil4(B) + i of a
Philox 4x64-10 stream (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) keyed
by the seed. Only the raw words of NumPy's bit generator are used; they are fixed by the algorithm,
while the methods of `Generator` may change from release to release. So any rank, worker, residency
or resumed run finds the same order.
"""

from __future__ import annotations

import numpy as np

WORDS_PER_BLOCK = 4  # Philox makes four 64-bit words per counter value

ROW, WITHIN, GOAL_KIND, GOAL_PLACE, CHUNKS, CHUNK_ROWS, IMAGE = (
    purpose << 32 for purpose in range(7)
)
"""Domains of independent draws under one seed; added to the number of a mixture's source, and for
`IMAGE` to that of the images of a batch."""
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def uniform(
    seed: int, step: int, batch_size: int, n: int, *, steps: int = 1, domain: int = 0
) -> np.ndarray:
    """Returns the numbers of some consecutive global batches, (steps, batch_size) int64 in [0, n).

    Args:
        seed: 64-bit key of the order.
        step: number of the first global batch.
        batch_size: B, rows of a global batch.
        n: size of the set that is drawn from, with replacement.
        steps: how many batches at once.
        domain: tells apart independent draws under one seed.
    """
    return below(random(seed, step, batch_size, steps=steps, domain=domain), n)


def random(seed: int, step: int, batch_size: int, *, steps: int = 1, domain: int = 0) -> np.ndarray:
    """Returns one random word per row of some global batches, (steps, batch_size) uint64."""
    width = -(-batch_size // WORDS_PER_BLOCK) * WORDS_PER_BLOCK
    found = words(seed, domain, step * width, steps * width)
    return found.reshape(steps, width)[:, :batch_size]


def words(seed: int, domain: int, first: int, count: int) -> np.ndarray:
    """Returns `count` Philox words from position `first` (a multiple of 4) on, uint64."""
    key = np.array([seed, domain], np.uint64)
    bits = np.random.Philox(key=key, counter=first // WORDS_PER_BLOCK)
    found: np.ndarray = bits.random_raw(count)
    return found


def below(random: np.ndarray, n: int) -> np.ndarray:
    """Maps 64-bit words onto [0, n) as floor(word * n / 2^64), int64.

    The bias is at most n / 2^64 per number: 5e-11 for a billion rows.
    """
    high: np.ndarray = random >> _HALF
    low: np.ndarray = random & _LOW
    size = np.uint64(n)
    if n >> 32:
        return _multiply_high(high, low, n).view(np.int64)
    low *= size  # in place: this runs for every sample
    low >>= _HALF
    high *= size
    high += low
    high >>= _HALF
    return high.view(np.int64)


def below_each(random: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Maps 64-bit words onto [0, size), each with its own size below 2^32, int64."""
    size = sizes.astype(np.uint64)
    high, low = random >> _HALF, random & _LOW
    found: np.ndarray = (high * size + ((low * size) >> _HALF)) >> _HALF
    return found.view(np.int64)


def _multiply_high(high: np.ndarray, low: np.ndarray, n: int) -> np.ndarray:
    """Upper 64 bits of (high, low) * n by halves, for sets beyond 2^32."""
    n_high, n_low = np.uint64(n >> 32), np.uint64(n & 0xFFFFFFFF)
    middle = high * n_low + ((low * n_low) >> _HALF)
    cross = low * n_high + (middle & _LOW)
    found: np.ndarray = high * n_high + (middle >> _HALF) + (cross >> _HALF)
    return found


def share(batch_size: int, rank: int, world_size: int) -> slice:
    """Returns which rows of a global batch a rank takes: floor(rB/W) to floor((r+1)B/W)."""
    return slice(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)
