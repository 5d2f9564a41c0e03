"""Images of a batch: resized, cut, moved, scaled, their axes in another order.

Resizing is a weighted sum of a few neighbours, summed in one order, and cutting and moving are one
look-up by row and column: both give the same bits for a row whatever batch it is in.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.stream import plan
from pipeline.stream.arrays import Arrays
from schemas.errors import ConfigError
from schemas.transforms import ImageTransform

Offsets = tuple[np.ndarray, np.ndarray]
"""Where each row is cut: first row of pixels and first column, (rows,) int64 each."""

_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


@dataclass(frozen=True)
class Image:
    """What is done to one image field, fitted to its shape."""

    asked: ImageTransform
    axes: int
    """Of a row: 2, or 3 with channels."""
    size: tuple[int, int]
    """As stored."""
    resized: tuple[int, int]
    """Before the cut."""
    most: int
    """Largest value of the integers that are scaled; 1 for floats."""

    @classmethod
    def of(
        cls, name: str, asked: ImageTransform, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> Image:
        """Returns what is asked of a field.

        Raises:
            ConfigError: if the field is no image, or smaller than what is cut from it.
        """
        if len(shape) not in (2, 3) or 0 in shape:
            raise ConfigError(
                f"Expected an image field of 2 or 3 axes, came {name!r} of shape {list(shape)}.",
                where=name,
            )
        if asked.scale and dtype.kind != "u":
            raise ConfigError(
                f"Expected an image field of unsigned integers to scale, came {name!r} of {dtype}; "
                f"leave out scale=.",
                where=name,
            )
        first = 1 if len(shape) == 3 and asked.layout == "chw" else 0
        size = shape[first], shape[first + 1]
        resized = asked.resize or size
        cut = asked.crop or resized
        if cut[0] > resized[0] or cut[1] > resized[1]:
            raise ConfigError(
                f"Expected a crop within {resized[0]} x {resized[1]} pixels of {name!r}, came "
                f"{cut[0]} x {cut[1]}.",
                where=name,
            )
        most = np.iinfo(dtype).max if dtype.kind == "u" else 1
        return cls(asked, len(shape), size, resized, most)

    @property
    def cut(self) -> tuple[int, int]:
        """Size in batches."""
        return self.asked.crop or self.resized

    @property
    def makes_real(self) -> bool:
        """True if pixels become floats."""
        return self.asked.scale or self.resized != self.size

    def apply(self, images: Any, drawn: Offsets | None, arrays: Arrays, work: str) -> Any:
        """Returns the images of a batch, changed.

        Args:
            images: (rows, ..., H, W[, C]), or as the setting `layout` says.
            drawn: where rows are cut; None cuts the middle.
            arrays: of the framework.
            work: dtype of arithmetic.
        """
        channels = self.axes == 3
        stored = (-2, -1) if not channels or self.asked.layout == "chw" else (-3, -2)
        to = self.asked.to_layout or self.asked.layout
        shown = (-2, -1) if not channels or to == "chw" else (-3, -2)
        images = arrays.move(images, stored, (1, 2))  # (rows, H, W, ...)
        if self.resized != self.size:
            images = arrays.cast(images, work)
            for axis in (1, 2):
                images = self._resize(images, axis, arrays, work)
        images = self._cut(images, drawn, arrays)
        if self.asked.scale:
            images = arrays.cast(images, work) / self.most
        return arrays.move(images, (1, 2), shown)

    def _resize(self, images: Any, axis: int, arrays: Arrays, work: str) -> Any:
        before, after = self.size[axis - 1], self.resized[axis - 1]
        if before == after:
            return images
        moved = arrays.move(images, (axis,), (-1,))
        found: Any = 0
        places, weights = taps(before, after)
        near, heavy = arrays.put(places, moved), arrays.put(weights.astype(work), moved)
        for tap in range(len(places)):
            found = found + moved[..., near[tap]] * heavy[tap]
        return arrays.move(found, (-1,), (axis,))

    def _cut(self, images: Any, drawn: Offsets | None, arrays: Arrays) -> Any:
        (height, width), (h, w) = self.resized, self.cut
        top, left = (height - h) // 2, (width - w) // 2
        if drawn is None:
            return images[:, top : top + h, left : left + w]
        if self.asked.shift:
            drawn = drawn[0] + top - self.asked.shift, drawn[1] + left - self.asked.shift
        # Beyond the edge the nearest pixel stands in: what padding by repetition would show.
        rows = np.clip(drawn[0][:, None] + np.arange(h), 0, height - 1)
        columns = np.clip(drawn[1][:, None] + np.arange(w), 0, width - 1)
        held = arrays.host(images)
        if held is not None:
            return arrays.put(_cut_each(held, rows, columns), images)
        each = np.arange(len(rows))[:, None, None]
        where = (each, rows[:, :, None], columns[:, None, :])
        return images[tuple(arrays.put(part, images) for part in where)]


def _cut_each(images: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Cuts one image after the other, which a processor does several times as fast as by index.

    Args:
        images: (B, H, W, ...).
        rows: (B, h) int64, not falling.
        columns: (B, w) int64, not falling.
    """
    shape = (len(images), rows.shape[1], columns.shape[1], *images.shape[3:])
    found = np.empty(shape, images.dtype)
    for image, cut, y, x in zip(images, found, rows, columns, strict=True):
        lines = image[y[0] : y[-1] + 1, x[0] : x[-1] + 1]
        # How often the edge is repeated, before and after.
        top, left = np.count_nonzero(y == y[0]) - 1, np.count_nonzero(x == x[0]) - 1
        bottom, right = top + len(lines), left + lines.shape[1]
        cut[top:bottom, left:right] = lines
        cut[:top, left:right], cut[bottom:, left:right] = lines[:1], lines[-1:]
        cut[:, :left], cut[:, right:] = cut[:, left : left + 1], cut[:, right - 1 : right]
    return found


def offsets(words: np.ndarray, image: Image) -> Offsets:
    """Returns where rows are cut or by how much they are moved.

    Args:
        words: (rows,) uint64, one random word each.
        image: what is asked.
    """
    if image.asked.shift:
        places = (2 * image.asked.shift + 1,) * 2
    else:
        places = image.resized[0] - image.cut[0] + 1, image.resized[1] - image.cut[1] + 1
    first = plan.below((words >> _HALF) << _HALF, places[0])
    return first, plan.below((words & _LOW) << _HALF, places[1])


@functools.lru_cache(maxsize=64)
def taps(before: int, after: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns which pixels of a line make each pixel of the resized one, and their weights.

    A triangle filter as wide as the pixels that it averages, cut off at the ends: bilinear
    interpolation where the line grows, and an antialiased one where it shrinks.

    Args:
        before: pixels of the line.
        after: pixels of the resized one.

    Returns:
        (taps, after) int64 and (taps, after) float64; the weights of a pixel have the sum 1.
    """
    ratio = before / after
    support = max(ratio, 1.0)
    centre = (np.arange(after) + 0.5) * ratio
    first = np.maximum(np.floor(centre - support + 0.5), 0).astype(np.int64)
    places = first + np.arange(math.ceil(2 * support) + 1)[:, None]
    weights = np.maximum(1 - np.abs((places + 0.5 - centre) / support), 0)
    weights[places >= before] = 0
    return np.minimum(places, before - 1), weights / weights.sum(axis=0)
