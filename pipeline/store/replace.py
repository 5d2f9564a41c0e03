"""Replacing: an episode whose content changed comes in as its old content leaves, in one commit.

No file is rewritten. The old row is left out of its part by a selection, as a curated version does
it, and overlays no longer speak of its id: a score is of a content, not of a name. Older versions
name the older parts and overlays, and show what they showed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.store import blocks, ids, layout
from pipeline.store.catalog import Catalog
from pipeline.store.derive import write_selection
from pipeline.store.known import Place
from pipeline.store.tables import episode_table, kept_positions, overlay_rows
from schemas.document import DataFile
from schemas.version import Commit, Overlay, Part, Replaced, State


def replaced(catalog: Catalog, state: State, places: Sequence[Place]) -> Replaced:
    """Returns what a state's parts and overlays become without some of its episodes.

    Args:
        catalog: the store; it gets a selection, and a list of ids for the overlays.
        state: of the head that is committed on.
        places: of the episodes that leave, at least one.
    """
    parts: list[Part] = []
    partial: list[tuple[Part, np.ndarray]] = []
    for number in sorted({place.part for place in places}):
        part = state.parts[number]
        mine = [place for place in places if place.part == number]
        cut = part.model_copy(
            update={
                "episodes": part.episodes - len(mine),
                "steps": part.steps - sum(place.length for place in mine),
            }
        )
        parts.append(cut)
        if cut.episodes:
            count = catalog.parquet(part.rows).num_rows
            kept = kept_positions(catalog, part, count)
            partial.append((cut, np.setdiff1d(kept, [place.row for place in mine])))
    if partial:
        file = write_selection(catalog, partial)
        cut_ids = {part.id for part, _ in partial}
        parts = [
            part.model_copy(update={"selection": file}) if part.id in cut_ids else part
            for part in parts
        ]
    overlays = silenced(catalog, state.overlays, [(p.episode_id, p.digest) for p in places])
    return Replaced(episodes=len(places), parts=tuple(parts), overlays=overlays)


def silenced(
    catalog: Catalog, overlays: Sequence[Overlay], gone: Collection[tuple[str, str]]
) -> tuple[Overlay, ...]:
    """Returns those overlays that speak of some episodes, as they are without them.

    Args:
        catalog: the store; it gets a list of the ids, unless no overlay speaks of them.
        overlays: which.
        gone: `(episode id, digest)` of the episodes.
    """
    names = pa.array([name for name, _ in gone], pa.string())
    speaking = []
    for overlay in overlays:
        said = overlay_rows(catalog, overlay)["episode_id"].cast(pa.string())
        if pc.any(pc.is_in(said, value_set=names)).as_py():
            speaking.append(overlay)
    if not speaking:
        return ()
    file = _write_ids(catalog, gone)
    return tuple(one.model_copy(update={"without": (*one.without, file)}) for one in speaking)


def changed_between(catalog: Catalog, base: Commit, head: Commit) -> list[tuple[str, str]]:
    """Returns `(episode id, digest)` in `base` of the episodes that `head` has with another."""
    before, after = (
        episode_table(catalog, commit).select(["episode_id", "digest"]) for commit in (base, head)
    )
    at = pc.index_in(before["episode_id"], value_set=after["episode_id"].combine_chunks())
    shared = before.filter(pc.is_valid(at))
    differs = pc.not_equal(shared["digest"], after["digest"].take(pc.drop_null(at)))
    rows = shared.filter(differs).to_pylist()
    return [(row["episode_id"], row["digest"]) for row in rows]


def _write_ids(catalog: Catalog, pairs: Collection[tuple[str, str]]) -> DataFile:
    data = ids.encode(ids.keys(pairs))
    key = layout.id_index(layout.new_id())
    catalog.objects.put({key: data})
    return blocks.data_file(key, data)
