"""Frames in MP4 files: opened and hashed once, checked by their headers, read when asked for."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import numpy as np

from connectors.lerobot_columns import is_shape
from connectors.lerobot_episode import TIME_SLACK
from connectors.lerobot_features import Feature
from connectors.lerobot_layout import VideoPlace
from connectors.mp4 import Mp4, read_header
from schemas.errors import EpisodeError, SourceError
from schemas.packed import Media, Video
from schemas.spec import FieldSpec

Opened = dict[Path, tuple[Media, Mp4] | EpisodeError]
"""Files that have been looked at, or what is wrong with them."""
_HASH_BYTES = 1 << 22


def video_rows(
    opened: Opened, feature: Feature, place: VideoPlace, times: np.ndarray, key: str
) -> Video:
    """Returns an episode's frames of one camera as timestamps into its file."""
    if place.path not in opened:
        opened[place.path] = _open_media(place.path)
    found = opened[place.path]
    if isinstance(found, EpisodeError):
        raise found
    media, header = found
    shape = (header.height, header.width, 3)
    if not is_shape(feature.shape, shape):
        raise EpisodeError(
            f"Expected frames of {list(feature.shape)} in {place.path}, came {list(shape)}.",
            code="unreadable",
            where=key,
        )
    timestamps = times + place.start
    if header.seconds is not None and header.frames and len(times):
        half = header.seconds / header.frames / 2
        if timestamps[-1] > header.seconds - half + TIME_SLACK or place.start < -TIME_SLACK:
            raise EpisodeError(
                f"Expected frames of {key} up to {timestamps[-1]:.4f} s in {place.path}, it has "
                f"{header.frames} frames, {header.seconds:.4f} s.",
                code="length_mismatch",
                where=key,
            )
    return Video(
        FieldSpec("|u1", shape, "video"), (media,), np.zeros(len(times), np.int32), timestamps
    )


def _open_media(path: Path) -> tuple[Media, Mp4] | EpisodeError:
    """Looks at a file's headers and hashes it once; what is wrong with it is each user's fault."""
    try:
        header = read_header(path)
        sha = hashlib.sha256()
        size = 0
        with path.open("rb") as file:
            while block := file.read(_HASH_BYTES):
                sha.update(block)
                size += len(block)
    except EpisodeError as fault:
        return fault
    except OSError as error:
        return EpisodeError(f"Could not read {path}: {error}.", code="unreadable", where=str(path))
    digest = sha.hexdigest()
    return Media(digest, size, functools.partial(_load, str(path), digest)), header


def _load(path: str, sha256: str) -> bytes:
    """Returns a media file that must still be what it was."""
    data = Path(path).read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise SourceError(
            f"Expected the video {path} as it was, it changed while it was read.", where=path
        )
    return data
