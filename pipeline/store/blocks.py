"""Blocks of rows as bytes: Zarr v3 shard groups for many rows, one Arrow file for few.

Encoding and decoding are pure functions between arrays and bytes; where the bytes go is the
writer's business. A shard is an ordinary Zarr v3 group with one named array per field, readable by
any Zarr reader. Chunks end in a crc32c codec, because Zarr alone returns wrong data silently for a
flipped bit, and every file is listed with its size and checksum, because Zarr reads a missing chunk
as zeros. What is encoded stays so (`encoded`).
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from pipeline.store import encoded
from pipeline.store.zarr_files import ArrayKind, Codec, add_array, group_file, pays
from schemas.arrow import (
    layout_from_json,
    layout_to_json,
    rows_to_table,
    table_layout,
    table_to_rows,
)
from schemas.document import DataFile
from schemas.errors import DamagedStoreError, UnknownNameError, suggest
from schemas.identity import hash64
from schemas.packed import FindMedia, Media, Packed, Rows, Video
from schemas.rows import RowLayout
from schemas.spec import FieldSpec

TAIL_SHARE = 16
"""A block smaller than one part in so many of a full shard is a tail: under 4,096 rows, or 128 of
images."""
SHARD_ROWS = 65_536
MAX_SHARD_BYTES = 256 << 20
"""A writer holds a shard in memory: wide rows make shards of fewer rows."""
ENCODED_SHARD_BYTES = 48 << 20
"""Encoded rows are no smaller on disk than in memory, where a writer holds them four to five times
at its peak."""
CHUNK_ROWS = 4_096
MIN_CHUNK_BYTES = 64 << 10
"""Narrow fields take more rows per chunk: the cost of a Zarr chunk is per chunk, not per byte."""
IMAGE_SHARD_ROWS = 2_048
IMAGE_CHUNK_ROWS = 16
MAX_CHUNK_BYTES = 8 << 20
MIN_SAVING = 0.25
"""Images that Zstd would make smaller by less are kept as they are: it works on them for five times
as long as all else that is done to them."""
MAX_NAME_BYTES = 160
"""Of a folder's name; file systems end at 255."""
SLASH = "%2F"


def checksum(data: bytes) -> str:
    """Returns the crc32 of some bytes as 8 hex digits."""
    return f"{zlib.crc32(data):08x}"


def data_file(key: str, data: bytes) -> DataFile:
    """Returns the record of one file."""
    return DataFile(key=key, bytes=len(data), crc32=checksum(data))


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
    if checksum(data) != file.crc32:
        raise DamagedStoreError(
            f"Expected checksum {file.crc32}, came {checksum(data)}: the file has changed since "
            f"it was written; restore it from a copy.",
            where=file.key,
        )
    return data


# -- shards ------------------------------------------------------------------------------------


def encode_shard(rows: Mapping[str, Rows], layout: RowLayout) -> dict[str, bytes]:
    """Returns the files of a Zarr v3 group by their keys relative to it."""
    files = {"zarr.json": group_file({"penstock": layout_to_json(layout)})}
    paths = node_paths(layout.fields)
    for name, field in layout.fields.items():
        mine = rows[name]
        told = {"field": name, **_padding_note(name, field, layout)}
        if isinstance(mine, Packed | Video):
            encoded.add_encoded(files, paths[name], mine, told)
        else:
            add_array(files, paths[name], mine, _kind(name, field, mine), told)
    return files


def decode_shard(
    files: Mapping[str, bytes],
    fields: Mapping[str, FieldSpec],
    paths: Mapping[str, str],
    rows: slice = slice(None),
    find: FindMedia | None = None,
) -> dict[str, Rows]:
    """Returns some fields of a shard, (rows, *shape) each.

    Args:
        files: the group's files by relative key; only those that are needed are asked for. Of
            encoded rows that is the part with the wanted rows.
        fields: what to read.
        paths: the places of all fields (`node_paths`).
        rows: which rows.
        find: where media files are; needed for fields of video.
    """
    make = default_buffer_prototype().buffer.from_bytes
    keys = list(files)
    read: dict[str, Any] = {}

    def load(wanted: Iterable[str]) -> None:
        read.update({key: make(files[key]) for key in sorted(wanted) if key not in read})

    load({key for name in fields for key in files_of_field(keys, paths[name], fields[name])})
    group = zarr.open_group(MemoryStore(read), mode="r")
    found: dict[str, Rows] = {}
    for name, field in fields.items():
        path = paths[name]
        try:
            if field.encoding == "raw":
                found[name] = np.asarray(group[path][rows])  # type: ignore[index]
            elif field.encoding == "video":
                found[name] = encoded.read_video(group, path, field, rows, find or _no_media)
            else:
                offsets, chunks = encoded.data_span(group, path, rows)
                load(chunks)
                found[name] = encoded.read_packed(group, path, field, offsets)
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            raise DamagedStoreError(f"Could not decode the field {name!r}: {error}.") from error
    return found


def _no_media(sha256: str) -> Media:
    raise DamagedStoreError(f"Expected to know where the media file {sha256} is, came no list.")


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
        key: DataFile(key=f"{prefix}/{key}", bytes=size, crc32=crc)
        for key, (size, crc) in listing["files"].items()
    }
    return layout_from_json(listing["layout"]), files


