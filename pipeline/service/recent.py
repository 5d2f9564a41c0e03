"""Episodes that were sealed since an offset of the log: the store's answer to who reads the tail.

Commits say through which offset they hold a log's episodes, not where each one ended; so the oldest
commit of the answer may bring some that are older than asked, and whoever breaks off within one
gets all of it again. Where the rows of a commit have expired, since they were joined with others,
the version itself has its episodes, together with those of all commits before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.service.seal import sealed_in, source_name
from pipeline.store.reader import Version
from pipeline.store.store import Store
from schemas.episode import Episode
from schemas.errors import UntrustedError
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
    if sealed_in(version.state, server) <= after:
        return
    seals = _seals_since(version, server, after)
    kept: list[tuple[int, Sequence[pa.Table]]] = []
    for through, parts in seals:
        tables = _rows(version, parts)
        if tables is None:
            break
        kept.append((through, tables))
    before = after
    if len(kept) < len(seals):
        known = [table["episode_id"] for _, tables in kept for table in tables]
        for episode in version.episodes_at(_of_log(version, server, known)):
            yield before, episode
        before = seals[len(kept)][0]
    for through, tables in reversed(kept):
        for table in tables:
            for episode in _episodes(version, table):
                yield before, episode
        before = through


def _seals_since(version: Version, server: str, after: int) -> list[tuple[int, tuple[Part, ...]]]:
    """Returns through which offset each seal holds the log, and its parts; the newest first."""
    name = source_name(server)
    found: list[tuple[int, tuple[Part, ...]]] = []
    for commit in version.store.refs.history(version.commit):
        sealed = [
            one for one in commit.operations if isinstance(one, Append) and name in one.sources
        ]
        if not sealed:
            continue
        through = int(sealed[0].sources[name].metadata["offset"])
        if through <= after:
            break
        found.append((through, tuple(part for one in sealed for part in one.parts)))
    return found


def _rows(version: Version, parts: Sequence[Part]) -> list[pa.Table] | None:
    """Returns the rows of some parts; None if the version has them elsewhere and they are gone."""
    try:
        return [version.store.parquet(part.rows) for part in parts]
    except UntrustedError:
        own = {part.rows.key for part in version.state.parts}
        if all(part.rows.key in own for part in parts):
            raise
        return None


def _of_log(version: Version, server: str, known: Sequence[pa.ChunkedArray]) -> np.ndarray:
    """Returns where a version has episodes of a log, but for some that are known by id."""
    table = version.episodes(columns=["episode_id", "source_key"])
    mine = pc.starts_with(table["source_key"], f"{source_name(server)}#").fill_null(False)
    if known:
        ids = pa.concat_arrays([chunk for column in known for chunk in column.chunks])
        mine = pc.and_(mine, pc.invert(pc.is_in(table["episode_id"], value_set=ids)))
    return np.flatnonzero(mine.to_numpy())


def _episodes(version: Version, rows: pa.Table) -> Iterator[Episode]:
    """Yields the episodes of some rows that a version still has."""
    known = version.episodes(columns=["episode_id"])["episode_id"].combine_chunks()
    at = pc.drop_null(pc.index_in(rows["episode_id"], value_set=known))
    yield from version.episodes_at(np.sort(at.to_numpy()))
