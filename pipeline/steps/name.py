"""Naming: from what a source calls its episodes to ids that hold everywhere.

A dataset with an identity of its own lends it as a namespace; episodes of a bare file are named by
content, counting equal ones, so that equal episodes all count and a copied file adds nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from schemas.identity import content_id, native_id


def episode_ids(natives_and_digests: Iterable[tuple[str | None, str]]) -> list[str]:
    """Returns the ids of one dataset's episodes, in the dataset's own order.

    Args:
        natives_and_digests: `(qualified native id or None, content digest)` of each episode.
    """
    counts: Counter[str] = Counter()
    named = []
    for native, digest in natives_and_digests:
        if native is not None:
            named.append(native)
            continue
        named.append(content_id(digest, counts[digest]))
        counts[digest] += 1
    return named


def qualified(namespace: str | None, native: str | None) -> str | None:
    """Returns `<namespace>/<native id>`, or None for an episode that is named by content."""
    return None if namespace is None or native is None else native_id(namespace, native)
