"""Decodes RLlib's recorded episodes: msgpack with NumPy arrays as the package msgpack-numpy writes.

An array is a mapping `{nd: true, type, kind, shape, data}`, a NumPy scalar `{nd: false, type,
data}`, all keys as bytes. msgpack-numpy unpickles an array of objects when it is loaded; here it
becomes `PICKLED`, unopened. Nothing that is decoded can exceed the message: lengths are held
against what is left before anything is allocated, nesting is bounded, and extension types are
refused.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from schemas.errors import EpisodeError, missing_extra
from schemas.nesting import Nested, flatten

PICKLED = object()
"""Stands where only a pickle says what is there."""
_MOST_AXES = 16
_NUMBERS = "biuf"


def unpack(data: bytes, where: str) -> Any:
    """Returns plain Python values and arrays; mappings have text keys.

    Raises:
        EpisodeError: with code `unreadable`, if the message is no such thing.
        MissingExtraError: if msgpack is not installed.
    """
    try:
        import msgpack  # noqa: PLC0415 (an optional extra)
    except ImportError as error:
        raise missing_extra("rllib", "msgpack") from error
    size = len(data)
    try:
        return msgpack.unpackb(
            data,
            object_hook=_mapping,
            ext_hook=_refuse,
            strict_map_key=False,
            max_str_len=size,
            max_bin_len=size,
            max_array_len=size,
            max_map_len=size,
            max_ext_len=0,
        )
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
        # msgpack's own errors are ValueErrors
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise EpisodeError(
            f"Expected a recorded RLlib episode in {where}, it does not unpack: {said}.",
            code="unreadable",
            where=where,
        ) from error


def arrays_of(root: str, value: Nested) -> dict[str, np.ndarray]:
    """Returns nested arrays by flat names (`schemas.nesting`)."""
    return {name: np.asarray(rows) for name, rows in flatten(root, value).items()}


def _mapping(found: dict[Any, Any]) -> Any:
    if b"nd" in found or "nd" in found:
        return _array({_text(key): value for key, value in found.items()})
    if b"complex" in found:
        raise ValueError("a complex number")
    return {_text(key): value for key, value in found.items()}


def _array(found: dict[str, Any]) -> Any:
    if _text(found.get("kind") or "") == "O":
        return PICKLED
    kind, data = found["type"], found["data"]
    if not isinstance(kind, str | bytes) or not isinstance(data, bytes):
        raise ValueError("an array of records")
    dtype = np.dtype(_text(kind))
    if dtype.kind not in _NUMBERS or dtype.itemsize > 8:
        raise ValueError(f"an array of {dtype}")
    shape = found.get("shape", ()) if found["nd"] else ()
    is_shape = isinstance(shape, list | tuple) and len(shape) <= _MOST_AXES
    if not is_shape or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"the shape {shape!r}"[:80])
    if math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"{len(data)} bytes for shape {tuple(shape)} of {dtype}")
    array = np.frombuffer(data, dtype).reshape(shape)
    return array if found["nd"] else array[()]


def _text(key: Any) -> str:
    if isinstance(key, bytes):
        key = key.decode()
    if not isinstance(key, str | int):
        raise ValueError(f"the key {key!r}"[:80])
    return str(key)


def _refuse(code: int, _data: bytes) -> Any:
    raise ValueError(f"the extension type {code}")
