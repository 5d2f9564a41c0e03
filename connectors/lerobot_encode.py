"""Writes frames as MP4 files that LeRobot reads, and keeps to a stated quality.

Frames are encoded as LeRobot does (AV1, a key frame every two frames, 4:2:0), or with H.264 or
MPEG-4 where that encoder is not there. Every file is decoded again: if a frame is further from
the original than the bound, a finer quality is tried; pictures that no quality holds are refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from schemas.errors import UsageError, missing_extra
from schemas.media import frames_at
from schemas.packed import Packed, Rows, Video, plain

PSNR = 28.0
"""Decibels that every frame keeps at least, over all its pixels and channels."""
_ENCODERS: tuple[tuple[str, tuple[dict[str, str], ...]], ...] = (
    ("libsvtav1", tuple({"g": "2", "crf": crf, "preset": "10"} for crf in ("30", "16", "4"))),
    ("libx264", tuple({"g": "2", "crf": crf, "bf": "0"} for crf in ("23", "12", "1"))),
    ("mpeg4", tuple({"g": "2", "qmin": "1", "qmax": q, "bf": "0"} for q in ("6", "2", "1"))),
)
_PIECE = 64
"""Frames decoded at a time."""


def frames_of(rows: Rows) -> Iterator[np.ndarray]:
    """Yields the (H, W, 3) uint8 frames of pictures or a video, decoded a few at a time."""
    if isinstance(rows, Video) and len(rows.media) == 1 and (np.diff(rows.timestamps) > 0).all():
        media = rows.media[0]
        yield from frames_at(media.load(), rows.timestamps, rows.spec.shape, media.sha256[:12])
        return
    for start in range(0, len(rows), _PIECE):
        yield from plain(rows[start : start + _PIECE])


def can_encode(rows: Rows) -> bool:
    """True for colour pictures of 8 bits whose sides are even, as 4:2:0 needs them."""
    shape = rows.shape[1:]
    is_kind = rows.dtype == np.uint8 and (rows.ndim == 4 and shape[2] == 3)
    is_picture = not isinstance(rows, Packed) or rows.spec.encoding == "frames"
    return bool(is_kind and is_picture and shape[0] % 2 == shape[1] % 2 == 0)


def encode(rows: Rows, path: Path, fps: float, where: str) -> None:
    """Writes an MP4 file whose frames keep `PSNR`.

    Raises:
        UsageError: if no encoder holds them so well.
        MissingExtraError: if PyAV is not installed.
    """
    av = _pyav()
    os.environ.setdefault("SVT_LOG", "1")  # else the AV1 encoder prints its settings
    path.parent.mkdir(parents=True, exist_ok=True)
    worst = -np.inf
    for name, qualities in _ENCODERS:
        if name not in av.codecs_available:
            continue
        for options in qualities:
            try:
                _write(av, frames_of(rows), path, fps, name, options)
            except av.error.FFmpegError:
                break  # an encoder that cannot take frames of this size
            worst = max(worst, _psnr(rows, path, fps))
            if worst >= PSNR:
                return
    path.unlink(missing_ok=True)
    raise UsageError(
        f"Expected pictures in {where} that a video holds within {PSNR:g} dB, the best came to "
        f"{worst:.1f}; write them as pictures instead.",
        where=where,
    )


def codec_of(path: Path) -> dict[str, Any]:
    """Returns what LeRobot's `info` says of a video file's codec."""
    av = _pyav()
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        return {
            "video.codec": context.codec.canonical_name,
            "video.pix_fmt": context.pix_fmt,
            "has_audio": bool(container.streams.audio),
        }


def _write(
    av: Any,
    frames: Iterator[np.ndarray],
    path: Path,
    fps: float,
    name: str,
    options: dict[str, str],
) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream(
            name, rate=Fraction(fps).limit_denominator(1_000_000), options=options
        )
        stream.pix_fmt = "yuv420p"
        for at, pixels in enumerate(frames):
            if at == 0:
                stream.height, stream.width = pixels.shape[:2]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _psnr(rows: Rows, path: Path, fps: float) -> float:
    """Returns the decibels of the worst frame of a file against what went into it."""
    times = np.arange(len(rows)) / fps
    decoded = frames_at(path.read_bytes(), times, rows.shape[1:], str(path))
    worst = np.inf
    for one, two in zip(frames_of(rows), decoded, strict=True):
        error = float(np.mean((one.astype(np.float32) - two) ** 2))
        worst = min(worst, 10 * np.log10(255**2 / error) if error else np.inf)
    return float(worst)


def _pyav() -> Any:
    try:
        import av  # noqa: PLC0415 (an optional extra)
        import av.error  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise missing_extra("video", "av") from error
    return av
