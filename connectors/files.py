"""Datasets as files: when they changed, and how a new one appears whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from schemas.errors import UsageError


def fingerprint(root: Path, files: Iterable[Path]) -> str:
    """Returns 32 hex digits that change with any file's name below `root`, size or write time."""
    sha = hashlib.sha256()
    for file in sorted(files):
        status = file.stat()
        name = file.relative_to(root).as_posix()
        sha.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return sha.hexdigest()[:32]


@contextmanager
def new_dataset(where: str) -> Iterator[Path]:
    """Yields a path beside `where` to write a file or folder to, then moves it into place.

    Whatever was written is removed again when the block fails.

    Raises:
        UsageError: if there is something at `where` already.
    """
    target = Path(where)
    _refuse_existing(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.parent / f".{target.name}.{uuid.uuid4().hex}.partial"
    try:
        yield draft
        _refuse_existing(target)
        draft.rename(target)
    finally:
        if draft.is_dir():
            shutil.rmtree(draft)
        else:
            draft.unlink(missing_ok=True)


def _refuse_existing(target: Path) -> None:
    if os.path.lexists(target):
        raise UsageError(
            f"Expected a path to write a new dataset to, {target} exists already; "
            f"name another or remove it.",
            where=str(target),
        )
