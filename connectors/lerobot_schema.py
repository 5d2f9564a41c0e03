"""How a field is written: its feature in `info.json`, its column in Parquet, what `datasets` needs.

The Parquet schema carries Hugging Face's own description of the features, so that `datasets` reads
pictures as pictures and lists as arrays of their shape.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from connectors.lerobot_encode import can_encode
from connectors.lerobot_features import REWARD, names_of
from schemas.errors import missing_extra
from schemas.packed import Packed, Rows, spec_of
from schemas.spec import FieldSpec

_MOST_AXES = 5
_SMALLEST_PICTURE = 8
_PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

Kind = Literal["numbers", "text", "picture", "video"]


@dataclass(frozen=True)
class Column:
    """One feature that is written."""

    name: str
    kind: Kind
    dtype: str
    """As `info.json` says it."""
    shape: tuple[int, ...]
    is_scalar: bool = False
    """Rows have no axis, which LeRobot writes as `[1]`."""

    @property
    def arrow_type(self) -> pa.DataType:
        """Type of the Parquet column; none for videos."""
        if self.kind == "text":
            return pa.string()
        if self.kind == "picture":
            return _PICTURE
        value = pa.from_numpy_dtype(np.dtype(self.dtype))
        if self.shape == (1,):
            return value
        if len(self.shape) == 1:
            return pa.list_(value, self.shape[0])
        for _ in self.shape:
            value = pa.list_(value)
        return value

    @property
    def hugging_face(self) -> dict[str, Any]:
        """What `datasets` calls this feature."""
        if self.kind == "picture":
            return {"_type": "Image"}
        value = {"dtype": self.dtype, "_type": "Value"}
        if self.shape == (1,):
            return value
        if len(self.shape) == 1:
            return {"feature": value, "length": self.shape[0], "_type": "Sequence"}
        kind = f"Array{len(self.shape)}D"
        return {"shape": list(self.shape), "dtype": self.dtype, "_type": kind}

    def feature(self, metadata: Mapping[str, Any], info: Mapping[str, Any]) -> dict[str, Any]:
        """Returns what `info.json` says of this feature."""
        shape = list(self.shape)
        names = names_of(metadata, self.name, shape)
        if names is None and self.kind in ("picture", "video"):
            names = ["height", "width", "channels"]
        found: dict[str, Any] = {"dtype": self.dtype, "shape": shape, "names": names}
        details = {**info, **({"row_shape": []} if self.is_scalar else {})}
        return {**found, **({"info": details} if details else {})}


AUTOMATIC = (
    Column("timestamp", "numbers", "float32", (1,)),
    *(
        Column(name, "numbers", "int64", (1,))
        for name in ("frame_index", "episode_index", "index", "task_index")
    ),
)
"""What LeRobot has of every step besides."""
DONE, TRUNCATED, TERMINATED, SUCCESS = (
    Column(f"next.{name}", "numbers", "bool", (1,))
    for name in ("done", "truncated", "terminated", "success")
)


def column_of(name: str, rows: Rows, *, is_video: bool = False) -> Column | None:
    """Returns how rows are written; None if LeRobot has no place for rows of their kind.

    Args:
        name: of the feature.
        rows: of any length.
        is_video: write pictures as a video, where one can hold them.
    """
    spec = spec_of(rows)
    if spec.encoding == "text":
        return Column(name, "text", "string", (1,))
    if any(size < 1 for size in spec.shape) or spec.encoding == "ragged":
        return None
    if spec.encoding == "video" or (is_video and is_picture(spec) and can_encode(rows)):
        return Column(name, "video", "video", spec.shape)
    if is_picture(spec):
        shape = spec.shape if len(spec.shape) == 3 else (*spec.shape, 1)
        return Column(name, "picture", "image", shape)
    if len(spec.shape) > _MOST_AXES:
        return None
    dtype = spec.numpy_dtype.name
    is_scalar = not spec.shape and name != REWARD  # which is one number in any case
    return Column(name, "numbers", dtype, spec.shape or (1,), is_scalar)


def is_picture(spec: FieldSpec) -> bool:
    """True for encoded pictures, and for arrays that are colour pictures of 8 bits."""
    shape = spec.shape
    is_array = spec.dtype == "|u1" and len(shape) == 3 and shape[2] == 3
    is_large = is_array and min(shape[:2]) >= _SMALLEST_PICTURE
    return spec.encoding == "frames" or (spec.encoding == "raw" and is_large)


def schema_of(columns: Sequence[Column]) -> pa.Schema:
    """Returns the schema of the data files."""
    held = [column for column in columns if column.kind != "video"]
    features = {column.name: column.hugging_face for column in held}
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    return pa.schema([(c.name, c.arrow_type) for c in held], metadata)


def to_arrow(rows: Rows, column: Column) -> pa.Array:
    """Returns rows as a Parquet column; arrays that are pictures become PNG."""
    if column.kind == "picture":
        packed = rows if isinstance(rows, Packed) else png(np.asarray(rows))
        encoded = _binary(packed)
        return pa.StructArray.from_arrays(
            [encoded, pa.nulls(len(packed), pa.string())], fields=list(_PICTURE)
        )
    if isinstance(rows, Packed):
        return _binary(rows).cast(pa.string())
    array = np.ascontiguousarray(rows)
    values = pa.array(array.reshape(-1))
    if column.shape == (1,):
        return values
    if len(column.shape) == 1:
        return pa.FixedSizeListArray.from_arrays(values, column.shape[0])
    for axis in range(array.ndim - 1, 0, -1):
        count = int(np.prod(array.shape[:axis], dtype=np.int64))
        offsets = np.arange(count + 1, dtype=np.int32) * array.shape[axis]
        values = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)
    return values


def png(frames: np.ndarray) -> Packed:
    """Returns (N, H, W, 3) uint8 pictures as PNG."""
    image = _pillow()
    rows = []
    for pixels in frames:
        buffer = io.BytesIO()
        image.fromarray(pixels).save(buffer, "PNG", compress_level=3)
        rows.append(buffer.getvalue())
    return Packed.of(FieldSpec("|u1", tuple(frames.shape[1:]), "frames"), rows)


def _binary(packed: Packed) -> pa.Array:
    buffers = [None, pa.py_buffer(np.ascontiguousarray(packed.offsets)), pa.py_buffer(packed.data)]
    wide = pa.Array.from_buffers(pa.large_binary(), len(packed), buffers)
    return wide.cast(pa.binary())


def _pillow() -> Any:
    try:
        from PIL import Image  # noqa: PLC0415 (an optional extra)
    except ModuleNotFoundError as error:
        raise missing_extra("images", "pillow") from error
    return Image
