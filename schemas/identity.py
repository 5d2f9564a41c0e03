"""Who an episode is: digests of content, and the ids made from them.

The digest covers what the episode's *source* states (arrays with dtype and shape, end flags,
native facts), never where or when it was read, so the same episode found twice is one episode.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np

from schemas.episode import Episode
from schemas.packed import Packed, Rows, Video


def digest(episode: Episode) -> str:
    """Returns the SHA-256 of an episode's content as 64 hex digits."""
    sha = hashlib.sha256()
    arrays: dict[str, Rows] = {
        **episode.arrays,
        "terminated": np.asarray(episode.terminated),
        "truncated": np.asarray(episode.truncated),
    }
    for name in sorted(arrays):
        rows = arrays[name]
        if isinstance(rows, Packed | Video):
            _add_encoded(sha, name, rows)
            continue
        array = np.ascontiguousarray(rows)
        if array.dtype.byteorder == ">" or not np.little_endian:
            array = array.astype(array.dtype.newbyteorder("<"))
        sha.update(f"{name}\0{array.dtype.newbyteorder('<').str}\0{array.shape}\0".encode())
        sha.update(array.reshape(-1).view(np.uint8).data if array.size else b"")
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
    sha.update(json.dumps(facts, sort_keys=True).encode())
    return sha.hexdigest()


def _add_encoded(sha: hashlib._Hash, name: str, rows: Packed | Video) -> None:
    """Encoded rows count as they came: their bytes, or which frames of which files they name."""
    spec = rows.spec
    sha.update(f"{name}\0{spec.encoding}\0{spec.dtype}\0{rows.shape}\0".encode())
    if isinstance(rows, Packed):
        sha.update(np.ascontiguousarray(rows.offsets, "<i8").data)
        sha.update(np.ascontiguousarray(rows.data).data)
        return
    rows = rows[:]  # media in the order of their first frames, wherever they were listed
    sha.update("\0".join(media.sha256 for media in rows.media).encode())
    sha.update(np.ascontiguousarray(rows.index, "<i4").data)
    sha.update(np.ascontiguousarray(rows.timestamps, "<f8").data)


def content_id(content_digest: str, count: int) -> str:
    """Returns the id of the `count`-th episode of equal content in one dataset."""
    return f"c-{content_digest}-{count}"


def native_id(namespace: str, native: str) -> str:
    """Returns the id of an episode whose dataset has an identity of its own."""
    return f"{namespace}/{native}"


def hash64(text: str) -> int:
    """Returns the 64-bit hash that id indexes hold for a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
