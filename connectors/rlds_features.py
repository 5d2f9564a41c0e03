"""`features.json`: what the records of a TensorFlow dataset hold, read without importing anything.

The document names a Python class for every feature, and TFDS imports whatever it names. Here a
class is a word from the fixed list below or the dataset is refused, so no document makes us import
a module. All that is supported becomes a flat list of leaves by their path in the record.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from schemas.errors import SourceError

STEPS = "steps"
_PACKAGE = "tensorflow_datasets.core.features."
_DICT = "features_dict.FeaturesDict"
_DATASET = "dataset_feature.Dataset"
_SEQUENCE = "sequence_feature.Sequence"
_TENSORS = {
    "tensor_feature.Tensor": "tensor",
    "feature.Tensor": "tensor",
    "scalar.Scalar": "tensor",
    "text_feature.Text": "text",
    "image_feature.Image": "image",
    "class_label_feature.ClassLabel": "classLabel",
    "bounding_boxes.BBoxFeature": "boundingBox",
}
"""Known leaf classes, and the member of the document that describes each."""
_TEXT_TYPES = ("string", "object", "str", "bytes")
_NUMBERS = {
    np.dtype(name).name: np.dtype(name).newbyteorder("<").str
    for name in ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
}
_ENCODINGS = ("none", "bytes", "zlib")
_DEPTH, _LEAVES, _AXES = 32, 4096, 16
_MAX_VALUES = 2**40


@dataclass(frozen=True)
class Leaf:
    """One feature of a record."""

    path: str
    """Names joined with `/`, as in the record: `steps/observation/image`."""
    kind: Literal["numbers", "text", "image"]
    dtype: str
    """Of a decoded value, little-endian; `str` for text."""
    shape: tuple[int, ...]
    """Of one value; -1 for an unknown side of a picture, or a first axis that varies."""
    encoding: str = "none"
    """How numbers are stored: as a list of them (`none`), as `bytes`, or as `zlib` of the bytes."""
    is_list: bool = False
    """True if every step (or the episode's metadata) has a list of such values."""
    list_length: int = -1
    """Values of each list, -1 where they vary."""
    picture: str = ""
    """`png` or `jpeg`, where stated."""

    @property
    def is_step(self) -> bool:
        """True if every step has one."""
        return self.path.startswith(f"{STEPS}/")

    @property
    def value_count(self) -> int:
        """Numbers in one value; a varying axis counts once."""
        return abs(math.prod(self.shape))


def parse_features(document: Mapping[str, Any], where: str) -> tuple[Leaf, ...]:
    """Returns the leaves of an RLDS dataset.

    Raises:
        SourceError: if a class, dtype or shape is not supported (all are named), or the features
            are not those of RLDS: `steps`, a dataset of dictionaries.
    """
    refused: list[str] = []
    leaves = []
    for leaf in _walk(document, "", None, refused, 0):
        leaves.append(leaf)
        if len(leaves) > _LEAVES:
            raise _bad(f"more than {_LEAVES} features", where)
    if refused:
        said = "; ".join(refused[:8]) + ("; ..." if len(refused) > 8 else "")
        raise _bad(f"what is not supported: {said}", where)
    if len({leaf.path for leaf in leaves}) < len(leaves):
        raise _bad("features of equal names", where)
    if not any(leaf.is_step for leaf in leaves):
        names = ", ".join(leaf.path for leaf in leaves[:8]) or "none"
        raise _bad(f"none below 'steps', only {names}", where)
    return tuple(leaves)


def features_document(leaves: Iterable[Leaf]) -> dict[str, Any]:
    """Returns the document of some leaves, as TFDS writes it; inverse of `parse_features`."""
    tree: dict[str, Any] = {}
    for leaf in leaves:
        *parents, name = leaf.path.split("/")
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
        node[name] = leaf
    steps = tree.pop(STEPS)
    members = {name: _describe(node) for name, node in tree.items()}
    dataset = {
        "pythonClassName": _PACKAGE + _DATASET,
        "sequence": {"feature": _describe(steps), "length": "-1"},
    }
    return _dictionary({**members, STEPS: dataset})


def _walk(
    node: Any, path: str, list_length: int | None, refused: list[str], depth: int
) -> Iterator[Leaf]:
    """Yields leaves; what is not supported is added to `refused` in words."""

    def refuse(what: str) -> None:
        refused.append(f"{path or 'the whole'} is {what}")

    if not isinstance(node, Mapping) or depth > _DEPTH:
        refuse("no feature")
        return
    kind, content = _kind_of(node)
    if kind == _DICT:
        for name, child in _members(content).items():
            if not name or "/" in name:
                refuse(f"a dictionary with the name {name!r}")
            else:
                inner = f"{path}/{name}" if path else name
                yield from _walk(child, inner, list_length, refused, depth + 1)
    elif kind in (_DATASET, _SEQUENCE):
        is_steps = path == STEPS
        if not is_steps and (list_length is not None or kind == _DATASET):
            refuse("a list within a list")
            return
        length = None if is_steps else _whole(content.get("length"))
        yield from _walk(content.get("feature"), path, length, refused, depth + 1)
    elif kind not in _TENSORS:
        refuse(f"of the class {kind[:120]!r}")
    else:
        leaf = _leaf(kind, content, path, list_length)
        if isinstance(leaf, str):
            refuse(leaf)
        else:
            yield leaf


def _kind_of(node: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The class without its package, and what describes it, of both ages of the document."""
    name = node.get("pythonClassName", node.get("type"))
    name = name.removeprefix(_PACKAGE) if isinstance(name, str) else repr(name)
    member = {_DICT: "featuresDict", _DATASET: "sequence", _SEQUENCE: "sequence"}.get(name)
    content = node.get("content" if "type" in node else member or _TENSORS.get(name, ""), {})
    if isinstance(content, str):  # some years wrote JSON within JSON
        try:
            content = json.loads(content)
        except (ValueError, RecursionError):
            content = {}
    return name, content if isinstance(content, Mapping) else {}


def _members(content: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = content.get("features")
    is_class = isinstance(inner, Mapping) and ("pythonClassName" in inner or "type" in inner)
    return inner if isinstance(inner, Mapping) and not is_class else content


def _leaf(kind: str, content: Mapping[str, Any], path: str, length: int | None) -> Leaf | str:
    """A leaf, or what is wrong with it."""
    shape = _shape(content.get("shape"))
    dtype = content.get("dtype", "")
    encoding = content.get("encoding") or "none"
    member = _TENSORS[kind]
    is_list, list_length = length is not None, -1 if length is None else length
    if shape is None:
        return f"of the shape {str(content.get('shape'))[:80]}"
    if member == "text" or dtype in _TEXT_TYPES:
        is_plain = not shape and (length is None or not path.startswith(f"{STEPS}/"))
        if not is_plain:
            return "a list of texts"
        return Leaf(path, "text", "str", (), is_list=is_list, list_length=list_length)
    if member == "image":
        return _picture(content, path, shape or (-1, -1, 3), is_list=is_list)
    if member == "classLabel":
        shape, dtype = (), "int64"
    if member == "boundingBox":
        shape, dtype = (4,), dtype or "float32"
    if dtype not in _NUMBERS:
        return f"of the dtype {str(dtype)[:40]!r}"
    if encoding not in _ENCODINGS:
        return f"of the encoding {str(encoding)[:40]!r}"
    varies = -1 in shape
    if varies and (-1 in shape[1:] or encoding == "none" or length is not None):
        return f"of the shape {list(shape)} with the encoding {encoding!r}"
    return Leaf(path, "numbers", _NUMBERS[dtype], shape, encoding, is_list, list_length)


def _picture(
    content: Mapping[str, Any], path: str, shape: tuple[int, ...], *, is_list: bool
) -> Leaf | str:
    dtype = {"uint8": "|u1", "uint16": "<u2", "float32": "<f4"}.get(
        str(content.get("dtype") or "uint8")
    )
    picture = content.get("encodingFormat") or content.get("encoding_format") or ""
    if dtype is None or len(shape) != 3 or shape[2] not in (1, 2, 3, 4) or is_list:
        return f"a picture of {list(shape)} {content.get('dtype')}"
    if dtype == "<f4" and (-1 in shape or shape[2] != 1):
        return f"a picture of {list(shape)} float32"
    return Leaf(path, "image", dtype, shape, picture=str(picture))


def _shape(stated: Any) -> tuple[int, ...] | None:
    """Sides of a shape in either age's form, -1 for unknown ones; None if it is none."""
    if isinstance(stated, Mapping):
        stated = stated.get("dimensions", [])
    if stated is None:
        return ()
    if not isinstance(stated, list) or len(stated) > _AXES:
        return None
    sides = [-1 if side is None else _whole(side) for side in stated]
    if any(side == 0 or side < -1 for side in sides) or abs(math.prod(sides)) > _MAX_VALUES:
        return None
    return tuple(sides)


def _whole(value: Any) -> int:
    """A whole number, which protobuf's JSON writes as text; -1 for an absent one, else -2."""
    if value is None:
        return -1
    try:
        return int(value) if isinstance(value, int | str) and len(str(value)) < 20 else -2
    except ValueError:
        return -2


def _describe(node: Any) -> dict[str, Any]:
    if isinstance(node, dict):
        return _dictionary({name: _describe(child) for name, child in node.items()})
    leaf: Leaf = node
    shape = {"dimensions": [str(side) for side in leaf.shape]} if leaf.shape else {}
    dtype = "string" if leaf.kind == "text" else np.dtype(leaf.dtype).name
    if leaf.kind == "text":
        said = {"pythonClassName": f"{_PACKAGE}text_feature.Text", "text": {}}
    elif leaf.kind == "image":
        image = {"dtype": dtype, "shape": shape, "encodingFormat": leaf.picture}
        said = {"pythonClassName": f"{_PACKAGE}image_feature.Image", "image": image}
    else:
        is_scalar = not leaf.shape and leaf.encoding == "none"  # TFDS' Scalar forgets encodings
        name = "scalar.Scalar" if is_scalar else "tensor_feature.Tensor"
        tensor = {"dtype": dtype, "encoding": leaf.encoding, "shape": shape}
        said = {"pythonClassName": _PACKAGE + name, "tensor": tensor}
    if not leaf.is_list:
        return said
    sequence = {"feature": said, "length": str(leaf.list_length)}
    return {"pythonClassName": _PACKAGE + _SEQUENCE, "sequence": sequence}


def _dictionary(members: Mapping[str, Any]) -> dict[str, Any]:
    return {"pythonClassName": _PACKAGE + _DICT, "featuresDict": {"features": dict(members)}}


def _bad(came: str, where: str) -> SourceError:
    return SourceError(f"Expected features of RLDS in {where}, came {came}.", where=where)
