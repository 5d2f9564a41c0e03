"""Rows that are not plain numbers: encoded pictures, texts, ragged arrays, frames of a video.

A field keeps the encoding its source gave it; nothing is decoded until somebody needs numbers.
`Packed` is offsets + bytes, as it is stored and travels; `Video` is a timestamp per row into media
files that stay as they came. Both stand where an episode has an array: they have a length, slices
and a spec, and `numpy.asarray` decodes them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, overload

import numpy as np

from schemas import media
from schemas.errors import EpisodeError
from schemas.spec import FieldSpec

TEXT = FieldSpec("str", (), "text")


@dataclass(frozen=True, eq=False)
class Packed:
    """One run of bytes per row: `frames` (PNG or JPEG), `text` (UTF-8) or `ragged` arrays."""

    spec: FieldSpec
    """Of a decoded row; a ragged or varying axis is -1."""
    offsets: np.ndarray
    """(rows + 1,) int64; row t is `data[offsets[t]:offsets[t + 1]]`; begins at 0. A row without
    bytes is padding, an empty text or an empty array."""
    data: np.ndarray
    """(bytes,) uint8."""

    @classmethod
    def of(cls, spec: FieldSpec, rows: Iterable[bytes | memoryview]) -> Packed:
        """Packs rows that are encoded already."""
        kept = list(rows)
        offsets = np.zeros(len(kept) + 1, np.int64)
        np.cumsum([len(row) for row in kept], out=offsets[1:])
        return cls(spec, offsets, np.frombuffer(b"".join(kept), np.uint8))

    @classmethod
    def texts(cls, values: Iterable[str]) -> Packed:
        """Packs Unicode texts."""
        return cls.of(TEXT, (value.encode() for value in values))

    @classmethod
    def ragged(cls, arrays: Sequence[np.ndarray]) -> Packed:
        """Packs at least one array; all of one dtype and of equal shape but for the first axis."""
        kinds = {(a.dtype.newbyteorder("<").str, a.shape[1:]) for a in arrays}
        if len(kinds) != 1 or any(a.ndim == 0 for a in arrays):
            raise EpisodeError(
                f"Expected ragged rows of one dtype and shape but for their first axis, came "
                f"{', '.join(sorted(map(str, kinds))) or 'none'}.",
                code="bad_dtype",
            )
        ((dtype, rest),) = kinds
        spec = FieldSpec(dtype, (-1, *rest), "ragged")
        return cls.of(spec, (np.ascontiguousarray(a, np.dtype(dtype)).tobytes() for a in arrays))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def nbytes(self) -> int:
        """Encoded bytes of all rows."""
        return int(self.offsets[-1])

    @property
    def dtype(self) -> np.dtype:
        """Of decoded rows."""
        return self.spec.numpy_dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, *shape of a decoded row)."""
        return (len(self), *self.spec.shape)

    @property
    def ndim(self) -> int:
        """Axes of the decoded rows together."""
        return 1 + len(self.spec.shape)

    @overload
    def __getitem__(self, key: int) -> bytes: ...
    @overload
    def __getitem__(self, key: slice) -> Packed: ...
    def __getitem__(self, key: int | slice) -> bytes | Packed:
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            if step != 1:
                return Packed.of(self.spec, [self[row] for row in range(start, stop, step)])
            stop = max(start, stop)
            offsets = self.offsets[start : stop + 1]
            return Packed(self.spec, offsets - offsets[0], self.data[offsets[0] : offsets[-1]])
        row = range(len(self))[key]
        return self.data[self.offsets[row] : self.offsets[row + 1]].tobytes()

    def __iter__(self) -> Iterator[bytes]:
        return (self[row] for row in range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        decoded = self.decode()
        return decoded if dtype is None else decoded.astype(dtype)

    def decode(self) -> np.ndarray:
        """Returns (rows, *shape) numbers; texts as a `str` array, ragged rows as objects.

        Raises:
            EpisodeError: with code `unreadable`, if a picture does not decode to its spec.
            MissingExtraError: for pictures, if Pillow is not installed.
        """
        if self.spec.encoding == "text":
            return np.array([row.decode() for row in self], dtype=np.str_)
        if self.spec.encoding == "ragged":
            rows = np.empty(len(self), object)
            for at, row in enumerate(self):
                rows[at] = np.frombuffer(row, self.dtype).reshape(self.spec.shape)
            return rows
        return media.decode_pictures(list(self), self.spec)


@dataclass(frozen=True)
class Media:
    """One encoded file, kept as it came. Known by its content, wherever it lies."""

    sha256: str
    size: int
    """Bytes."""
    load: Callable[[], bytes] = field(compare=False, repr=False)
    """Returns the whole file."""

    @classmethod
    def of(cls, data: bytes) -> Media:
        """Media held in memory."""
        return cls(hashlib.sha256(data).hexdigest(), len(data), lambda: data)


@dataclass(frozen=True, eq=False)
class Video:
    """Frames of media files, one timestamp per row."""

    spec: FieldSpec
    """Of a decoded frame: `|u1` (H, W, 3)."""
    media: tuple[Media, ...]
    index: np.ndarray
    """(rows,) int32, position in `media`; -1 where there is no frame (padding)."""
    timestamps: np.ndarray
    """(rows,) float64 seconds within the media file; NaN where there is no frame."""

    def __len__(self) -> int:
        return len(self.index)

    @property
    def dtype(self) -> np.dtype:
        """Of decoded frames."""
        return self.spec.numpy_dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, H, W, 3)."""
        return (len(self), *self.spec.shape)

    @property
    def ndim(self) -> int:
        """Axes of the decoded frames together."""
        return 1 + len(self.spec.shape)

    def __getitem__(self, key: slice) -> Video:
        """Some rows, with the media that they need."""
        index, timestamps = self.index[key], self.timestamps[key]
        used = [int(at) for at in np.unique(index) if at >= 0]
        place = np.full(len(self.media) + 1, -1, np.int32)  # the last entry serves -1
        place[used] = np.arange(len(used))
        return Video(self.spec, tuple(self.media[at] for at in used), place[index], timestamps)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        decoded = self.decode()
        return decoded if dtype is None else decoded.astype(dtype)

    def decode(self) -> np.ndarray:
        """Returns (rows, H, W, 3) uint8; rows without a frame are zeros.

        Raises:
            EpisodeError: with code `unreadable`, if a frame is not there or of another size.
            MissingExtraError: if PyAV is not installed.
        """
        rows = np.zeros(self.shape, np.uint8)
        for at, one in enumerate(self.media):
            wanted = np.flatnonzero(self.index == at)
            order = wanted[np.argsort(self.timestamps[wanted], kind="stable")]
            times = self.timestamps[order]
            frames = media.frames_at(one.load(), times, self.spec.shape, one.sha256[:12])
            for row, pixels in zip(order, frames, strict=True):
                rows[row] = pixels
        return rows


Rows: TypeAlias = np.ndarray | Packed | Video
"""What a field's rows may be."""


