"""Blocks of the store as records: reading them, and what a buffer of them takes."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from pipeline.store.reader import Version
from pipeline.stream.pictures import Pictures, is_picture, kept_encoded
from pipeline.stream.record import RecordLayout, pack_into
from pipeline.stream.residency import budget
from pipeline.stream.windowed import Room, WindowedBlock, WindowedRecords
from schemas.errors import DamagedStoreError
from schemas.packed import Rows
from schemas.stream import StreamConfig
from schemas.version import Block

FETCHES = 8
"""Blocks that are read at once, as far as processors and memory go; from a remote store whatever
the processors, as its answers are waited for."""
PIECE_BYTES = 8 << 20
"""Records whose pictures a thread decodes at a time."""

_ROW_FLAGS = ("terminated", "truncated", "observation_valid")


def read_fields(version: Version, block: Block, fields: Iterable[str]) -> dict[str, Rows]:
    """Returns those of some fields that a block has, and its flags; encoded rows as they are."""
    held = version.store.block_layout(block).fields
    names = {name for name in fields if name in held}
    return version.store.read_block(block, sorted({*names, *_ROW_FLAGS}))


def window_over(
    version: Version,
    config: StreamConfig,
    layouts: tuple[RecordLayout, RecordLayout],
    blocks: Mapping[str, tuple[int, Block]],
) -> WindowedRecords:
    """Returns a buffer of records that is filled from the store.

    Args:
        version: which one.
        config: the stream's settings.
        layouts: the record as it is gathered, and as it is in the buffer.
        blocks: with their numbers within the version, which rise.

    Raises:
        UsageError: if the budget does not hold the chunks that are shuffled together.
    """
    layout, stored = layouts
    encoded = [name for name in layout.by_name if name not in stored.by_name]
    found = {
        name: _measured(version, block, layout, number, stays_encoded=bool(encoded))
        for name, (number, block) in blocks.items()
    }
    of = {name: block for name, (_, block) in blocks.items()}
    fill = functools.partial(_fill, version, of, stored, encoded)
    most = FETCHES if "://" in version.store.url else max(2, len(os.sched_getaffinity(0)))
    room = Room(budget(config)[0], config.shuffle_window, min(FETCHES, most))
    return WindowedRecords(layout, stored, found, fill, room)


def _measured(
    version: Version, block: Block, layout: RecordLayout, number: int, *, stays_encoded: bool
) -> WindowedBlock:
    """What reading a block takes beside its records."""
    held = version.store.block_layout(block).fields
    mine = [held[name] for name in layout.by_name if name in held]
    row = sum(field.row_bytes for field in mine if field.encoding == "raw") + len(_ROW_FLAGS)
    arrays = block.rows * row
    files = sum(file.bytes for file in version.store.own_files(block))
    if block.container == "link":
        files = arrays
    if not any(map(is_picture, mine)):
        # Files, their chunks, those decoded, and the arrays that they make.
        return WindowedBlock(number, block.rows, 2 * (min(files, arrays) + arrays))
    media = [file.bytes for file in block.media]
    read = 2 * (files + arrays)
    if stays_encoded:
        return WindowedBlock(number, block.rows, read, files + sum(media))
    return WindowedBlock(number, block.rows, read + max(media, default=0) + PIECE_BYTES)


def _fill(
    version: Version,
    blocks: Mapping[str, Block],
    stored: RecordLayout,
    encoded: Sequence[str],
    name: str,
    records: np.ndarray,
) -> Pictures:
    """Writes the records of one block of the store; returns what stays encoded."""
    rows = read_fields(version, blocks[name], (*stored.by_name, *encoded))
    came = len(rows["terminated"])
    if came != len(records):
        raise DamagedStoreError(
            f"Expected {len(records)} rows of the block {name}, came {came}; restore it from a "
            f"copy, or see `penstock doctor`.",
            where=version.store.url,
        )
    plain = {field: values for field, values in rows.items() if field not in encoded}
    pack_into(stored, plain, records, PIECE_BYTES)
    return kept_encoded(rows, encoded)
