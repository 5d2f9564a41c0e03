"""Who an episode is: digests of content, and the ids made from them.

The digest covers what the episode's *source* states (arrays with dtype and shape, end flags,
native facts), never where or when it was read, so the same episode found twice is one episode.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence

import numpy as np

from schemas.episode import Episode
from schemas.packed import Packed, Rows, Video

JOINED_BYTES = 1 << 15
"""Up to so many bytes are joined to be hashed at once: a call takes longer than copying them."""
UNSHARED_BYTES = 2047
"""For more than so many at a time `hashlib` lets other threads in, which takes longer than they."""
_FACTS = json.JSONEncoder(sort_keys=True)


def digest(episode: Episode) -> str:
    """Returns the SHA-256 of an episode's content as 64 hex digits."""
    said: list[bytes | memoryview] = []
    arrays: dict[str, Rows] = {
        **episode.arrays,
        "terminated": np.asarray(episode.terminated),
        "truncated": np.asarray(episode.truncated),
    }
    for name in sorted(arrays):
        rows = arrays[name]
        if isinstance(rows, Packed | Video):
            _add_encoded(said, name, rows)
            continue
        array = np.ascontiguousarray(rows)
        if array.dtype.byteorder == ">" or not np.little_endian:
            array = array.astype(array.dtype.newbyteorder("<"))
        said.append(_heading(name, array.dtype, array.shape))
        said.append(array.data if array.size else b"")
    facts = {
        "final_observation": episode.final_observation,
        "task": episode.task,
        "kind": episode.kind,
        "policy": episode.policy,
        "policy_version": episode.policy_version,
        "seed": episode.seed,
        "success": episode.success,
        "collected_at": episode.collected_at.isoformat() if episode.collected_at else None,
        "fps": episode.fps,
        "columns": dict(episode.columns),
    }
    said.append(_FACTS.encode(facts).encode())
    return _sha256(said)


def _sha256(said: Sequence[bytes | memoryview]) -> str:
    """Returns the SHA-256 of some bytes, one after the other; few of them are joined first."""
    sha = hashlib.sha256()
    if sum(map(_size, said)) > JOINED_BYTES:
        for part in said:
            sha.update(part)
        return sha.hexdigest()
    joined = b"".join(said)
    for start in range(0, len(joined), UNSHARED_BYTES):
        sha.update(joined[start : start + UNSHARED_BYTES])
    return sha.hexdigest()


def _size(part: bytes | memoryview) -> int:
    return len(part) if isinstance(part, bytes) else part.nbytes


@functools.lru_cache(maxsize=1024)
def _heading(name: str, dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """Returns what says which array follows; it is made once for those that are alike."""
    return f"{name}\0{dtype.newbyteorder('<').str}\0{shape}\0".encode()


def _add_encoded(said: list[bytes | memoryview], name: str, rows: Packed | Video) -> None:
    """Encoded rows count as they came: their bytes, or which frames of which files they name."""
    spec = rows.spec
    said.append(f"{name}\0{spec.encoding}\0{spec.dtype}\0{rows.shape}\0".encode())
    if isinstance(rows, Packed):
        said.append(_bytes(rows.offsets, "<i8"))
        said.append(_bytes(rows.data, "|u1"))
        return
    rows = rows[:]  # media in the order of their first frames, wherever they were listed
    said.append("\0".join(media.sha256 for media in rows.media).encode())
    said.append(_bytes(rows.index, "<i4"))
    said.append(_bytes(rows.timestamps, "<f8"))


def _bytes(array: np.ndarray, dtype: str) -> bytes | memoryview:
    return np.ascontiguousarray(array, dtype).data if len(array) else b""


def content_id(content_digest: str, count: int) -> str:
    """Returns the id of the `count`-th episode of equal content in one dataset."""
    return f"c-{content_digest}-{count}"


def native_id(namespace: str, native: str) -> str:
    """Returns the id of an episode whose dataset has an identity of its own."""
    return f"{namespace}/{native}"


def hash64(text: str) -> int:
    """Returns the 64-bit hash that id indexes hold for a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
