"""From what the user names to datasets: patterns, and folders that hold several."""

from __future__ import annotations

import glob
from pathlib import Path

from connectors import urls
from connectors.detection import HDF5_SUFFIXES, RULES, Look, hdf5_files
from schemas.errors import NotFoundError

_MAGIC = "*?["


def matching(where: str) -> list[str]:
    """Returns the paths or URLs that a pattern stands for, sorted; what is no pattern as it is.

    A path that exists as it stands is no pattern, whatever its name; nor is the `?` of an http
    query.

    Raises:
        NotFoundError: if nothing matches.
    """
    if urls.is_url(where) and urls.local_path(where) == where:
        magic = "*[" if where.startswith(("http://", "https://")) else _MAGIC
        is_pattern = any(sign in where for sign in magic)
        found = urls.glob(where) if is_pattern else [where]
    else:
        path = urls.local_path(where)
        is_pattern = any(sign in path for sign in _MAGIC) and not Path(path).exists()
        prefix = where[: len(where) - len(path)]
        found = [prefix + one for one in sorted(glob.glob(path, recursive=True))]  # noqa: PTH207 - keeps paths as typed
        found = found if is_pattern else [where]
    if not found:
        raise NotFoundError(f"Expected datasets, nothing matches {where}.", where=where)
    return found


def datasets_in(where: str) -> list[str]:
    """Returns the files of a folder that holds nothing but HDF5 files; else `where` itself."""
    path = urls.local_path(where)
    if urls.is_url(path):
        if path.lower().endswith(HDF5_SUFFIXES):
            return [where]
        files = urls.members(where)
        return files if files and all(f.lower().endswith(HDF5_SUFFIXES) for f in files) else [where]
    inside = hdf5_files(path)
    if not inside or any(rule.fits(Look(Path(path))) for rule in RULES if rule.kind == "folder"):
        return [where]
    prefix = where[: len(where) - len(path)]
    return [prefix + one for one in inside]
