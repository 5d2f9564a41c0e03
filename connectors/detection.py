"""Says which format a path is, by looking inside."""

from __future__ import annotations

from pathlib import Path

from connectors.d4rl import REQUIRED
from connectors.hdf5 import is_hdf5, open_hdf5
from connectors.minari_layout import data_folder
from schemas.errors import NotFoundError, SourceError


def detect(where: str) -> str:
    """Returns the name of the format of a file or folder.

    Raises:
        NotFoundError: if there is nothing at `where`.
        SourceError: if it is of no known format; says what was seen.
    """
    path = Path(where)
    if not path.exists():
        raise NotFoundError(f"Expected a dataset, there is nothing at {where}.", where=where)
    if data_folder(where) is not None:
        return "minari"
    if path.is_dir():
        raise _unknown(where, f"a folder with {_some(sorted(p.name for p in path.iterdir()))}")
    if not is_hdf5(path):
        raise _unknown(where, f"a file that begins with {_head(path)!r}")
    with open_hdf5(path) as file:
        names = file.names()
    if "data" in names:
        return "robomimic"
    if set(REQUIRED) & set(names):
        return "d4rl"
    raise _unknown(where, f"an HDF5 file with {_some(names)}")


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(8)


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "nothing in it"


def _unknown(where: str, seen: str) -> SourceError:
    return SourceError(
        f"Expected a dataset of a known format, {where} is {seen}; name the format if there is "
        f"one for it.",
        where=where,
    )
