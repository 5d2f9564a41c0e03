"""Decodes pictures and videos. Headers are compared with the spec before anything is decoded.

A few bytes that claim a huge picture never become one: the size in the header must be the spec's.
Pillow and PyAV come with the extras `images` and `video`.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from schemas.errors import EpisodeError, missing_extra
from schemas.spec import FieldSpec

PICTURES = ("PNG", "JPEG")
MAX_PIXELS = 64 << 20
"""Of one picture whose spec leaves its size open."""
_SLACK = 1e-4
"""Seconds by which a timestamp may miss its frame, beside half a frame."""


def picture_shape(data: bytes, where: str) -> tuple[tuple[int, ...], str]:
    """Returns the shape that one encoded picture decodes to and its dtype, from its header.

    Returns:
        `(H, W)` or `(H, W, C)`, and `|u1` or `<u2`.
    """
    with _opened(data, where) as picture:
        return _shape(picture), _dtype(picture)


def decode_pictures(frames: Sequence[bytes], spec: FieldSpec, where: str = "frames") -> np.ndarray:
    """Decodes PNG and JPEG rows.

    Args:
        frames: rows of encoded pictures; a row without bytes becomes zeros.
        spec: what every picture must decode to.
        where: said in errors.

    Returns:
        (rows, H, W[, C]) of the spec's dtype; objects if the spec leaves the size open.

    Raises:
        EpisodeError: with code `unreadable`, if a row does not decode to the spec.
        MissingExtraError: if Pillow is not installed.
    """
    is_open = any(size < 0 for size in spec.shape)
    rows = (
        np.empty(len(frames), object)
        if is_open
        else np.zeros((len(frames), *spec.shape), spec.numpy_dtype)
    )
    for at, data in enumerate(frames):
        if not data:
            if is_open:
                rows[at] = np.zeros([max(size, 0) for size in spec.shape], spec.numpy_dtype)
            continue
        place = f"{where}, frame {at}"
        with _opened(data, place) as picture:
            shape = _shape(picture)
            fits = len(shape) == len(spec.shape) and all(
                one in (other, -1) for one, other in zip(spec.shape, shape, strict=True)
            )
            if not fits or _dtype(picture) != spec.dtype:
                raise _unreadable(f"Expected a picture of {spec}, came {list(shape)}", place)
            try:
                pixels = np.asarray(picture)
            except (OSError, ValueError, SyntaxError) as error:
                raise _unreadable(f"Could not decode a picture: {error}", place) from error
        rows[at] = pixels.astype(spec.numpy_dtype, copy=False)
    return rows


def frames_at(
    data: bytes, times: np.ndarray, shape: tuple[int, ...], where: str
) -> Iterator[np.ndarray]:
    """Yields the frame shown at each of some ascending times of a video file.

    Args:
        data: the file.
        times: (n,) seconds, ascending.
        shape: (H, W, 3), what every frame must be.
        where: said in errors.

    Yields:
        (H, W, 3) uint8.

    Raises:
        EpisodeError: with code `unreadable`, if a frame is not there or of another size.
        MissingExtraError: if PyAV is not installed.
    """
    av = _pyav()
    with _container(data, where) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        context = stream.codec_context
        if (context.height, context.width) != shape[:2]:
            raise _unreadable(
                f"Expected frames of {list(shape)}, came {context.height} x {context.width}", where
            )
        within = 0.5 / _rate(stream) + _SLACK
        try:
            if len(times):
                container.seek(int(times[0] / stream.time_base), stream=stream)
            frames = container.decode(stream)
            seen, pixels = -np.inf, None
            frame: Any = None
            for time in times:
                while seen < time - within:
                    frame = next(frames, None)
                    if frame is None or frame.pts is None:
                        break
                    seen = float(frame.pts * stream.time_base)
                    pixels = None
                if not abs(seen - time) <= within:  # NaN is nowhere
                    raise _unreadable(f"Expected a frame at {time:.4f} s, came none", where)
                if pixels is None:
                    if (frame.height, frame.width) != shape[:2]:
                        raise _unreadable("Expected frames of one size, came others", where)
                    pixels = frame.to_ndarray(format="rgb24")
                yield pixels
        except av.error.FFmpegError as error:
            raise _unreadable(f"Could not decode a video: {error}", where) from error


def video_shape(data: bytes, where: str) -> tuple[tuple[int, ...], float]:
    """Returns `(H, W, 3)` and the frames per second of a video file, from its headers."""
    with _container(data, where) as container:
        stream = container.streams.video[0]
        return (stream.codec_context.height, stream.codec_context.width, 3), _rate(stream)


def _opened(data: bytes, where: str) -> Any:
    image = _pillow()
    try:
        picture = image.open(io.BytesIO(data), formats=PICTURES)
    except (OSError, ValueError, SyntaxError, image.DecompressionBombError) as error:
        raise _unreadable(f"Expected a PNG or JPEG picture: {error}", where) from error
    if picture.width * picture.height > MAX_PIXELS:
        raise _unreadable(
            f"Expected at most {MAX_PIXELS} pixels, came {picture.width} x {picture.height}", where
        )
    return picture


def _shape(picture: Any) -> tuple[int, ...]:
    channels = len(picture.getbands())
    return (picture.height, picture.width, *((channels,) if channels > 1 else ()))


def _dtype(picture: Any) -> str:
    return "<u2" if picture.mode.startswith("I;16") else "|u1"


def _container(data: bytes, where: str) -> Any:
    av = _pyav()
    try:
        container = av.open(io.BytesIO(data), mode="r")
    except (av.error.FFmpegError, ValueError) as error:
        raise _unreadable(f"Expected a video file: {error}", where) from error
    if not container.streams.video:
        container.close()
        raise _unreadable("Expected a video file, came one without a video stream", where)
    return container


def _rate(stream: Any) -> float:
    rate = stream.average_rate or stream.guessed_rate
    return float(rate) if rate else 30.0


def _unreadable(said: str, where: str) -> EpisodeError:
    return EpisodeError(f"{said} in {where}.", code="unreadable", where=where)


def _pillow() -> Any:
    try:
        from PIL import Image  # noqa: PLC0415 (an optional extra)
    except ModuleNotFoundError as error:
        raise missing_extra("images", "pillow") from error
    return Image


def _pyav() -> Any:
    try:
        import av  # noqa: PLC0415 (an optional extra)
        import av.error  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise missing_extra("video", "av") from error
    return av
