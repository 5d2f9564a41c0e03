"""Encoded pictures beside a packed cache: one Arrow file per block, mapped, decoded when gathered.

The packed file then holds all other fields. The pictures of a block are on disk before the index
names the block. Whoever streams maps all files at once, so what is deleted later is not missed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import google_crc32c
import numpy as np
import pyarrow as pa

from pipeline.stream.cache_index import (
    CachedBlock,
    damaged,
    disk_errors,
    picture_file,
    sync_folder,
)
from pipeline.stream.owners import Owners
from pipeline.stream.pictures import Pictures, decode_into
from pipeline.stream.record import WORD, RecordLayout
from schemas.errors import UsageError
from schemas.packed import Packed
from schemas.spec import FieldSpec

_SHOWN, _CRC = "shown", b"crc32c"


class EncodedRecords:
    """Records of a packed cache, and the pictures that are decoded into them.

    Args:
        layout: the record that is gathered.
        records: (rows, words) int32, without the pictures that come last in it.
        blocks: of the cache, by their first rows.
        pictures: of each of them.
        names: of the fields that are encoded.
    """

    def __init__(
        self,
        layout: RecordLayout,
        records: np.ndarray,
        blocks: Sequence[CachedBlock],
        pictures: Sequence[Pictures],
        names: Sequence[str],
    ) -> None:
        self._layout, self._records, self._names = layout, records, names
        self._starts = np.array([block.start for block in blocks], np.int64)
        self._owners = Owners(self._starts + [block.rows for block in blocks])
        self._pictures = pictures

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Returns some records, (*rows.shape, words) int32; rows are of any shape."""
        flat = rows.reshape(-1)
        owner = self._owners.of(flat)
        found = np.empty((len(flat), self._layout.words), WORD)
        found[:, : self._records.shape[1]] = np.take(self._records, flat, axis=0, mode="clip")
        needed = np.flatnonzero(np.bincount(owner, minlength=len(self._starts))).tolist()
        held = {block: self._pictures[block] for block in needed}
        decode_into(self._layout, found, owner, flat - self._starts[owner], held, self._names)
        return found.reshape(*rows.shape, -1)


def write_pictures(folder: Path, block: str, pictures: Pictures) -> None:
    """Keeps what is encoded of a block beside a cache.

    Args:
        folder: of the cache.
        block: its name.
        pictures: what is kept.

    Raises:
        DiskFullError: if there is no room.
        UsageError: for videos, whose files are not of one block alone.
    """
    columns: dict[str, pa.Array] = {_SHOWN: pa.array(pictures.shown)}
    for name, rows in pictures.fields.items():
        if not isinstance(rows, Packed):
            raise UsageError(
                f"Expected pictures to keep encoded in a cache, came the video {name!r}; use "
                f"residency='windowed' or pictures='cache', or leave it out of fields=."
            )
        parts = [None, pa.py_buffer(rows.offsets), pa.py_buffer(np.ascontiguousarray(rows.data))]
        columns[name] = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(rows), parts)
    table = pa.table(columns)
    table = table.replace_schema_metadata({_CRC: f"{_checksum(table):08x}"})
    place = picture_file(folder, block)
    with disk_errors(folder):
        place.parent.mkdir(parents=True, exist_ok=True)
        fresh = place.with_suffix(".tmp")
        with fresh.open("wb") as file:
            with pa.ipc.new_file(file, table.schema) as writer:
                writer.write_table(table)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(place)
        sync_folder(place.parent)


def open_pictures(
    folder: Path, block: str, fields: Mapping[str, FieldSpec], *, verify: bool
) -> Pictures:
    """Maps what is encoded of a block.

    Args:
        folder: of the cache.
        block: its name.
        fields: that are encoded; those that the block lacks are left out.
        verify: whether to compare the checksum.

    Raises:
        DamagedCacheError: if it is not there, or not what was written.
    """
    try:
        table = pa.ipc.open_file(pa.memory_map(str(picture_file(folder, block)))).read_all()
        told = int((table.schema.metadata or {})[_CRC], 16)
        if verify and _checksum(table) != told:
            raise damaged(folder, f"the checksum {told:08x} for pictures of {block}", "another")
        shown = table[_SHOWN].to_numpy()
        names = [name for name in fields if name in table.schema.names]
        held = {name: _packed(table[name], fields[name]) for name in names}
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise damaged(folder, f"the pictures of {block}", f"others ({error})") from error
    return Pictures(held, shown)


def _packed(column: pa.ChunkedArray, spec: FieldSpec) -> Packed:
    array = column.combine_chunks()
    _, offsets, data = array.buffers()
    held = np.zeros(0, np.uint8) if data is None else np.frombuffer(data, np.uint8)
    return Packed(spec, np.frombuffer(offsets, np.int64)[: len(array) + 1], held)


def _checksum(table: pa.Table) -> int:
    found = 0
    for column in table.columns:
        for buffer in column.combine_chunks().buffers():
            if buffer is not None:
                found = google_crc32c.extend(found, np.frombuffer(buffer, np.uint8))
    return int(found)
