"""Nested observation and action spaces as flat, named arrays, and back again without loss.

A `Dict` space becomes one array per leaf, named by its path joined with `/`; a `Tuple` space uses
its indices as path parts. Keys that would collide with that notation are escaped in the manner of
JSON pointers: `~` as `~0`, `/` as `~1`, a key of digits only (a Tuple index otherwise) as `~2` and
the digits, an empty key as `~3`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np

from schemas.packed import Packed, Rows, Video

Nested: TypeAlias = "Rows | Mapping[str, Nested] | tuple[Nested, ...]"


def escape(key: str) -> str:
    """Returns the path part for one Dict key."""
    if key == "":
        return "~3"
    part = key.replace("~", "~0").replace("/", "~1")
    return f"~2{part}" if part.isascii() and part.isdigit() else part


def unescape(part: str) -> str:
    """Returns the Dict key of one path part."""
    if part == "~3":
        return ""
    if part.startswith("~2"):
        part = part[2:]
    return part.replace("~1", "/").replace("~0", "~")


def flatten(root: str, value: object) -> dict[str, Rows]:
    """Flattens a nested space value into `{name: array}`; a bare array is `{root: array}`.

    Args:
        root: the name of the whole, `observations` or `actions`.
        value: an array or encoded rows, or mappings and tuples of them, nested to any depth.
    """
    if isinstance(value, Mapping):
        parts = [(escape(str(key)), child) for key, child in value.items()]
    elif isinstance(value, tuple):
        parts = [(str(index), child) for index, child in enumerate(value)]
    else:
        return {root: value if isinstance(value, Packed | Video) else np.asarray(value)}
    flat: dict[str, Rows] = {}
    for part, child in parts:
        flat.update(flatten(f"{root}/{part}", child))
    return flat


def nest(root: str, flat: Mapping[str, Rows]) -> Nested:
    """Inverse of `flatten`: the array named `root`, or the nested mapping or tuple below it."""
    if root in flat:
        return flat[root]
    prefix = f"{root}/"
    groups: dict[str, dict[str, Rows]] = {}
    for name, array in flat.items():
        if name.startswith(prefix):
            part = name[len(prefix) :].split("/", 1)[0]
            groups.setdefault(part, {})[name] = array
    children = {part: nest(f"{prefix}{part}", group) for part, group in groups.items()}
    if children and all(part.isascii() and part.isdigit() for part in children):
        return tuple(children[part] for part in sorted(children, key=int))
    return {unescape(part): child for part, child in children.items()}
