"""Shapes of encoded pictures from their headers alone, without a decoder.

A field keeps its pictures encoded, so nothing but their first bytes is looked at: they must all be
PNG or JPEG, of one shape, and of a size that may ever be decoded. PNG headers lie at fixed places
and are compared for all rows at once.
"""

from __future__ import annotations

import struct

import numpy as np

from schemas.errors import EpisodeError
from schemas.media import MAX_PIXELS
from schemas.packed import Packed
from schemas.spec import FieldSpec

_PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_PNG_HEADER = 26
"""Bytes up to and including the colour type."""
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_FRAME_MARKS = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_LONE_MARKS = {0x01, *range(0xD0, 0xD9)}


def packed_pictures(offsets: np.ndarray, data: np.ndarray, where: str) -> Packed:
    """Returns rows of encoded pictures as frames, their spec told by their headers.

    Args:
        offsets: (rows + 1,) int64, beginning at 0.
        data: (bytes,) uint8.
        where: said in errors.

    Raises:
        EpisodeError: with code `unreadable`, if a row is no PNG or JPEG picture, too large ever to
            be decoded, or of another shape than the first.
    """
    rows = len(offsets) - 1
    if rows == 0:
        return Packed(FieldSpec("|u1", (0, 0, 0), "frames"), offsets, data)
    first = picture_header(data[offsets[0] : offsets[1]].tobytes(), f"{where}, row 0")
    for row in _unlike_first(offsets, data):
        came = picture_header(
            data[offsets[row] : offsets[row + 1]].tobytes(), f"{where}, row {row}"
        )
        if came != first:
            raise _unreadable(f"Expected pictures of {first[0]}, came {came[0]}", f"{where}, {row}")
    return Packed(FieldSpec(first[1], first[0], "frames"), offsets, data)


def picture_header(data: bytes, where: str) -> tuple[tuple[int, ...], str]:
    """Returns `(H, W)` or `(H, W, C)`, and `|u1` or `<u2`, as decoding the picture gives them.

    Raises:
        EpisodeError: with code `unreadable`, if it is no PNG or JPEG picture of a usual size.
    """
    try:
        height, width, channels, bits = _png(data) if data.startswith(_PNG) else _jpeg(data)
    except (IndexError, KeyError, struct.error):
        raise _unreadable(f"Expected a PNG or JPEG picture, came {data[:8]!r}", where) from None
    if not 0 < height * width <= MAX_PIXELS:
        raise _unreadable(
            f"Expected at most {MAX_PIXELS} pixels, came a header of {width} x {height}", where
        )
    is_wide = bits == 16 and channels == 1
    return (height, width, *((channels,) if channels > 1 else ())), "<u2" if is_wide else "|u1"


def _unlike_first(offsets: np.ndarray, data: np.ndarray) -> list[int]:
    """Rows whose header must be looked at one by one: all but PNG headers equal to the first."""
    starts, sizes = offsets[:-1], np.diff(offsets)
    if not data[: len(_PNG)].tobytes().startswith(_PNG) or sizes.min() < _PNG_HEADER:
        return list(range(1, len(starts)))
    headers = data[starts[:, None] + np.arange(_PNG_HEADER)]
    return [int(row) for row in np.flatnonzero((headers != headers[0]).any(axis=1))]


def _png(data: bytes) -> tuple[int, int, int, int]:
    width, height, bits, colour = struct.unpack_from(">IIBB", data, len(_PNG))
    return height, width, _PNG_CHANNELS[colour], bits


def _jpeg(data: bytes) -> tuple[int, int, int, int]:
    """Walks a JPEG's segments to the one that begins its frame."""
    if data[:2] != b"\xff\xd8":
        raise KeyError("no JPEG")
    at = 2
    while True:
        if data[at] != 0xFF:
            raise KeyError("no segment")
        mark = data[at + 1]
        if mark == 0xFF:  # fill bytes
            at += 1
            continue
        if mark in _FRAME_MARKS:
            bits, height, width, channels = struct.unpack_from(">BHHB", data, at + 4)
            return height, width, channels, bits
        at += 2 if mark in _LONE_MARKS else 2 + struct.unpack_from(">H", data, at + 2)[0]


def _unreadable(said: str, where: str) -> EpisodeError:
    return EpisodeError(f"{said} in {where}.", code="unreadable", where=where)
