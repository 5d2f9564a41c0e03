"""Decodes the JPEG frames that Minari stores for image spaces.

A frame's header is compared with the space before it is decoded, so a few bytes that claim a huge
picture never become one.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

import numpy as np

from connectors.minari_spaces import Space
from schemas.errors import EpisodeError, missing_extra


def decode_frames(frames: Iterable[bytes], space: Space, where: str) -> np.ndarray:
    """Decodes JPEG frames.

    Args:
        frames: one encoded picture per row.
        space: the image space, (H, W) or (H, W, C) of uint8.
        where: said in errors.

    Returns:
        (rows, H, W[, C]) uint8.

    Raises:
        EpisodeError: with code `unreadable`, if a frame does not decode or has another size.
        MissingExtraError: if Pillow is not installed.
    """
    image = _pillow()
    decoded = []
    for index, frame in enumerate(frames):
        try:
            with image.open(io.BytesIO(frame), formats=["JPEG"]) as picture:
                if (picture.height, picture.width) != space.shape[:2]:
                    raise ValueError(f"its size is {picture.width} x {picture.height}")
                pixels = np.asarray(picture, np.uint8)
            if pixels.shape != space.shape:
                raise ValueError(f"its shape is {pixels.shape}")
            decoded.append(pixels)
        except (OSError, ValueError, SyntaxError, image.DecompressionBombError) as error:
            raise EpisodeError(
                f"Expected JPEG frames of {space.shape} in {where}, frame {index} does not "
                f"decode: {error}.",
                code="unreadable",
                where=where,
            ) from error
    return np.stack(decoded) if decoded else np.zeros((0, *space.shape), np.uint8)


def _pillow() -> Any:
    try:
        from PIL import Image  # noqa: PLC0415 (an optional extra)
    except ModuleNotFoundError as error:
        raise missing_extra("images", "pillow") from error
    return Image
