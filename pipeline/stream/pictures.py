"""Pictures and videos that stay encoded until a batch needs them.

A decoded picture is ten to a hundred times as large as its file, so where pictures fill memory or
disk, rows are kept encoded and each is decoded where it is gathered, once per gather however often
it occurs there. Decoding is a function of the bytes alone: any number of threads makes the same.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np

from pipeline.stream.record import RecordLayout
from schemas.packed import Packed, Rows, Video, plain
from schemas.spec import FieldSpec

AT_ONCE = 16
"""Pictures that a thread decodes before it takes the next ones."""


@dataclass(frozen=True)
class Pictures:
    """Encoded fields of one block."""

    fields: Mapping[str, Rows] = field(default_factory=dict)
    """By full name; those that the block lacks are absent."""
    shown: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """(rows,) int64, which row stands for each: the one before, where an observation is missing."""


def is_picture(field: FieldSpec) -> bool:
    """True for fields whose rows are encoded pictures or frames of videos."""
    return field.encoding in ("frames", "video")


def kept_encoded(rows: Mapping[str, Rows], names: Iterable[str]) -> Pictures:
    """Returns some fields of a block as they are, media files read once at most.

    Args:
        rows: of the block, the flag `observation_valid` among them.
        names: of the fields.
    """
    seen = np.asarray(rows["observation_valid"])
    shown = np.arange(len(seen)) - ~seen
    fields = {name: _read_once(rows[name]) for name in names if name in rows}
    return Pictures(fields, np.maximum(shown, 0))


def decode_into(
    layout: RecordLayout,
    records: np.ndarray,
    owner: np.ndarray,
    rows: np.ndarray,
    pictures: Mapping[int, Pictures],
    names: Iterable[str],
) -> None:
    """Decodes what is encoded of some gathered records to its place in them.

    Args:
        layout: the record.
        records: (n, words) int32, C-contiguous.
        owner: (n,) int64, the block of each.
        rows: (n,) int64, its row within that block.
        pictures: what is encoded, by block.
        names: of the fields.
    """
    tasks, repeats = [], []
    for block, held in pictures.items():
        mine = np.flatnonzero(owner == block)
        for name in names:
            encoded = held.fields.get(name)
            if encoded is None:
                layout.view(records[:, None], name)[mine] = 0
                continue
            is_seen = name.split("/", 1)[0] == "observations"
            asked = held.shown[rows[mine]] if is_seen else rows[mine]
            once, first, which = np.unique(asked, return_index=True, return_inverse=True)
            target = layout.view(records[:, None], name)
            step = len(once) if isinstance(encoded, Video) else AT_ONCE
            for at in range(0, len(once), max(step, 1)):
                part = slice(at, at + step)
                tasks.append((target, mine[first[part]], encoded, once[part]))
            again = np.setdiff1d(np.arange(len(mine)), first)
            repeats.append((target, mine[again], mine[first[which[again]]]))
    for _ in _threads(os.getpid()).map(_decode, *zip(*tasks, strict=True)) if tasks else ():
        pass
    for target, again, source in repeats:
        target[again] = target[source]


def _decode(target: np.ndarray, places: np.ndarray, encoded: Rows, rows: np.ndarray) -> None:
    target[places] = plain(_some(encoded, rows))


def _some(encoded: Rows, rows: np.ndarray) -> Rows:
    if isinstance(encoded, Packed):
        return Packed.of(encoded.spec, [encoded[int(row)] for row in rows])
    if isinstance(encoded, Video):
        index, times = encoded.index[rows], encoded.timestamps[rows]
        return Video(encoded.spec, encoded.media, index, times)
    found: np.ndarray = encoded[rows]
    return found


def _read_once(rows: Rows) -> Rows:
    if not isinstance(rows, Video):
        return rows
    media = tuple(replace(one, load=functools.cache(one.load)) for one in rows.media)
    return replace(rows, media=media)


@functools.cache
def _threads(process: int) -> ThreadPoolExecutor:
    """The threads of a process that decode; a fork has none of its parent's."""
    return ThreadPoolExecutor(len(os.sched_getaffinity(0)), f"penstock-decode-{process}")
