"""Blocks of rows as bytes: Zarr v3 shard groups for many rows, one Arrow file for few.

Encoding and decoding are pure functions between arrays and bytes; where the bytes go is the
writer's business. A shard is an ordinary Zarr v3 group with one named array per field, readable by
any Zarr reader. Chunks end in a crc32c codec, because Zarr alone returns wrong data silently for a
flipped bit, and every file is listed with its size and checksum, because Zarr reads a missing chunk
as zeros.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from schemas.arrow import (
    layout_from_json,
    layout_to_json,
    rows_to_table,
    table_layout,
    table_to_rows,
)
from schemas.document import DataFile
from schemas.errors import DamagedStoreError, UnknownNameError, suggest
from schemas.rows import RowLayout
from schemas.spec import FieldSpec

TAIL_ROWS = 4_096
"""Fewer rows than this make a tail, not a shard."""
SHARD_ROWS = 65_536
CHUNK_ROWS = 4_096
MIN_CHUNK_BYTES = 64 << 10
"""Narrow fields take more rows per chunk: the cost of a Zarr chunk is per chunk, not per byte."""
IMAGE_SHARD_ROWS = 2_048
IMAGE_CHUNK_ROWS = 16
MAX_CHUNK_BYTES = 8 << 20


def checksum(data: bytes) -> str:
    """Returns the crc32c of some bytes as 8 hex digits."""
    return f"{google_crc32c.value(data):08x}"


def data_file(key: str, data: bytes) -> DataFile:
    """Returns the record of one file."""
    return DataFile(key=key, bytes=len(data), crc32c=checksum(data))


def check(file: DataFile, data: bytes) -> bytes:
    """Returns the bytes of a file that is what its record says.

    Raises:
        DamagedStoreError: if size or checksum differ.
    """
    if len(data) != file.bytes:
        raise DamagedStoreError(
            f"Expected {file.bytes} bytes, came {len(data)}; restore the file from a copy.",
            where=file.key,
        )
    if checksum(data) != file.crc32c:
        raise DamagedStoreError(
            f"Expected checksum {file.crc32c}, came {checksum(data)}: the file has changed since "
            f"it was written; restore it from a copy.",
            where=file.key,
        )
    return data


# -- shards ------------------------------------------------------------------------------------


def encode_shard(rows: Mapping[str, np.ndarray], layout: RowLayout) -> dict[str, bytes]:
    """Returns the files of a Zarr v3 group by their keys relative to it."""
    files: dict[str, Any] = {}
    store = MemoryStore(files)
    group = zarr.create_group(store, attributes={"penstock": layout_to_json(layout)})
    for name, field in layout.fields.items():
        chunk, shard = _chunking(field, len(rows[name]))
        array = group.create_array(
            name,
            shape=(len(rows[name]), *field.shape),
            dtype=field.numpy_dtype,
            chunks=(chunk, *field.shape),
            shards=(shard, *field.shape),
            compressors=_compressors(field),
            fill_value=0,
            chunk_key_encoding={"name": "default", "separator": "."},
            dimension_names=("row", *(f"{name}_{axis}" for axis in range(len(field.shape)))),
            attributes=_padding_note(name, field, layout),
            config={"write_empty_chunks": True},
        )
        array[...] = rows[name]
    return {key: buffer.to_bytes() for key, buffer in files.items()}


def decode_shard(
    files: Mapping[str, bytes], fields: Mapping[str, FieldSpec], rows: slice = slice(None)
) -> dict[str, np.ndarray]:
    """Returns some fields of a shard, (rows, *shape) each.

    Args:
        files: the group's files by relative key; those of other fields may be left out.
        fields: what to read.
        rows: which rows.
    """
    make = default_buffer_prototype().buffer.from_bytes
    store = MemoryStore({key: make(data) for key, data in files.items()})
    group = zarr.open_group(store, mode="r")
    found = {}
    for name in fields:
        try:
            found[name] = np.asarray(group[name][rows])  # type: ignore[index]
        except (ValueError, KeyError, RuntimeError) as error:
            raise DamagedStoreError(f"Could not decode the field {name!r}: {error}.") from error
    return found


def shard_listing(block: str, files: Mapping[str, bytes], layout: RowLayout) -> bytes:
    """Returns `files.json` of a shard: its row layout and every file's size and checksum."""
    listing = {
        "block": block,
        "layout": layout_to_json(layout),
        "files": {key: [len(data), checksum(data)] for key, data in sorted(files.items())},
    }
    return json.dumps(listing, indent=1).encode()


