"""Erasing episodes for ever, from every version: at once for readers, then from the disk.

`erase` makes every reader subtract the episodes. `scrub` rewrites each file that still holds their
bytes, in every branch's whole history: rows of arrays become padding and rows of tables become
null, in place, so that nothing else moves; the old files are deleted once the new ones stand in.
Media files go whole, if at all (`erase_media`). A link forgets an erased episode; the file that it
was linked to is not ours and still holds it (`linked_places`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.store import blocks, layout, leases
from pipeline.store.catalog import Catalog, parquet_bytes
from pipeline.store.erase_media import drop_media
from pipeline.store.files import files_of_commit, unit_of
from pipeline.store.media import media_of
from pipeline.store.reach import branch_commits
from schemas.document import DataFile
from schemas.errors import NotFoundError
from schemas.identity import hash64
from schemas.packed import Packed, Rows, Video
from schemas.rows import RowLayout
from schemas.version import Append, Block, Commit, Compact, Part


@dataclass(frozen=True)
class Scrubbed:
    """What a scrub did."""

    rewritten: tuple[str, ...]
    """Keys of the files that are gone; others stand in for them."""
    dropped_media: tuple[str, ...] = ()
    """Keys of media files that are gone: only erased episodes used them."""
    shared_media: tuple[str, ...] = ()
    """Keys of media files that hold frames of erased episodes and stay, because kept episodes use
    them too: they go with the last of those."""


def erase(catalog: Catalog, episode_ids: Iterable[str]) -> int:
    """Makes episodes invisible in every version, for ever; returns how many.

    Their ids stay known: ingesting them again brings nothing back.

    Raises:
        NotFoundError: if no version of any branch has one of them; nothing is erased then.
    """
    wanted = set(episode_ids)
    known = {
        name
        for part in _parts(catalog)
        for name in catalog.parquet(part.rows)["episode_id"].to_pylist()
    }
    missing = sorted(wanted - known)
    if missing:
        raise NotFoundError(
            f"Expected ids of stored episodes, came {len(missing)} unknown, the first "
            f"{missing[0]!r}; nothing was erased.",
            where=catalog.url,
        )
    catalog.erasures.add({hash64(name) for name in wanted}, {})
    return len(wanted)


def linked_places(catalog: Catalog, episode_ids: Iterable[str]) -> list[str]:
    """Returns where the sources are that hold some episodes which are linked, not stored."""
    wanted = set(episode_ids)
    found = set()
    for part in _parts(catalog):
        if part.kind == "linked":
            table = catalog.parquet(part.rows).select(["episode_id", "_block"]).to_pylist()
            mine = {row["_block"] for row in table if row["episode_id"] in wanted}
            found |= {catalog.link(block).unit.where for block in part.blocks if block.id in mine}
    return sorted(found)


def scrub(catalog: Catalog) -> Scrubbed:
    """Rewrites every file that holds bytes of an erased episode, then deletes the old one.

    Raises:
        LockHeldError: if another maintainer is at work.
    """
    erased = catalog.erased()
    if not erased:
        return Scrubbed(())
    # A compaction under way could carry the bytes into a new file that this would not see.
    with leases.turn(catalog.objects, leases.MAINTAINER):
        gone = _delete_replaced(catalog)
        touched: set[str] = set()
        for part in _parts(catalog):
            gone += _scrub_part(catalog, part, erased, touched)
        gone += _scrub_tables(catalog, erased)
        dropped = drop_media(catalog, lambda: _blocks(catalog))
        return Scrubbed(tuple(gone), tuple(dropped), tuple(sorted(touched - set(dropped))))


def _delete_replaced(catalog: Catalog) -> list[str]:
    """Deletes files that others stand in for already: a scrub that died may have left some."""
    objects = catalog.objects
    gone: list[str] = []
    for key in catalog.erasures.rewrites:
        unit = unit_of(key)
        left = [entry.key for entry in objects.entries(unit)] if unit != key else [key]
        gone += [name for name in left if name != key or objects.exists(key)]
    for key in gone:
        objects.delete(key)
    return gone


def _scrub_part(catalog: Catalog, part: Part, erased: set[int], touched: set[str]) -> list[str]:
    table = catalog.parquet(part.rows)
    mine = _erased_rows(table, erased)
    gone: list[str] = []
    for block in part.blocks:
        gone += _scrub_block(catalog, block, table.filter(pa.array(~mine)), touched)
    if mine.any():
        data = parquet_bytes(_nulled(table, mine))
        gone += _replace(catalog, part.rows, data, layout.episode_rows)
    return gone


def _scrub_tables(catalog: Catalog, erased: set[int]) -> list[str]:
    gone: list[str] = []
    for file in _tables(catalog):
        table = catalog.parquet(file)
        mine = _erased_rows(table, erased)
        if mine.any():
            kept = table.filter(pa.array(~mine))
            place = layout.overlay if file.key.startswith("overlays/") else layout.quarantine
            gone += _replace(catalog, file, parquet_bytes(kept), place)
    return gone


def _parts(catalog: Catalog) -> Iterator[Part]:
    """Every part that any commit of any branch names, once."""
    seen: set[str] = set()
    for commit in _commits(catalog):
        named: list[Part] = list(commit.state.parts) if commit.state else []
        for operation in commit.operations:
            if isinstance(operation, Append):
                named += operation.parts
            elif isinstance(operation, Compact):
                named.append(operation.added)
        for part in named:
            if part.id not in seen and _is_there(catalog, part.rows):
                seen.add(part.id)
                yield part


def _blocks(catalog: Catalog) -> Iterator[Block]:
    for part in _parts(catalog):
        yield from (block for block in part.blocks if _is_there(catalog, block.file))


def _tables(catalog: Catalog) -> list[DataFile]:
    """Every overlay and list of refused episodes, once."""
    found = {
        file.key: file
        for commit in _commits(catalog)
        for file in files_of_commit(commit)
        if file.key.endswith(".parquet") and file.key.startswith(("overlays/", "quarantine/"))
    }
    return [file for file in found.values() if _is_there(catalog, file)]


def _commits(catalog: Catalog) -> Iterator[Commit]:
    for branch in catalog.objects.names(layout.BRANCHES):
        yield from branch_commits(catalog, branch)


def _is_there(catalog: Catalog, file: DataFile) -> bool:
    """False for a file that has expired: there is nothing left to erase in it."""
    return catalog.objects.exists(catalog.erasures.resolve(file).key)


def _erased_rows(table: pa.Table, erased: set[int]) -> np.ndarray:
    ids = table["episode_id"].to_pylist()
    return np.array([name is not None and hash64(name) in erased for name in ids], bool)


def _nulled(table: pa.Table, mine: np.ndarray) -> pa.Table:
    """Blanks rows where they stand: positions in a part never change."""
    keep = pa.array(np.arange(table.num_rows), mask=mine)
    columns = [column.take(keep) for column in table.columns]
    return pa.Table.from_arrays(columns, schema=table.schema)


def _scrub_block(catalog: Catalog, block: Block, kept: pa.Table, touched: set[str]) -> list[str]:
    """Pads the rows of a block that belong to none of the kept episodes.

    Those of erased ones, that is, and those of episodes that turned out to be known already when
    the block was committed: nothing refers to these, but an erased one may be among them. Keys of
    the media files that the padded rows named go into `touched`.
    """
    mine = kept.filter(pc.equal(kept["_block"], block.id))
    starts, lengths = mine["_row"].to_numpy(), mine["length"].to_numpy()
    is_kept = np.zeros(block.rows, bool)
    for start, length in zip(starts, lengths, strict=True):
        is_kept[start : start + length + 1] = True
    if is_kept.all():
        return []
    if block.container == "link":
        return _scrub_link(catalog, block, set(starts.tolist()))
    row_layout = catalog.block_layout(block)
    rows = catalog.read_block(block)
    padded = {name: _padded(array, ~is_kept) for name, array in rows.items()}
    if all(_is_same(padded[name], array) for name, array in rows.items()):
        return []
    keys = {layout.sha256_of(file.key): file.key for file in block.media}
    touched |= {keys[name] for name in media_of(_cut(r, ~is_kept) for r in rows.values())}
    rows = padded
    old = catalog.own_files(block)
    resolved = [catalog.erasures.resolve(file) for file in old]
    replacement, files = _encode(block, rows, row_layout)
    catalog.objects.put(files)
    catalog.erasures.add(set(), {resolved[0].key: replacement})
    for file in reversed(resolved):  # the list of files last: it says what is to go
        catalog.objects.delete(file.key)
    return [file.key for file in resolved]


def _scrub_link(catalog: Catalog, block: Block, kept: set[int]) -> list[str]:
    """Makes a link forget the episodes that do not begin at one of the kept rows."""
    link = catalog.link(block)
    starts = np.cumsum([0, *(length + 1 for length in link.lengths)]).tolist()
    keys = [key if at in kept else None for key, at in zip(link.keys, starts, strict=False)]
    if tuple(keys) == link.keys:
        return []
    digests = ["" if k is None else d for k, d in zip(keys, link.digests, strict=True)]
    blank = link.model_copy(update={"keys": tuple(keys), "digests": tuple(digests)})
    return _replace(catalog, block.file, blank.model_dump_json().encode(), layout.link)


def _padded(rows: Rows, where: np.ndarray) -> Rows:
    """Returns rows with padding where it is asked for, and a video's other media files only."""
    if isinstance(rows, Packed):
        kept = (b"" if gone else row for row, gone in zip(rows, where, strict=True))
        return Packed.of(rows.spec, kept)
    if isinstance(rows, Video):
        return _cut(rows, ~where)
    padded = rows.copy()
    padded[where] = np.nan if rows.dtype.kind == "f" else 0
    return padded


