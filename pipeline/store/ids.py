"""Id indexes: has this branch seen an episode, and with which content?

An index file is a sorted table of two unsigned 64-bit columns, little-endian, without a header: the
hash of an episode's id and the first 64 bits of its content digest. A look-up is one binary search
per file; the files of a branch are merged in tiers at checkpoints, so that an append opens a
bounded number of them however long the history.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum

import numpy as np

from schemas.identity import hash64


class Seen(IntEnum):
    """What an index says of one episode."""

    NEW = 0
    KNOWN = 1
    """Same id hash and same digest."""
    OTHER = 2
    """Same id hash, other digest: changed, or (once in 1e13 pairs) another id of equal hash."""


def keys(ids_and_digests: Iterable[tuple[str, str]]) -> np.ndarray:
    """Returns (n, 2) uint64 index keys of `(episode id, digest)` pairs, in their order."""
    pairs = [(hash64(name), int(digest[:16], 16)) for name, digest in ids_and_digests]
    return np.array(pairs, np.uint64).reshape(-1, 2)


def encode(pairs: np.ndarray) -> bytes:
    """Returns the file of some keys, (n, 2) uint64; equal keys are written once."""
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    fresh = np.ones(len(pairs), bool)
    fresh[1:] = (pairs[1:] != pairs[:-1]).any(axis=1)
    return pairs[fresh].astype("<u8").tobytes()


def decode(data: bytes) -> np.ndarray:
    """Inverse of `encode`: (n, 2) uint64, sorted by id hash.

    Each of the two columns lies in one piece: a search in one that does not would copy it first.
    """
    return np.asfortranarray(np.frombuffer(data, "<u8").reshape(-1, 2))


def classify(indexes: Sequence[np.ndarray], pairs: np.ndarray) -> np.ndarray:
    """Says of each key whether any index holds it.

    Args:
        indexes: decoded index files.
        pairs: (n, 2) uint64 keys.

    Returns:
        (n,) int8 of `Seen` values; `KNOWN` wins over `OTHER`.
    """
    seen = np.zeros(len(pairs), np.int8)
    for index in indexes:
        first = np.searchsorted(index[:, 0], pairs[:, 0], "left")
        last = np.searchsorted(index[:, 0], pairs[:, 0], "right")
        for at in np.flatnonzero(last > first):
            known = (index[first[at] : last[at], 1] == pairs[at, 1]).any()
            seen[at] = Seen.KNOWN if known or seen[at] == Seen.KNOWN else Seen.OTHER
    return seen


def seen_one(indexes: Sequence[np.ndarray], episode_id: str, digest: str) -> Seen:
    """Says of one episode what `classify` would say of it; for one, it is much faster."""
    name, content = np.uint64(hash64(episode_id)), np.uint64(int(digest[:16], 16))
    found = Seen.NEW
    for index in indexes:
        hashes = index[:, 0]
        first = hashes.searchsorted(name)
        if first == len(hashes) or hashes[first] != name:
            continue
        last = hashes.searchsorted(name, "right")
        if (index[first:last, 1] == content).any():
            return Seen.KNOWN
        found = Seen.OTHER
    return found


def has_others(indexes: Sequence[np.ndarray], pairs: np.ndarray) -> np.ndarray:
    """Says of each key whether any index holds its id with another digest.

    Args:
        indexes: decoded index files.
        pairs: (n, 2) uint64 keys.

    Returns:
        (n,) bool.
    """
    found = np.zeros(len(pairs), bool)
    for index in indexes:
        first = np.searchsorted(index[:, 0], pairs[:, 0], "left")
        last = np.searchsorted(index[:, 0], pairs[:, 0], "right")
        for at in np.flatnonzero(last > first):
            found[at] |= bool((index[first[at] : last[at], 1] != pairs[at, 1]).any())
    return found


def mergeable(sizes: Sequence[int]) -> int:
    """Returns how many of the newest index files to merge into one.

    Size tiers: the run of newest files is merged with every older one that is not at least four
    times as large as the run, so that file counts grow with the logarithm of the history and each
    key is rewritten as often.
    """
    count, total = 0, 0
    for size in reversed(sizes):
        if count and size >= 4 * total:
            break
        count, total = count + 1, total + size
    return count if count > 1 else 0
