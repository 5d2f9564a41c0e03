"""Who an episode is: digests of content, and the ids made from them.

The digest covers what the episode's *source* states (arrays with dtype and shape, end flags,
native facts), never where or when it was read, so the same episode found twice is one episode.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np

from schemas.episode import Episode


def digest(episode: Episode) -> str:
    """Returns the SHA-256 of an episode's content as 64 hex digits."""
    sha = hashlib.sha256()
    arrays = {
        **episode.arrays,
        "terminated": np.asarray(episode.terminated),
        "truncated": np.asarray(episode.truncated),
    }
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
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


def content_id(content_digest: str, count: int) -> str:
    """Returns the id of the `count`-th episode of equal content in one dataset."""
    return f"c-{content_digest}-{count}"


def native_id(namespace: str, native: str) -> str:
    """Returns the id of an episode whose dataset has an identity of its own."""
    return f"{namespace}/{native}"


def hash64(text: str) -> int:
    """Returns the 64-bit hash that id indexes hold for a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