def plain(rows: Rows) -> np.ndarray:
    """Returns rows as numbers, decoded if they are encoded."""
    return rows if isinstance(rows, np.ndarray) else rows.decode()


def spec_of(rows: Rows) -> FieldSpec:
    """Returns the spec of rows of any kind."""
    if isinstance(rows, Packed | Video):
        return rows.spec
    return FieldSpec(rows.dtype.newbyteorder("<").str, tuple(rows.shape[1:]))


def join(pieces: Sequence[Rows]) -> Rows:
    """Returns rows of one spec, at least one piece, one after the other."""
    first = pieces[0]
    if isinstance(first, Packed):
        packed = [piece for piece in pieces if isinstance(piece, Packed)]
        before = np.cumsum([0, *(piece.nbytes for piece in packed)])
        moved = [p.offsets[1:] + start for p, start in zip(packed, before, strict=False)]
        offsets = np.concatenate([np.zeros(1, np.int64), *moved])
        return Packed(first.spec, offsets, np.concatenate([piece.data for piece in packed]))
    if isinstance(first, Video):
        videos = [piece for piece in pieces if isinstance(piece, Video)]
        files: dict[Media, int] = {}
        index = []
        for video in videos:
            place = [files.setdefault(one, len(files)) for one in video.media]
            index.append(np.array([*place, -1], np.int32)[video.index])
        timestamps = np.concatenate([video.timestamps for video in videos])
        return Video(first.spec, tuple(files), np.concatenate(index), timestamps)
    return np.concatenate([np.asarray(piece) for piece in pieces])


def pad_row(rows: Rows) -> Rows:
    """Returns rows with one padded row after them: NaN for floats, 0 or nothing otherwise."""
    if isinstance(rows, Packed):
        return Packed(rows.spec, np.append(rows.offsets, rows.offsets[-1]), rows.data)
    if isinstance(rows, Video):
        index, timestamps = np.append(rows.index, np.int32(-1)), np.append(rows.timestamps, np.nan)
        return Video(rows.spec, rows.media, index, timestamps)
    padded = np.empty((len(rows) + 1, *rows.shape[1:]), rows.dtype)
    padded[:-1] = rows
    padded[-1] = np.nan if rows.dtype.kind == "f" else 0
    return padded
