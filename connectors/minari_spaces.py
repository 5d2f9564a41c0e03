"""The spaces that Minari keeps as JSON: read them, and write them for arrays that have none.

A space says how an episode's arrays are nested and, in Arrow storage, how they are shaped. Text and
other spaces that are not arrays are refused with their name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from schemas.errors import SourceError
from schemas.nesting import Nested, escape

_DEPTH = 32
_IMAGE_SIDE = 32  # Minari takes uint8 boxes of at least this height and width for images
_LEAVES = ("Box", "Discrete", "MultiDiscrete", "MultiBinary")


@dataclass(frozen=True)
class Space:
    """One space: an array, or a Dict or Tuple of spaces."""

    kind: str
    """`Dict`, `Tuple`, or the name of an array space (`Box`, `Discrete`, ...)."""
    dtype: str = ""
    shape: tuple[int, ...] = ()
    """Shape of one row."""
    children: Mapping[str, Space] = field(default_factory=dict)
    """By Dict key, or by Tuple index as text."""
    is_image: bool = False
    """Stored as JPEG where the dataset encodes images."""

    @property
    def size(self) -> int:
        """Values in one row."""
        return math.prod(self.shape)


def parse_space(text: object, where: str) -> Space:
    """Reads a space from metadata.

    Raises:
        SourceError: if it is not JSON of a space that consists of arrays.
    """
    if not isinstance(text, str):
        raise SourceError(
            f"Expected a space as JSON text in {where}, came {type(text).__name__}.", where=where
        )
    try:
        return _parse(json.loads(text), where, 0)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SourceError(
            f"Expected a space as JSON text in {where}, came {text[:80]!r} ({error}).", where=where
        ) from error


def leaves(space: Space, name: str) -> Iterator[tuple[str, Space]]:
    """Yields the array spaces by full name, as `schemas.nesting` names them."""
    if space.kind not in ("Dict", "Tuple"):
        yield name, space
        return
    for key, child in space.children.items():
        part = escape(key) if space.kind == "Dict" else key
        yield from leaves(child, f"{name}/{part}")


def fits(space: Space, name: str, arrays: Mapping[str, np.ndarray]) -> bool:
    """True if the arrays of an episode are exactly of this space."""
    found = dict(leaves(space, name))
    return found.keys() == arrays.keys() and all(
        found[key].shape == array.shape[1:] and np.dtype(found[key].dtype) == array.dtype
        for key, array in arrays.items()
    )


def box_json(value: Nested) -> dict[str, Any]:
    """Returns the unbounded space of nested arrays (rows first) as Minari's JSON."""
    if isinstance(value, Mapping):
        subspaces = {key: box_json(child) for key, child in value.items()}
        return {"type": "Dict", "subspaces": subspaces}
    if isinstance(value, tuple):
        return {"type": "Tuple", "subspaces": [box_json(child) for child in value]}
    low, high = _bounds(value.dtype)
    shape = value.shape[1:]
    return {
        "type": "Box",
        "dtype": value.dtype.name,
        "shape": list(shape),
        "low": np.full(shape, low, object).tolist(),
        "high": np.full(shape, high, object).tolist(),
    }


def _bounds(dtype: np.dtype[Any]) -> tuple[object, object]:
    if dtype.kind == "b":
        return False, True
    if dtype.kind == "f":
        return -math.inf, math.inf
    return int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)


def _parse(stated: Any, where: str, depth: int) -> Space:
    kind = stated["type"]
    if depth > _DEPTH:
        raise ValueError("nested too deep")
    if kind == "Dict":
        children = {k: _parse(s, where, depth + 1) for k, s in stated["subspaces"].items()}
        return Space("Dict", children=children)
    if kind == "Tuple":
        parts = enumerate(stated["subspaces"])
        return Space("Tuple", children={str(i): _parse(s, where, depth + 1) for i, s in parts})
    if kind not in _LEAVES:
        raise SourceError(
            f"Expected spaces of arrays ({', '.join(_LEAVES)}, Dict, Tuple) in {where}, "
            f"came {kind!r}; it is not supported.",
            where=where,
        )
    shape, dtype = _leaf(stated)
    return Space(kind, dtype, shape, is_image=_is_image(stated, dtype, shape))


def _leaf(stated: Mapping[str, Any]) -> tuple[tuple[int, ...], str]:
    kind = stated["type"]
    if kind == "Box":
        shape = stated["shape"]
    elif kind == "MultiDiscrete":
        shape = np.shape(stated["nvec"])
    elif kind == "MultiBinary":
        shape = stated["n"] if isinstance(stated["n"], list) else [stated["n"]]
    else:
        shape = ()
    dtype = np.dtype(stated.get("dtype", "int8" if kind == "MultiBinary" else "int64"))
    if dtype.kind not in "biuf":
        raise ValueError(f"dtype {dtype}")
    sides = tuple(int(n) for n in shape)
    if any(n < 0 for n in sides):
        raise ValueError(f"shape {sides}")
    return sides, dtype.name


def _is_image(stated: Mapping[str, Any], dtype: str, shape: tuple[int, ...]) -> bool:
    """Minari's own rule (`is_image_space` in minari/dataset/minari_storage.py)."""
    if stated["type"] != "Box" or dtype != "uint8" or len(shape) not in (2, 3):
        return False
    if min(shape[:2]) < _IMAGE_SIDE:
        return False
    return bool(np.all(np.equal(stated["low"], 0)) and np.all(np.equal(stated["high"], 255)))