def parse_listing(data: bytes, prefix: str) -> tuple[RowLayout, dict[str, DataFile]]:
    """Returns what `files.json` says: the layout and the files by relative key."""
    listing = json.loads(data)
    files = {
        key: DataFile(key=f"{prefix}/{key}", bytes=size, crc32c=crc)
        for key, (size, crc) in listing["files"].items()
    }
    return layout_from_json(listing["layout"]), files


def files_of_field(files: Sequence[str], field: str) -> list[str]:
    """Returns the keys that reading one field of a shard needs."""
    parts = field.split("/")
    ancestors = {"zarr.json"} | {
        "/".join([*parts[:depth], "zarr.json"]) for depth in range(1, len(parts) + 1)
    }
    chunks = f"{field}/c"
    return [
        key for key in files if key in ancestors or key.startswith((chunks + ".", chunks + "/"))
    ]


# -- tails -------------------------------------------------------------------------------------


def encode_tail(rows: Mapping[str, np.ndarray], layout: RowLayout) -> bytes:
    """Returns the bytes of an Arrow file that holds the rows."""
    table = rows_to_table(rows, layout)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def open_tail(data: bytes) -> tuple[RowLayout, pa.Table]:
    """Returns a tail's layout and table."""
    table = pa.ipc.open_file(pa.BufferReader(data)).read_all()
    return table_layout(table), table


def decode_tail(table: pa.Table, fields: Mapping[str, FieldSpec]) -> dict[str, np.ndarray]:
    """Returns some fields of a tail, (rows, *shape) each."""
    return table_to_rows(table, fields)


def pick_fields(layout: RowLayout, names: Sequence[str] | None) -> dict[str, FieldSpec]:
    """Returns the specs of the named fields of a layout, flags included; None takes all.

    Raises:
        UnknownNameError: if a name is not among them.
    """
    known = layout.fields
    for name in names or ():
        if name not in known:
            raise UnknownNameError(
                f"Expected a field of this block, came {name!r}; {suggest(name, known)}"
            )
    return known if names is None else {name: known[name] for name in names}


def block_rows(layout: RowLayout) -> int:
    """Returns how many rows a shard of this layout holds at most."""
    return IMAGE_SHARD_ROWS if any(map(_is_image, layout.fields.values())) else SHARD_ROWS


def _is_image(field: FieldSpec) -> bool:
    return field.dtype == "|u1" and len(field.shape) >= 2


def _chunking(field: FieldSpec, rows: int) -> tuple[int, int]:
    """Rows per chunk and per shard file: whole chunks, no larger than the data need."""
    if _is_image(field):
        chunk, shard = IMAGE_CHUNK_ROWS, IMAGE_SHARD_ROWS
    else:
        chunk, shard = CHUNK_ROWS, SHARD_ROWS
        while chunk < SHARD_ROWS and chunk * field.row_bytes < MIN_CHUNK_BYTES:
            chunk *= 2
        while chunk > 16 and chunk * field.row_bytes > MAX_CHUNK_BYTES:
            chunk //= 2
    needed = -(-max(rows, 1) // chunk) * chunk
    return chunk, min(shard, needed)


def _compressors(field: FieldSpec) -> list[Any]:
    # Blosc hides repeats between frames from the compressor: plain Zstd packs images twice as well.
    if _is_image(field):
        return [ZstdCodec(level=1), Crc32cCodec()]
    size = field.numpy_dtype.itemsize
    blosc = BloscCodec(
        cname="lz4", clevel=5, shuffle="shuffle" if size > 1 else "noshuffle", typesize=size
    )
    return [blosc, Crc32cCodec()]


def _padding_note(name: str, field: FieldSpec, layout: RowLayout) -> dict[str, Any]:
    """Says in the array's attributes which rows are padding, and with what."""
    if name in ("valid", "observation_valid") or name in layout.full_extras:
        return {}
    value = "NaN" if field.numpy_dtype.kind == "f" else "0"
    flag = "observation_valid" if name.startswith("observations") else "valid"
    return {"padding": f"{value} where {flag} is false (each episode's last row)"}
