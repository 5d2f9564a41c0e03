"""How one T+1 row lies in the cache: an aligned record of all fields and flags.

Fields stand side by side, widest items first so that each is aligned, and a record is padded to
whole cache lines. A batch is then one gather of records, however many fields it has, and every
field is a view into what was gathered.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import operator
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property

import numpy as np

from schemas.errors import UsageError
from schemas.packed import Rows, Video, plain
from schemas.spec import FieldSpec, is_nullable

LINE = 64  # bytes of a cache line
WORD = np.dtype(np.int32)  # what records are gathered as
PIECE_BYTES = 64 << 20
"""Records that are packed at a time: a block of videos is far larger once it is decoded."""

FLAGS = ("terminated", "truncated", "has_actions", "has_rewards")
"""Stored with each record; the last two tell absent actions and rewards from padded ones."""


@dataclass(frozen=True)
class RecordField:
    """One field within a record."""

    name: str
    dtype: str
    """As it is in the cache."""
    shape: tuple[int, ...]
    offset: int
    """Bytes from the start of the record."""
    source_dtype: str
    """As it is in the store."""

    @cached_property
    def strides(self) -> tuple[int, ...]:
        """Bytes between neighbours along each axis of the field."""
        sizes = itertools.accumulate(
            self.shape[:0:-1], operator.mul, initial=np.dtype(self.dtype).itemsize
        )
        return tuple(sizes)[::-1][: len(self.shape)]


@dataclass(frozen=True)
class RecordLayout:
    """All fields of a record, in the order they lie."""

    fields: tuple[RecordField, ...]
    size: int
    """Bytes of a record, a multiple of a cache line."""

    @property
    def words(self) -> int:
        """Words of a record."""
        return self.size // WORD.itemsize

    @property
    def key(self) -> str:
        """Equal for equal layouts; names the cache file."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @cached_property
    def by_name(self) -> dict[str, RecordField]:
        """The fields by full name."""
        return {field.name: field for field in self.fields}

    @cached_property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """Full names of the fields of each group, such as `observations`."""
        found: dict[str, tuple[str, ...]] = {}
        for name in self.by_name:
            root = name.split("/", 1)[0]
            found[root] = (*found.get(root, ()), name)
        return found

    def names(self, root: str) -> tuple[str, ...]:
        """Full names of the fields of one group."""
        return self.groups.get(root, ())

    def view(self, records: np.ndarray, name: str, ahead: int = 0) -> np.ndarray:
        """Returns one field of gathered records without a copy.

        Args:
            records: (..., span, words) int32, C-contiguous: spans of neighbouring records.
            name: full field name.
            ahead: which record of each span.

        Returns:
            (..., *shape) of the field's dtype.
        """
        field = self.by_name[name]
        shape = (*records.shape[:-2], *field.shape)
        if 0 in shape:
            return np.empty(shape, field.dtype)
        return np.ndarray(
            shape,
            field.dtype,
            buffer=records,
            offset=ahead * self.size + field.offset,
            strides=(*records.strides[:-2], *field.strides),
        )

    def slots(self, records: np.ndarray, name: str) -> np.ndarray:
        """Returns one field of each record of gathered spans without a copy.

        Args:
            records: (..., span, words) int32, C-contiguous.
            name: full field name.

        Returns:
            (..., span, *shape) of the field's dtype.
        """
        return self.view(records[..., None, :], name)


