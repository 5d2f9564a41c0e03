"""From episodes to durable blocks: group by layout, pack, encode, put; media files first.

Blocks are written before anything refers to them; until a commit does, they do not exist for any
reader. Memory holds one block per layout, never the whole input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.store import blocks, layout
from pipeline.store.media import MediaWriter, media_of
from pipeline.store.objects import Objects
from schemas.episode import Episode
from schemas.packed import stored_bytes
from schemas.rows import RowLayout, join_rows, layout_of
from schemas.spec import DatasetSpec
from schemas.table import EpisodeRow, episode_row
from schemas.version import Block


@dataclass(frozen=True)
class WrittenBlock:
    """A block on disk and the episodes whose rows it holds."""

    block: Block
    spec: DatasetSpec
    rows: tuple[EpisodeRow, ...]
    positions: tuple[int, ...]
    """Where each episode stood in the input."""
    came: DatasetSpec | None = None
    """The episodes' own spec, where they were cast to this one."""


@dataclass
class _Pile:
    """Episodes of one layout that wait for their block."""

    layout: RowLayout
    episodes: list[tuple[int, Episode, EpisodeRow]]
    rows: int = 0
    encoded_bytes: int = 0
    came: DatasetSpec | None = None

    def __post_init__(self) -> None:
        self.most_rows = blocks.block_rows(self.layout)


def write_blocks(
    objects: Objects,
    episodes: Iterable[tuple[Episode, EpisodeRow]],
    *,
    spec: str = "default",
    cast: Callable[[Episode], Episode] | None = None,
) -> Iterator[WrittenBlock]:
    """Writes episodes into blocks, each as soon as it is full.

    Args:
        objects: where.
        episodes: with their rows, as `schemas.table.episode_row` makes them.
        spec: name of the spec they join, unless a commit settles another.
        cast: gives what is to be written of an episode; its row stays that of what came.

    Yields:
        Durable blocks; every episode is in exactly one.
    """
    media = MediaWriter(objects)
    piles: dict[object, _Pile] = {}
    for position, (episode, row) in enumerate(episodes):
        stored = cast(episode) if cast else episode
        came = None if stored is episode else episode.spec
        row_layout = layout_of(stored)
        key = (row_layout.key, came)
        pile = piles.get(key)
        if pile is None:
            pile = piles[key] = _Pile(row_layout, [], came=came)
        added, size = episode.length + 1, encoded_bytes(stored)
        rows, held = pile.rows + added, pile.encoded_bytes + size
        if pile.episodes and (rows > pile.most_rows or held > blocks.ENCODED_SHARD_BYTES):
            yield _write(objects, media, pile, spec)
            pile = piles[key] = _Pile(row_layout, [], came=came)
        pile.episodes.append((position, stored, row))
        pile.rows += added
        pile.encoded_bytes += size
    for pile in piles.values():
        yield _write(objects, media, pile, spec)


def encoded_bytes(episode: Episode) -> int:
    """Returns the bytes of an episode's encoded rows, media files left out."""
    arrays = episode.arrays.values()
    return sum(stored_bytes(rows) for rows in arrays if not isinstance(rows, np.ndarray))


def _write(objects: Objects, media: MediaWriter, pile: _Pile, spec: str) -> WrittenBlock:
    name = layout.new_id()
    rows = join_rows(episode for _, episode, _ in pile.episodes)
    members = [(position, episode.length, row) for position, episode, row in pile.episodes]
    pile.episodes.clear()  # what they held is joined: its memory serves the encoding
    named = tuple(media.put(one) for one in media_of(rows.values()).values())
    if blocks.is_tail(pile.layout, pile.rows, pile.encoded_bytes):
        data = blocks.encode_tail(rows, pile.layout)
        file = blocks.data_file(layout.tail(name), data)
        files = {file.key: data}
        container, size = "tail", len(data)
    else:
        shard = blocks.encode_shard(rows, pile.layout)
        listing = blocks.shard_listing(name, shard, pile.layout)
        file = blocks.data_file(layout.shard_files(name), listing)
        files = {f"{layout.shard(name)}/{key}": data for key, data in shard.items()}
        files[file.key] = listing
        container, size = "shard", sum(map(len, files.values()))
    del rows
    objects.put(files)
    starts = np.cumsum([0, *(length + 1 for _, length, _ in members)])
    block = Block(
        id=name,
        container=container,  # type: ignore[arg-type]
        spec=spec,
        rows=pile.rows,
        bytes=size,
        file=file,
        media=named,
    )
    return WrittenBlock(
        block=block,
        spec=pile.layout.spec,
        rows=tuple(
            row.placed(name, int(start))
            for (_, _, row), start in zip(members, starts, strict=False)
        ),
        positions=tuple(position for position, _, _ in members),
        came=pile.came,
    )


def rows_in_order(written: Iterable[WrittenBlock]) -> list[EpisodeRow]:
    """Returns the rows of all blocks in the order of the input."""
    placed = {
        position: row
        for block in written
        for position, row in zip(block.positions, block.rows, strict=True)
    }
    return [placed[position] for position in sorted(placed)]


def rows_of(episodes: Iterable[Episode]) -> Iterator[tuple[Episode, EpisodeRow]]:
    """Pairs episodes with their rows."""
    for episode in episodes:
        yield episode, episode_row(episode)
