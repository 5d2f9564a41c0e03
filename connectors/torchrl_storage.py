"""The memory maps of a tensordict on disk, opened without trusting what its JSON says.

`TensorDict.memmap` writes a folder: `meta.json` names each entry with its dtype and shape, a tensor
lies in `<name>.memmap` as plain bytes, a nested tensordict in a folder of its own. Whatever is no
tensor may be pickled beside it; pickles are never opened, only said to be there. Names in the JSON
must be plain names, files must be regular ones of exactly the stated size, and no link is followed.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from schemas.errors import SourceError

DTYPES = {
    "torch.bool": np.dtype("?"),
    "torch.uint8": np.dtype("u1"),
    "torch.int8": np.dtype("i1"),
    "torch.int16": np.dtype("<i2"),
    "torch.int32": np.dtype("<i4"),
    "torch.int64": np.dtype("<i8"),
    "torch.float16": np.dtype("<f2"),
    "torch.float32": np.dtype("<f4"),
    "torch.float64": np.dtype("<f8"),
}
_JSON_BYTES = 16 * 2**20
_DEPTH = 16
_PICKLES = (".pkl", ".pickle", ".pt")


@dataclass(frozen=True)
class Map:
    """One tensor on disk."""

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def row_bytes(self) -> int:
        """Bytes of one entry of the first axis."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def read(self, start: int, stop: int) -> np.ndarray:
        """Returns rows `start:stop`."""
        shape = (max(0, stop - start), *self.shape[1:])
        if not math.prod(shape):
            return np.zeros(shape, self.dtype)
        with self.path.open("rb") as file:
            file.seek(start * self.row_bytes)
            data = file.read(shape[0] * self.row_bytes)
        if len(data) != shape[0] * self.row_bytes:
            raise SourceError(
                f"Expected rows {start}:{stop} in {self.path}, the file is shorter now: it changed "
                f"while it was read.",
                where=str(self.path),
            )
        array = np.frombuffer(data, "u1" if self.dtype.kind == "b" else self.dtype).reshape(shape)
        return array != 0 if self.dtype.kind == "b" else array


@dataclass(frozen=True)
class Storage:
    """All of a tensordict."""

    folder: Path
    maps: dict[str, Map]
    """Tensors by name, nested ones joined with `/`."""
    values: dict[str, Any]
    """What JSON states outright, by name (`NonTensorData`)."""
    left_out: tuple[str, ...]
    """Entries that only a pickle holds."""
    files: tuple[Path, ...]
    """What was looked at, for the fingerprint."""


def open_storage(folder: Path) -> Storage:
    """Opens a tensordict's folder; reads no tensors.

    Raises:
        SourceError: if it is none, or cannot be trusted.
    """
    maps: dict[str, Map] = {}
    values: dict[str, Any] = {}
    left_out: list[str] = []
    files: list[Path] = []

    def visit(place: Path, prefix: str, depth: int) -> None:
        if depth > _DEPTH:
            raise _refused(place, f"tensordicts nested at most {_DEPTH} deep", "deeper ones")
        stated = read_object(place / "meta.json")
        files.append(place / "meta.json")
        if stated.get("_is_non_tensor"):
            if (place / "other.pickle").exists() or "data" not in stated:
                left_out.append(prefix.rstrip("/"))
            else:
                values[prefix.rstrip("/")] = stated["data"]
            return
        for name, entry in stated.items():
            if not isinstance(entry, dict) or name.startswith("_"):
                continue
            _check_name(place, name)
            if "dtype" in entry:
                maps[prefix + name] = _open_map(place / f"{name}.memmap", entry)
                files.append(place / f"{name}.memmap")
            elif _is_folder(place / name):
                visit(place / name, f"{prefix}{name}/", depth + 1)
            else:
                left_out.append(prefix + name)
        left_out.extend(f"{prefix}{p.name}" for p in place.iterdir() if p.suffix in _PICKLES)

    if not (folder / "meta.json").exists():
        raise _no_storage(folder)
    visit(folder, "", 0)
    return Storage(folder, maps, values, tuple(sorted(set(left_out))), tuple(files))


def read_object(path: Path) -> dict[str, Any]:
    """Reads a JSON file that must hold an object.

    Raises:
        SourceError: if it does not.
    """
    if path.is_symlink() or not path.is_file():
        raise _refused(path, "a JSON file", "a link" if path.is_symlink() else "none")
    if path.stat().st_size > _JSON_BYTES:
        raise _refused(path, f"at most {_JSON_BYTES:,} bytes of JSON", f"{path.stat().st_size:,}")
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise _refused(path, "JSON", str(error)) from error
    if not isinstance(found, dict):
        raise _refused(path, "a JSON object", type(found).__name__)
    return found


def _open_map(path: Path, entry: dict[str, Any]) -> Map:
    dtype = DTYPES.get(str(entry["dtype"]))
    shape = entry.get("shape")
    if dtype is None:
        raise _refused(path, f"a dtype of {', '.join(DTYPES)}", str(entry["dtype"])[:40])
    if not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 2**48 for n in shape):
        raise _refused(path, "a shape of whole numbers", str(shape)[:80])
    if path.is_symlink() or not path.is_file():
        raise _refused(path, "a memory map", "a link" if path.is_symlink() else "no file")
    size = math.prod(shape) * dtype.itemsize
    if path.stat().st_size != size:
        said = f"{size:,} bytes for shape {tuple(shape)} of {dtype}"
        raise _refused(path, said, f"{path.stat().st_size:,}")
    return Map(path, tuple(shape), dtype)


def _is_folder(path: Path) -> bool:
    if path.is_symlink():
        raise _refused(path, "a folder", "a link to somewhere else; links are never followed")
    return path.is_dir()


def _check_name(place: Path, name: str) -> None:
    if not name or name in (".", "..") or "/" in name or "\\" in name or not name.isprintable():
        raise _refused(place, "plain names of entries", repr(name)[:80])


def _no_storage(folder: Path) -> SourceError:
    names = sorted(path.name for path in folder.iterdir())[:8] if folder.is_dir() else []
    pickles = [name for name in names if name.endswith(_PICKLES)]
    if pickles:
        return SourceError(
            f"Expected the memory maps of a tensordict in {folder}, there are pickles "
            f"({', '.join(pickles)}), which run code when they are loaded: they are never opened "
            f"here; dump a buffer with a LazyMemmapStorage instead.",
            where=str(folder),
        )
    return _refused(folder, "the meta.json of a tensordict", ", ".join(names) or "nothing")


def _refused(path: Path, expected: str, came: str) -> SourceError:
    return SourceError(f"Expected {expected} at {path}, came {came}.", where=str(path))