def plan_record(fields: Mapping[str, FieldSpec], dtype: str) -> RecordLayout:
    """Returns the record that holds some fields.

    Args:
        fields: specs by full name.
        dtype: what floating-point fields are cast to, or `keep`.

    Raises:
        UsageError: for a field whose rows differ in size: texts, ragged rows.
    """
    flags = dict.fromkeys(FLAGS, FieldSpec("|b1", ()))
    stored: list[tuple[str, np.dtype, FieldSpec]] = []
    for name, field in {**fields, **flags}.items():
        if not field.is_regular:
            raise UsageError(
                f"Expected fields whose rows are numbers of one size, came {name!r} as {field}; "
                f"leave it out of fields=."
            )
        cast = dtype != "keep" and field.numpy_dtype.kind == "f"
        stored.append((name, np.dtype(dtype) if cast else field.numpy_dtype, field))
    stored.sort(key=lambda entry: -entry[1].itemsize)  # stable: names keep their order within
    placed, offset = [], 0
    for name, kept, field in stored:
        placed.append(RecordField(name, kept.str, field.shape, offset, field.dtype))
        offset += kept.itemsize * int(np.prod(field.shape, dtype=np.int64))
    return RecordLayout(tuple(placed), -(-offset // LINE) * LINE)


def with_more(record: RecordLayout, fields: Mapping[str, FieldSpec]) -> RecordLayout:
    """Returns a record that goes on with more fields where another ends, none of them cast."""
    more = plan_record(fields, "keep")
    moved = [replace(one, offset=record.size + one.offset) for one in more.fields]
    new = tuple(one for one in moved if one.name not in FLAGS)
    return RecordLayout(record.fields + new, record.size + more.size)


def pack_pieces(layout: RecordLayout, rows: Mapping[str, Rows]) -> Iterator[np.ndarray]:
    """Yields a block's rows as records in pieces, (n, words) int32; decoded as they come.

    Args:
        layout: the record.
        rows: as for `pack`, pictures and videos still encoded.

    Raises:
        UsageError: if a value does not fit the dtype it is cast to.
        EpisodeError: if a picture or a frame does not decode.
    """
    for start, piece in _pieces(rows, max(1, PIECE_BYTES // layout.size), before=1):
        yield pack(layout, piece)[min(start, 1) :]  # a row may repeat the one before it


def pack_into(
    layout: RecordLayout, rows: Mapping[str, Rows], records: np.ndarray, piece: int
) -> None:
    """Writes a block's rows as records where they are to lie; otherwise as `pack_pieces`.

    Args:
        layout: the record.
        rows: as for `pack_pieces`.
        records: (rows, words) int32, C-contiguous; what lies between fields stays as it is.
        piece: bytes of records that are decoded at a time.
    """
    for start, part in _pieces(rows, max(1, piece // layout.size), before=0):
        target = records[start : start + len(part["terminated"])]
        _write_fields(layout, part, target[:, None])
    _repeat_lost(layout, rows["observation_valid"], records[:, None])


def _pieces(
    rows: Mapping[str, Rows], step: int, before: int
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Yields some rows at a time, decoded, each piece with some that lie before it."""
    held = {name: _held(values) for name, values in rows.items()}
    for start in range(0, max(len(rows["terminated"]), 1), step):
        part = slice(max(start - before, 0), start + step)
        yield start, {name: plain(values[part]) for name, values in held.items()}


def _held(rows: Rows) -> Rows:
    """Returns rows of video that keep the last media file for the next piece; others as is."""
    if not isinstance(rows, Video):
        return rows
    files = {media.sha256: media for media in rows.media}
    load = functools.lru_cache(maxsize=1)(lambda sha256: files[sha256].load())
    media = (replace(one, load=functools.partial(load, one.sha256)) for one in rows.media)
    return replace(rows, media=tuple(media))


def pack(layout: RecordLayout, rows: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns a block's rows as records, (rows, words) int32.

    Where the final observation is missing, its row repeats the one before: only a terminated
    step has it as next observation, nothing reads it there, and no NaN may reach a network.

    Args:
        layout: the record.
        rows: (rows, ...) arrays by name with the flags of the T+1-row layout; actions and rewards
            may be absent.

    Raises:
        UsageError: if a value does not fit the dtype it is cast to.
    """
    records = np.zeros((len(rows["terminated"]), 1, layout.words), WORD)
    _write_fields(layout, rows, records)
    _repeat_lost(layout, rows["observation_valid"], records)
    return records[:, 0]


def _write_fields(
    layout: RecordLayout, rows: Mapping[str, np.ndarray], records: np.ndarray
) -> None:
    """Writes every field of some rows, (rows, 1, words); where one is absent, NaN or 0."""
    for field in layout.fields:
        target = layout.view(records, field.name)
        if field.name in FLAGS:
            target[...] = _flag(field.name, rows)
        elif field.name in rows:
            _cast(target, rows[field.name], field)
        else:
            has_nan = target.dtype.kind == "f" and is_nullable(field.name)
            target[...] = np.nan if has_nan else 0


def _repeat_lost(layout: RecordLayout, seen: Rows, records: np.ndarray) -> None:
    """Puts the observation before in the place of one that is missing."""
    lost = np.flatnonzero(~np.asarray(seen))
    if not len(lost):
        return
    for name in layout.names("observations"):
        target = layout.view(records, name)
        target[lost] = target[np.maximum(lost - 1, 0)]


def _flag(name: str, rows: Mapping[str, np.ndarray]) -> np.ndarray | bool:
    if name.startswith("has_"):
        root = name.removeprefix("has_")
        return any(field.split("/", 1)[0] == root for field in rows)
    return rows[name]


def _cast(target: np.ndarray, values: np.ndarray, field: RecordField) -> None:
    try:
        with np.errstate(over="raise", under="ignore", invalid="ignore"):
            target[...] = values
    except FloatingPointError:
        raise UsageError(
            f"Expected values of {field.name!r} within {target.dtype}, came larger ones; "
            f"stream with dtype='float64' or dtype='keep'."
        ) from None
