"""What an MP4 file says of its video: size, number of frames and duration, without a decoder.

Only the boxes on the way to the first video track are read; the pictures stay where they lie. A
file that is cut off, is no MP4 or holds no video is said to be so before anybody trusts it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from schemas.errors import EpisodeError
from schemas.media import MAX_PIXELS

_HEADER_BYTES = 256 * 2**20
"""A `moov` box larger than this is not read; an hour of video needs about a megabyte."""


@dataclass(frozen=True)
class Mp4:
    """What the headers of an MP4 file say of its first video track."""

    height: int
    width: int
    frames: int | None
    """None where the file is fragmented: its index does not say."""
    seconds: float | None
    """Frames times their durations; None where the file is fragmented."""


def read_header(path: Path) -> Mp4:
    """Reads the headers of an MP4 file.

    Raises:
        EpisodeError: with code `unreadable`, if it is not a whole MP4 file with a video track.
    """
    try:
        moov = _movie(path)
        for track in _boxes(moov, b"trak"):
            media = _box(track, b"mdia")
            if _box(media, b"hdlr")[8:12] == b"vide":
                return _video(media)
        raise ValueError("it has no video track")
    except (OSError, ValueError, struct.error, IndexError) as error:
        raise EpisodeError(
            f"Expected a whole MP4 video in {path}: {error}.", code="unreadable", where=str(path)
        ) from error


def _movie(path: Path) -> bytes:
    """Returns the `moov` box; every box of the file must lie within it."""
    size = path.stat().st_size
    found = None
    with path.open("rb") as file:
        at = 0
        while at < size:
            file.seek(at)
            head = file.read(16)
            length, kind, start = _head(head, size - at)
            if at == 0 and kind != b"ftyp":
                raise ValueError("it does not begin as one")
            if length < start or at + length > size:
                raise ValueError(f"it ends within its box {kind!r}")
            if kind == b"moov":
                if length > _HEADER_BYTES:
                    raise ValueError("its index is too large")
                file.seek(at + start)
                found = file.read(length - start)
            at += length
    if found is None:
        raise ValueError("it has no index")
    return found


def _video(media: bytes) -> Mp4:
    header = _box(media, b"mdhd")
    scale = struct.unpack_from(">I", header, 20 if header[0] else 12)[0]
    table = _box(_box(media, b"minf"), b"stbl")
    height, width = struct.unpack_from(">HH", _box(table, b"stsd"), 8 + 32)[::-1]
    if not 0 < height * width <= MAX_PIXELS:
        raise ValueError(f"its frames are {width} x {height}")
    times = _box(table, b"stts")
    entries = struct.unpack_from(">I", times, 4)[0]
    if 8 + 8 * entries > len(times):
        raise ValueError("its table of times is cut off")
    runs = list(struct.iter_unpack(">II", times[8 : 8 + 8 * entries]))
    frames = sum(count for count, _ in runs)
    if not frames or not scale:
        return Mp4(height, width, None, None)
    return Mp4(height, width, frames, sum(count * each for count, each in runs) / scale)


def _box(data: bytes, kind: bytes) -> bytes:
    found = next(_boxes(data, kind), None)
    if found is None:
        raise ValueError(f"it has no box {kind.decode()}")
    return found


def _boxes(data: bytes, wanted: bytes) -> Iterator[bytes]:
    at = 0
    while at + 8 <= len(data):
        length, kind, start = _head(data[at : at + 16], len(data) - at)
        if length < start or at + length > len(data):
            raise ValueError(f"its box {kind!r} is cut off")
        if kind == wanted:
            yield data[at + start : at + length]
        at += length


def _head(head: bytes, left: int) -> tuple[int, bytes, int]:
    """Returns length, kind and where the content begins, of a box with `left` bytes after it."""
    length, kind = struct.unpack_from(">I4s", head)
    if length == 1:
        return struct.unpack_from(">Q", head, 8)[0], kind, 16
    return (left if length == 0 else length), kind, 8
