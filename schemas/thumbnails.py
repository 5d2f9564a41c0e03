"""Small pictures of an episode's cameras: evenly spaced, each decoded alone, side by side as PNG.

Pictures come encoded, as videos, or as raw bytes of their shape; only those shown are decoded.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import numpy as np

from schemas.episode import Episode
from schemas.packed import Packed, Rows, Video

SIDE = 112
"""Pixels of a thumbnail's longer side, at most."""
SMALL = 48
"""Pixels under which a thumbnail's longer side is enlarged."""
GAP = 4
MIN_SIDE = 8
"""Pixels from which an array of bytes counts as pictures."""


def cameras(episode: Episode) -> dict[str, Rows]:
    """Returns the fields of an episode that hold pictures: observations, then `extras/`."""
    fields: dict[str, Rows] = {**episode.observations}
    fields.update({f"extras/{name}": rows for name, rows in episode.extras.items()})
    return {name: rows for name, rows in fields.items() if is_pictures(rows)}


def is_pictures(rows: Rows) -> bool:
    """True for pictures and videos, and for raw bytes of the shape of pictures."""
    if isinstance(rows, Video):
        return True
    if isinstance(rows, Packed):
        return rows.spec.encoding == "frames"
    if rows.dtype != np.uint8 or rows.ndim not in (3, 4):
        return False
    height, width = rows.shape[1:3] if not _is_channels_first(rows) else rows.shape[2:4]
    has_colours = rows.ndim == 3 or _is_channels_first(rows) or rows.shape[3] in (1, 3, 4)
    return bool(min(height, width) >= MIN_SIDE and has_colours)


def strip(rows: Rows, count: int) -> tuple[list[int], np.ndarray | None]:
    """Returns evenly spaced pictures of a field side by side, and the rows they are of.

    Args:
        rows: pictures, as `is_pictures` knows them.
        count: how many, at most.

    Returns:
        The rows, and (h, w, 3) uint8; None if no row has a picture.

    Raises:
        EpisodeError: with code `unreadable`, if a picture does not decode to its spec.
        MissingExtraError: if what decodes them is not installed.
    """
    steps = spaced(rows, count)
    thumbs = [thumbnail(pixels) for pixels in _decoded(rows, steps)]
    return steps, side_by_side(thumbs) if thumbs else None


def spaced(rows: Rows, count: int) -> list[int]:
    """Returns positions of at most `count` evenly spaced rows that have a picture."""
    if isinstance(rows, Packed):
        there = np.flatnonzero(np.diff(rows.offsets))
    elif isinstance(rows, Video):
        there = np.flatnonzero(rows.index >= 0)
    else:
        there = np.arange(len(rows))
    if not len(there):
        return []
    at = np.unique(np.linspace(0, len(there) - 1, min(len(there), count)).astype(int))
    return [int(step) for step in there[at]]


def thumbnail(pixels: np.ndarray) -> np.ndarray:
    """Returns (H, W[, C]) pixels as (h, w, 3) uint8, averaged or repeated whole; no alpha."""
    if pixels.dtype != np.uint8:  # depth: nearest black, farthest white
        low, high = int(pixels.min(initial=65535)), int(pixels.max(initial=0))
        pixels = ((pixels - float(low)) * (255.0 / max(high - low, 1))).astype(np.uint8)
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    pixels = pixels[:, :, :3] if pixels.shape[2] >= 3 else np.repeat(pixels[:, :, :1], 3, axis=2)
    height, width = pixels.shape[:2]
    by = -(-max(height, width) // SIDE)
    if by > 1 and min(height, width) >= by:
        cut = pixels[: height // by * by, : width // by * by].astype(np.uint16)
        blocks = cut.reshape(height // by, by, width // by, by, 3)
        return np.asarray(blocks.mean((1, 3)).astype(np.uint8))
    if by > 1:  # a line of pixels
        return pixels[::by, ::by]
    times = max(1, SMALL // max(height, width, 1))
    return np.repeat(np.repeat(pixels, times, axis=0), times, axis=1)


def side_by_side(thumbs: list[np.ndarray]) -> np.ndarray:
    """Returns one picture of some, a grey gap between neighbours."""
    height = max(thumb.shape[0] for thumb in thumbs)
    width = sum(thumb.shape[1] + GAP for thumb in thumbs) - GAP
    row = np.full((height, width, 3), 128, np.uint8)
    left = 0
    for thumb in thumbs:
        row[: thumb.shape[0], left : left + thumb.shape[1]] = thumb
        left += thumb.shape[1] + GAP
    return row


def png(pixels: np.ndarray) -> bytes:
    """Returns (H, W, 3) uint8 as a PNG file."""
    height, width = pixels.shape[:2]
    lines = np.zeros((height, 1 + 3 * width), np.uint8)  # each begins with its filter: none
    lines[:, 1:] = pixels.reshape(height, -1)
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(lines.tobytes(), 6)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def _is_channels_first(rows: np.ndarray) -> bool:
    return rows.ndim == 4 and rows.shape[1] in (1, 3) and rows.shape[3] not in (1, 3, 4)


def _decoded(rows: Rows, steps: list[int]) -> Iterator[np.ndarray]:
    """Yields (H, W[, C]) pixels of some rows."""
    if isinstance(rows, Video):
        at = np.array(steps, np.int64)
        yield from Video(rows.spec, rows.media, rows.index[at], rows.timestamps[at]).decode()
        return
    for step in steps:
        if isinstance(rows, Packed):
            yield rows[step : step + 1].decode()[0]
        else:
            yield rows[step].transpose(1, 2, 0) if _is_channels_first(rows) else rows[step]
