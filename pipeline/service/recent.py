"""Episodes that were sealed since an offset of the log: the store's answer to who reads the tail.

Commits say through which offset they hold a log's episodes, not where each one ended; so the oldest
commit of the answer may bring some that are older than asked, and whoever breaks off within one
gets all of it again.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.service.seal import sealed_in, source_name
from pipeline.store.reader import Version
from pipeline.store.store import Store
from schemas.episode import Episode
from schemas.version import Append, Part, VersionRef


def sealed_since(
    store: Store, head: VersionRef, server: str, after: int
) -> Iterator[tuple[int, Episode]]:
    """Yields episodes of a log that are in a version, in the order of their ends.

    Args:
        store: which.
        head: the version.
        server: the log's id.
        after: the offset from which on they are wanted.

    Yields:
        The offset to go on after, which the commit before holds the log through, and the episode.
    """
    version = store.version(head.id)
    name = source_name(server)
    if sealed_in(version.state, server) <= after:
        return
    found: list[tuple[int, tuple[Part, ...]]] = []
    for commit in store.catalog.refs.history(version.commit):
        sealed = [
            one for one in commit.operations if isinstance(one, Append) and name in one.sources
        ]
        if not sealed:
            continue
        through = int(sealed[0].sources[name].metadata["offset"])
        if through <= after:
            break
        found.append((through, tuple(part for one in sealed for part in one.parts)))
    before = after
    for through, parts in reversed(found):
        for part in parts:
            for episode in _episodes(version, store.catalog.parquet(part.rows)):
                yield before, episode
        before = through


def _episodes(version: Version, rows: pa.Table) -> Iterator[Episode]:
    """Yields the episodes of some rows that a version still has."""
    known = version.episodes(columns=["episode_id"])["episode_id"].combine_chunks()
    at = pc.drop_null(pc.index_in(rows["episode_id"], value_set=known))
    yield from version.episodes_at(np.sort(at.to_numpy()))
