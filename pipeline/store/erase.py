"""Erasing episodes for ever, from every version: at once for readers, then from the disk.

`erase` makes every reader subtract the episodes. `scrub` rewrites each file that still holds their
bytes, in every branch's whole history: rows of arrays become padding and rows of tables become
null, in place, so that nothing else moves; the old files are deleted once the new ones stand in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.store import blocks, layout
from pipeline.store.catalog import Catalog, parquet_bytes
from pipeline.store.files import files_of_commit
from pipeline.store.reach import branch_commits
from schemas.document import DataFile
from schemas.errors import NotFoundError
from schemas.identity import hash64
from schemas.rows import RowLayout
from schemas.version import Append, Block, Commit, Compact, Part


@dataclass(frozen=True)
class Scrubbed:
    """What a scrub did."""

    rewritten: tuple[str, ...]
    """Keys of the files that are gone; others stand in for them."""


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


def scrub(catalog: Catalog) -> Scrubbed:
    """Rewrites every file that holds bytes of an erased episode, then deletes the old one."""
    erased = catalog.erased()
    gone: list[str] = []
    if not erased:
        return Scrubbed(())
    for part in _parts(catalog):
        table = catalog.parquet(part.rows)
        mine = _erased_rows(table, erased)
        if not mine.any():
            continue
        for block in part.blocks:
            gone += _scrub_block(catalog, block, table, mine)
        gone += _replace(
            catalog, part.rows, parquet_bytes(_nulled(table, mine)), layout.episode_rows
        )
    for file in _tables(catalog):
        table = catalog.parquet(file)
        mine = _erased_rows(table, erased)
        if mine.any():
            kept = table.filter(pa.array(~mine))
            place = layout.overlay if file.key.startswith("overlays/") else layout.quarantine
            gone += _replace(catalog, file, parquet_bytes(kept), place)
    return Scrubbed(tuple(gone))


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
    for branch in catalog.refs.heads():
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


def _scrub_block(catalog: Catalog, block: Block, table: pa.Table, mine: np.ndarray) -> list[str]:
    """Pads the rows of erased episodes in a block, if it holds any."""
    inside = mine & np.array([name == block.id for name in table["_block"].to_pylist()])
    if not inside.any():
        return []
    starts, lengths = table["_row"].to_numpy(), table["length"].to_numpy()
    row_layout = catalog.block_layout(block)
    rows = {name: array.copy() for name, array in catalog.read_block(block).items()}
    for at in np.flatnonzero(inside):
        span = slice(int(starts[at]), int(starts[at] + lengths[at] + 1))
        for array in rows.values():
            array[span] = np.nan if array.dtype.kind == "f" else 0
    old = catalog.block_files(block)
    resolved = [catalog.erasures.resolve(file) for file in old]
    replacement, files = _encode(block, rows, row_layout)
    catalog.objects.put(files)
    catalog.erasures.add(set(), {resolved[0].key: replacement})
    for file in reversed(resolved):  # the list of files last: it says what is to go
        catalog.objects.delete(file.key)
    return [file.key for file in resolved]


def _encode(
    block: Block, rows: dict[str, np.ndarray], row_layout: RowLayout
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
