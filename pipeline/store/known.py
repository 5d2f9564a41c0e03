"""What a branch knows of the episodes it is offered: new, known, changed.

The id indexes answer for most: an id that was never seen is new, one with the same digest known. Of
the others the episode rows are asked: what an id is stored with, and whether it still is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.store import ids
from pipeline.store.catalog import Catalog
from pipeline.store.tables import kept_positions
from schemas.identity import hash64
from schemas.table import EpisodeRow
from schemas.version import State

OnChange = Literal["quarantine", "replace"]
"""What becomes of an episode whose id is known with other content."""


@dataclass(frozen=True)
class Place:
    """Where a kept episode stands."""

    episode_id: str
    digest: str
    length: int
    part: int
    """Position of its part in the state."""
    row: int
    """Position of its row in that part."""


@dataclass(frozen=True)
class Sorted:
    """Offered episodes by what becomes of them; the known ones are in none."""

    coming: tuple[EpisodeRow, ...]
    """The new and the changed ones, in the order they were offered."""
    new: tuple[EpisodeRow, ...]
    changed: tuple[tuple[EpisodeRow, Place], ...]
    """Those that come in the place of others."""
    conflicts: tuple[tuple[EpisodeRow, str], ...]
    """Those that are refused, with the digest their id stands for."""


class Known:
    """What one state of a branch knows."""

    def __init__(self, catalog: Catalog, state: State, on_change: OnChange = "quarantine") -> None:
        self._catalog = catalog
        self._state = state
        self._replaces = on_change == "replace"
        self._indexes = [catalog.id_index(file) for file in state.known]
        self._digests: dict[str, str] | None = None

    def is_wanted(self, episode_id: str, digest: str) -> bool:
        """True if an episode would come in, so that its rows must be written."""
        if not self._indexes:
            return True
        seen = ids.seen_one(self._indexes, episode_id, digest)
        if seen is not ids.Seen.KNOWN:
            return seen is ids.Seen.NEW or self._replaces
        pair = ids.keys([(episode_id, digest)])
        if not self._replaces or not ids.has_others(self._indexes, pair)[0]:
            return False
        if self._digests is None:
            self._digests = self._changing()
        return self._digests.get(episode_id, digest) != digest

    def sort(self, rows: Sequence[EpisodeRow]) -> Sorted:
        """Says of each episode what becomes of it; the first of an id in a batch speaks for it."""
        pairs = ids.keys((row.episode_id, row.digest) for row in rows)
        seen = ids.classify(self._indexes, pairs)
        asked = seen == ids.Seen.OTHER
        if self._replaces:
            asked |= (seen == ids.Seen.KNOWN) & ids.has_others(self._indexes, pairs)
        wanted = {row.episode_id for row, ask in zip(rows, asked, strict=True) if ask}
        places = {place.episode_id: place for place in self._places(wanted)} if wanted else {}
        first: dict[str, str] = {}
        coming: list[EpisodeRow] = []
        new: list[EpisodeRow] = []
        changed: list[tuple[EpisodeRow, Place]] = []
        conflicts: list[tuple[EpisodeRow, str]] = []
        for row, verdict, ask in zip(rows, seen, asked, strict=True):
            name = row.episode_id
            place = places.get(name)
            said = first.get(name)
            if self._replaces:
                first.setdefault(name, row.digest)
            if said is not None and (self._replaces or verdict != ids.Seen.KNOWN):
                if said != row.digest:
                    conflicts.append((row, said))
            elif verdict == ids.Seen.NEW:
                first[name] = row.digest
                new.append(row)
                coming.append(row)
            elif not ask or (place is not None and place.digest == row.digest):
                continue
            elif place is not None and self._replaces and row.block:
                changed.append((row, place))
                coming.append(row)
            elif verdict == ids.Seen.OTHER:
                # Where no row is kept, a selection or an erasure took it; its id is still known.
                conflicts.append((row, place.digest if place else "dropped"))
        return Sorted(tuple(coming), tuple(new), tuple(changed), tuple(conflicts))

    def _places(self, wanted: Collection[str]) -> Iterable[Place]:
        """Yields where the kept ones of some ids stand."""
        erased = self._catalog.erased()
        names = pa.array(sorted(name for name in wanted if hash64(name) not in erased), pa.string())
        for number, part in enumerate(self._state.parts):
            table = self._catalog.parquet(part.rows)
            found = pc.is_in(table["episode_id"], value_set=names)
            rows = np.flatnonzero(found.to_numpy(zero_copy_only=False))
            if not len(rows):
                continue
            rows = np.intersect1d(rows, kept_positions(self._catalog, part, table.num_rows))
            facts = table.select(["episode_id", "digest", "length"]).take(rows).to_pylist()
            for row, fact in zip(rows, facts, strict=True):
                yield Place(fact["episode_id"], fact["digest"], fact["length"], number, int(row))

    def _changing(self) -> dict[str, str]:
        """Returns the digests of those kept episodes whose ids were seen with several."""
        pairs = np.concatenate([ids.keys([]), *self._indexes])
        hashes, counts = np.unique(np.unique(pairs, axis=0)[:, 0], return_counts=True)
        several = set(hashes[counts > 1].tolist())
        names: set[str] = set()
        for part in self._state.parts:
            listed = self._catalog.parquet(part.rows)["episode_id"].to_pylist()
            names.update(name for name in listed if name and hash64(name) in several)
        return {place.episode_id: place.digest for place in self._places(names)}
