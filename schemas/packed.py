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
from schemas.spec import RAW_KINDS, FieldSpec

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
        """Some rows, with the media that they need in the order of their first frames."""
        index, timestamps = self.index[key], self.timestamps[key]
        found, first = np.unique(index, return_index=True)
        used = [int(at) for at in found[np.argsort(first)] if at >= 0]
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
FindMedia: TypeAlias = Callable[[str], Media]
"""Returns a media file by its SHA-256."""


def plain(rows: Rows) -> np.ndarray:
    """Returns rows as numbers, decoded if they are encoded."""
    return rows if isinstance(rows, np.ndarray) else rows.decode()


def own(rows: Rows) -> Rows:
    """Returns a copy that keeps no larger array alive, and can be written to."""
    if isinstance(rows, Packed):
        return Packed(rows.spec, rows.offsets.copy(), rows.data.copy())
    if isinstance(rows, Video):
        return Video(rows.spec, rows.media, rows.index.copy(), rows.timestamps.copy())
    return rows.copy()


def stored_bytes(rows: Rows) -> int:
    """Returns the bytes that rows take as they are, encoded ones undecoded and without media."""
    if isinstance(rows, Packed):
        return rows.nbytes + rows.offsets.nbytes
    if isinstance(rows, Video):
        return rows.index.nbytes + rows.timestamps.nbytes
    return rows.nbytes


def check(rows: Packed | Video, name: str) -> None:
    """Makes sure that encoded rows are what their spec says, as far as undecoded bytes tell.

    Raises:
        EpisodeError: with code `bad_dtype`, if they are not.
    """
    fault = _video_fault(rows) if isinstance(rows, Video) else _packed_fault(rows)
    if fault:
        raise EpisodeError(f"Expected {name} as {fault}.", code="bad_dtype", where=name)


def _video_fault(rows: Video) -> str:
    spec, index, times = rows.spec, rows.index, rows.timestamps
    if spec.encoding != "video" or spec.dtype != "|u1" or len(spec.shape) != 3:
        return f"video of |u1 (H, W, 3), came {spec}"
    if index.dtype != np.int32 or times.dtype != np.float64 or index.shape != times.shape:
        return f"int32 media and float64 timestamps, came {index.dtype} and {times.dtype}"
    if index.ndim != 1 or (len(index) and not -1 <= index.min() <= index.max() < len(rows.media)):
        return f"frames of {len(rows.media)} media files, came others"
    if not np.isfinite(times[index >= 0]).all():
        return "frames with finite timestamps, came others"
    return ""


def _packed_fault(rows: Packed) -> str:
    spec, offsets, data = rows.spec, rows.offsets, rows.data
    if offsets.dtype != np.int64 or data.dtype != np.uint8 or (offsets.ndim, data.ndim) != (1, 1):
        return f"int64 offsets and uint8 bytes, came {offsets.dtype} and {data.dtype}"
    sizes = np.diff(offsets)
    if not len(offsets) or offsets[0] or offsets[-1] != len(data) or (sizes < 0).any():
        return f"ascending offsets from 0 to {len(data)}, came others"
    if spec.encoding == "frames":
        is_known = spec.dtype in ("|u1", "<u2") and len(spec.shape) in (2, 3)
        return "" if is_known else f"frames of |u1 or <u2 (H, W[, C]), came {spec}"
    if spec.encoding == "text":
        return _text_fault(rows) if spec == TEXT else f"text of {TEXT}, came {spec}"
    if spec.encoding != "ragged" or spec.shape[:1] != (-1,):
        return f"frames, text or ragged (-1, ...), came {spec}"
    if min(spec.shape[1:], default=1) < 1 or spec.numpy_dtype.kind not in RAW_KINDS:
        return f"ragged rows of numbers that vary in their first axis only, came {spec}"
    return "" if not (sizes % spec.row_bytes).any() else f"whole rows of {spec}, came broken ones"


def _text_fault(rows: Packed) -> str:
    inner = rows.offsets[(rows.offsets > 0) & (rows.offsets < len(rows.data))]
    try:
        rows.data.tobytes().decode()
    except UnicodeDecodeError:
        return "UTF-8 text, came other bytes"
    is_split = (rows.data[inner] & 0xC0 == 0x80).any()  # a row that starts within a character
    return "UTF-8 text, came characters cut in two" if is_split else ""


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
