"""Folders that a view is written into once: in the cache, named by all that decides what is in it.

A folder appears whole, by one renaming; a process that dies leaves a draft, never half a view. Of
two processes that make the same folder at once, the one that is later throws its own away. Any of
them may be deleted when nobody uses it: it is made again from the store.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from pipeline.stream.cache import cache_root
from pipeline.stream.views.episodes import Kept
from schemas.errors import DiskFullError

_TAKEN = (errno.EEXIST, errno.ENOTEMPTY)


def made_once(
    library: str,
    kept: Kept,
    settings: object,
    make: Callable[[Path], object],
    *,
    cache_dir: str | None,
    size: int = 0,
) -> Path:
    """Returns the folder of a view, after making it if it is not there.

    Args:
        library: whose form it has.
        kept: what it shows. Episodes count one by one, as erasing takes some from a version.
        settings: what else decides its content, as JSON.
        make: writes it to a path at which nothing is.
        cache_dir: see `cache_root`.
        size: bytes that it will take, if known.

    Raises:
        DiskFullError: if there is no room for it.
    """
    parent = cache_root(cache_dir) / "views" / library
    folder = parent / f"{kept.version.id}-{_digest(kept, settings)}"
    if folder.is_dir():
        return folder
    parent.mkdir(parents=True, exist_ok=True)
    # Memory maps that outgrow a disk end the process, so room is looked for first.
    if shutil.disk_usage(parent).free < size:
        raise _full(parent, f"{size:,} bytes", "less")
    draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=parent))
    try:
        make(draft / "view")
        (draft / "view").rename(folder)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _full(parent, "room", "a full disk or quota") from error
        if error.errno not in _TAKEN or not folder.is_dir():
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def _digest(kept: Kept, settings: object) -> str:
    hashed = hashlib.sha256(json.dumps([settings, kept.ids.tolist()]).encode())
    hashed.update(kept.start.tobytes() + kept.stop.tobytes())
    return hashed.hexdigest()[:16]


def _full(parent: Path, expected: str, came: str) -> DiskFullError:
    return DiskFullError(
        f"Expected {expected} for a view in {parent}, came {came}; free some, or set "
        f"PENSTOCK_CACHE to a folder on a larger disk.",
        where=str(parent),
    )