def _cut(rows: Rows, where: np.ndarray) -> Rows:
    """Returns a video that has frames only in some of its rows; other rows as they are."""
    if not isinstance(rows, Video):
        return rows
    index = np.where(where, rows.index, np.int32(-1))
    return Video(rows.spec, rows.media, index, np.where(where, rows.timestamps, np.nan))[:]


def _is_same(one: Rows, two: Rows) -> bool:
    if isinstance(one, Packed) and isinstance(two, Packed):
        return np.array_equal(one.offsets, two.offsets)
    if isinstance(one, Video) and isinstance(two, Video):
        return np.array_equal(one.timestamps, two.timestamps, equal_nan=True)
    return np.asarray(one).tobytes() == np.asarray(two).tobytes()


def _encode(
    block: Block, rows: Mapping[str, Rows], row_layout: RowLayout
) -> tuple[DataFile, dict[str, bytes]]:
    name = layout.new_id()
    if block.container == "tail":
        data = blocks.encode_tail(rows, row_layout)
        return blocks.data_file(layout.tail(name), data), {layout.tail(name): data}
    shard = blocks.encode_shard(rows, row_layout)
    listing = blocks.shard_listing(name, shard, row_layout)
    files = {f"{layout.shard(name)}/{key}": data for key, data in shard.items()}
    files[layout.shard_files(name)] = listing
    return blocks.data_file(layout.shard_files(name), listing), files


def _replace(
    catalog: Catalog, file: DataFile, data: bytes, place: Callable[[str], str]
) -> list[str]:
    """Puts other bytes in the stead of a file."""
    old = catalog.erasures.resolve(file)
    key = place(layout.new_id())
    catalog.objects.put({key: data})
    catalog.erasures.add(set(), {old.key: blocks.data_file(key, data)})
    catalog.objects.delete(old.key)
    return [old.key]