def node_paths(names: Iterable[str]) -> dict[str, str]:
    """Returns where in a shard's group each field's array is.

    Names are data and become folders: almost all stay as they are, but what no folder may be
    called, or what Zarr keeps for itself, is percent-encoded, and a name that goes on below
    another field's (`a` and `a/b`) is kept beside it, as an array holds no arrays.
    """
    known = set(names)
    paths = {}
    for name in known:
        parts = name.split("/")
        lengths = range(1, len(parts))
        split = next((n for n in lengths if "/".join(parts[:n]) in known), len(parts)) - 1
        last = _short(SLASH.join(map(_folder, parts[split:])))
        paths[name] = "/".join([*map(_folder, parts[:split]), last])
    return paths


def _folder(part: str) -> str:
    """Percent-encodes a path part where it is not fit to be the name of a folder."""
    safe = "".join(
        f"%{ord(sign):02X}" if sign in '%\\<>:"|?*' or ord(sign) < 32 else sign for sign in part
    )
    if safe.startswith((".", "__")) or safe in ("", "zarr.json"):
        safe = f"%{ord(safe[0]):02X}{safe[1:]}" if safe else "%"
    return _short(safe)


def _short(folder: str) -> str:
    return folder if len(folder.encode()) <= MAX_NAME_BYTES else f"%{hash64(folder):016X}"


def files_of_field(files: Sequence[str], place: str, field: FieldSpec) -> list[str]:
    """Returns the keys that reading any rows of one field of a shard needs.

    Args:
        files: all keys of the group.
        place: the field's place in it, one of `node_paths`.
        field: what it is.
    """
    parts = place.split("/")
    documents = {"zarr.json"} | {
        "/".join([*parts[:depth], "zarr.json"]) for depth in range(1, len(parts) + 1)
    }
    arrays = [place]
    if field.encoding != "raw":
        arrays = [f"{place}/{part}" for part in encoded.parts_of(field)]
        documents |= {f"{array}/zarr.json" for array in (*arrays, f"{place}/data")}
    chunks = tuple(f"{array}/c{sign}" for array in arrays for sign in "./")
    return [key for key in files if key in documents or key.startswith(chunks)]


# -- tails -------------------------------------------------------------------------------------


def encode_tail(rows: Mapping[str, Rows], layout: RowLayout) -> bytes:
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


def decode_tail(
    table: pa.Table, fields: Mapping[str, FieldSpec], find: FindMedia | None = None
) -> dict[str, Rows]:
    """Returns some fields of a tail, (rows, *shape) each; `find` as for `decode_shard`."""
    return table_to_rows(table, fields, find)


def pick_fields(layout: RowLayout, names: Sequence[str] | None) -> Mapping[str, FieldSpec]:
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
    """Returns how many rows a shard of this layout holds, whatever encoded ones take."""
    raw = [field for field in layout.fields.values() if field.encoding == "raw"]
    rows = IMAGE_SHARD_ROWS if any(map(_is_image, raw)) else SHARD_ROWS
    return max(TAIL_SHARE, min(rows, MAX_SHARD_BYTES // sum(field.row_bytes for field in raw)))


def tail_rows(layout: RowLayout) -> int:
    """Returns how many rows of this layout make a shard; fewer make a tail."""
    return block_rows(layout) // TAIL_SHARE


def is_tail(layout: RowLayout, rows: int, encoded_bytes: int) -> bool:
    """True if some rows are too few for a shard."""
    return rows < tail_rows(layout) and encoded_bytes < ENCODED_SHARD_BYTES // TAIL_SHARE


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


def _kind(name: str, field: FieldSpec, rows: np.ndarray) -> ArrayKind:
    """How a field's rows are kept."""
    chunk, shard = _chunking(field, len(rows))
    return ArrayKind(
        dtype=field.dtype,
        shape=field.shape,
        chunk=chunk,
        shard=shard,
        codec=_codec(field, rows, chunk),
        dimensions=("row", *(f"{name}_{axis}" for axis in range(len(field.shape)))),
    )


def _codec(field: FieldSpec, rows: np.ndarray, chunk: int) -> Codec:
    """What the rows are compressed with; pictures full of noise are not.

    Blosc hides repeats between frames from the compressor: plain Zstd packs images twice as well.
    """
    if not _is_image(field):
        return Codec("lz4", itemsize=field.numpy_dtype.itemsize)
    zstd = Codec("zstd", level=1)
    return zstd if pays(rows, zstd, chunk, MIN_SAVING) else Codec("none")


def _padding_note(name: str, field: FieldSpec, layout: RowLayout) -> dict[str, Any]:
    """Says in the array's attributes which rows are padding, and with what."""
    if name in ("valid", "observation_valid") or name in layout.full_extras:
        return {}
    value = "NaN" if field.numpy_dtype.kind == "f" else "0"
    if field.encoding != "raw":
        value = "media -1" if field.encoding == "video" else "no bytes"
    flag = "observation_valid" if name.startswith("observations") else "valid"
    return {"padding": f"{value} where {flag} is false (each episode's last row)"}
