"""Rows of episodes that were acknowledged and that no version took: a file each, beside the log.

Quarantine says why an episode is in no version, and has no rows; the log's segments go once what is
in them is sealed. So the rows are put into files of their own before that, which nothing deletes.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa

from pipeline.service.assemble import Ended
from pipeline.service.private_files import write_private
from pipeline.service.reading import encode_ended
from pipeline.service.segments import Segments
from pipeline.store.append import Refusal
from schemas.episode import Episode
from schemas.errors import (
    EpisodeError,
    IdConflictError,
    PenstockError,
    SpecMismatchError,
    TransientError,
)
from schemas.pulls import decode_episode

logger = logging.getLogger(__name__)
FOLDER = "refused"
"""Within the log's folder."""


def keep_all(
    waiting: Iterable[Ended], refusals: Iterable[Refusal], segments: Segments, server: str
) -> None:
    """Keeps the rows of what no version took, before the log lets go of them.

    Args:
        waiting: the episodes that were to come into a version.
        refusals: of some of them.
        segments: of their log.
        server: the log's id.

    Raises:
        TransientError, DamagedLogError: see `keep_refused`.
    """
    by_id = {ended.episode_id: ended for ended in waiting}
    for refusal in refusals:
        ended = by_id[refusal.episode_id or ""]
        path = keep_refused(ended, segments, server)
        facts = {"episode_id": ended.episode_id, "kind": refusal.code, "why": refusal.message}
        logger.warning(
            "no version took an acknowledged episode, its rows are kept",
            extra={**facts, "rows": str(path)},
        )
        ended.refusal = error_of(refusal)


def keep_refused(ended: Ended, segments: Segments, server: str) -> Path:
    """Writes an episode's rows, durably; those that are there already are replaced.

    Args:
        ended: the episode.
        segments: of its log.
        server: the log's id.

    Raises:
        TransientError: if they cannot be written now.
        DamagedLogError: see `reading.rows_of`.
    """
    folder = segments.folder / FOLDER
    path = folder / f"{server}-{ended.offset}.arrow"
    data = encode_ended(ended, segments)
    try:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(0o700)
            _sync(folder.parent)
        write_private(path, data.to_pybytes())
    except OSError as error:
        raise TransientError(
            f"Could not keep the rows of the episode {ended.episode_id!r}, which no version takes: "
            f"{error.strerror}; check the log's disk, it is tried again.",
            where=str(path),
        ) from None
    return path


def read_refused(path: Path) -> Episode:
    """Returns the episode that `keep_refused` wrote.

    Raises:
        EpisodeError: if its rows make none.
    """
    return decode_episode(pa.py_buffer(path.read_bytes()))


def error_of(refusal: Refusal) -> PenstockError:
    """Returns what whoever sent an episode is told when no version took it."""
    said = f"{refusal.message} It is in quarantine; the log's folder {FOLDER!r} has its rows."
    if refusal.code == "spec_mismatch":
        return SpecMismatchError(said, where=refusal.episode_id)
    if refusal.code == "id_conflict":
        return IdConflictError(said, where=refusal.episode_id)
    return EpisodeError(said, code=refusal.code, where=refusal.episode_id)


def in_quarantine(episode_id: str) -> PenstockError:
    """Returns the same of an episode of which nothing else is known any more."""
    return EpisodeError(
        f"Expected the episode {episode_id!r} in a version, it is in none: it went into "
        f"quarantine, which says why; the log's folder {FOLDER!r} has its rows.",
        code="refused",
        where=episode_id,
    )


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
