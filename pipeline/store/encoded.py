"""Encoded fields within a shard: a Zarr group of plain arrays at the field's place.

Pictures, texts and ragged rows are `offsets` (rows + 1, int64) and `data` (bytes, uint8): row t is
`data[offsets[t]:offsets[t + 1]]`. Frames of a video are `media` (rows, int32), a position in the
list of media files among the group's attributes, or -1 where there is none, and `timestamp` (rows,
float64 seconds). Any Zarr reader can follow that without us.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import zarr

from pipeline.store.zarr_files import ArrayKind, Codec, add_array, add_group
from schemas.errors import DamagedStoreError
from schemas.packed import FindMedia, Packed, Video
from schemas.spec import FieldSpec

DATA_CHUNK_BYTES = 4 << 20
"""Each chunk is a file of its own: one episode is read without the rest of its shard."""


def add_encoded(
    files: dict[str, bytes], path: str, rows: Packed | Video, attributes: Mapping[str, Any]
) -> None:
    """Adds the rows of one encoded field as a group.

    Args:
        files: of the shard, by key; added to.
        path: the field's place in it.
        rows: of the whole block.
        attributes: what the group says besides.
    """
    spec = rows.spec
    told = {**attributes, "encoding": spec.encoding, "dtype": spec.dtype, "shape": spec.shape}
    if isinstance(rows, Video):
        told["media"] = [media.sha256 for media in rows.media]
    add_group(files, path, told)

    def add(name: str, values: np.ndarray, chunk: int, codec: Codec) -> None:
        dimension = "byte" if name == "data" else "row"
        kind = ArrayKind(values.dtype.str, (), max(chunk, 1), None, codec, (dimension,))
        add_array(files, f"{path}/{name}", values, kind)

    if isinstance(rows, Video):
        add("media", rows.index, len(rows), Codec("lz4", itemsize=4))
        add("timestamp", rows.timestamps, len(rows), Codec("lz4", itemsize=8))
        return
    add("offsets", rows.offsets, len(rows.offsets), Codec("lz4", itemsize=8))
    # A chunk at the end is filled up to the size of all: equal ones waste a few bytes at most.
    pieces = -(-max(rows.nbytes, 1) // DATA_CHUNK_BYTES)
    # Pictures are compressed already.
    codec = Codec("none") if spec.encoding == "frames" else Codec("zstd", level=3)
    add("data", rows.data, -(-rows.nbytes // pieces), codec)


def parts_of(field: FieldSpec) -> tuple[str, ...]:
    """Names of the arrays of an encoded field whose chunks are needed for any of its rows."""
    return ("media", "timestamp") if field.encoding == "video" else ("offsets",)


def read_video(
    group: zarr.Group, path: str, field: FieldSpec, rows: slice, find: FindMedia
) -> Video:
    """Returns rows of video; `media` are all of the block."""
    node = _group(group, path)
    names = node.attrs["media"]
    if not isinstance(names, list):
        raise DamagedStoreError("Expected a list of media files with a video, came none.")
    media = tuple(find(str(name)) for name in names)
    return Video(field, media, _array(node, "media")[rows], _array(node, "timestamp")[rows])


def data_span(group: zarr.Group, path: str, rows: slice) -> tuple[np.ndarray, list[str]]:
    """Returns the offsets of some rows, (rows + 1,) int64, and the chunks that hold their bytes."""
    node = _group(group, path)
    held = _array(node, "offsets")[:]
    start, stop, _ = rows.indices(len(held) - 1)
    offsets = held[start : max(start, stop) + 1]
    size = node["data"].shape[0]  # type: ignore[union-attr]
    if held[0] or held[-1] != size or (np.diff(held) < 0).any():
        raise DamagedStoreError(f"Expected ascending offsets up to {size}, came others.")
    return offsets, list(_chunk_keys(node, path, int(offsets[0]), int(offsets[-1])))


def read_packed(group: zarr.Group, path: str, field: FieldSpec, offsets: np.ndarray) -> Packed:
    """Returns the rows that some offsets bound, their chunks being at hand."""
    data = _array(_group(group, path), "data", slice(int(offsets[0]), int(offsets[-1])))
    return Packed(field, offsets - offsets[0], data)


def _chunk_keys(node: zarr.Group, path: str, start: int, stop: int) -> Iterator[str]:
    size = node["data"].chunks[0]  # type: ignore[union-attr]
    for number in range(start // size, -(-stop // size)):
        yield f"{path}/data/c.{number}"


def _group(group: zarr.Group, path: str) -> zarr.Group:
    node = group[path]
    if not isinstance(node, zarr.Group):
        raise DamagedStoreError(f"Expected a group for the encoded field {path!r}, came an array.")
    return node


def _array(node: zarr.Group, name: str, part: slice = slice(None)) -> np.ndarray:
    return np.asarray(node[name][part])  # type: ignore[index]
