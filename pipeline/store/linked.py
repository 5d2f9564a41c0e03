"""Linked blocks: rows that stay in the files they came from, read there, and held against digests.

The store knows no connectors. Where a linked block is read, and only there, it asks for them by
name (`CONNECTORS`): a module that lists the files of a source and reads a unit of it once more.

What counts is content. Every time a unit is read, each episode must have the digest it had when it
was linked; decoded rows are then kept, within bounds, for as long as the source's files look as
they did (size and time of writing). A file that was touched, or that grew, and still holds the same
episodes is no error; one that is gone, or holds others, is a `LinkedSourceChangedError`.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Protocol, cast

import numpy as np

from pipeline.store.blocks import pick_fields
from schemas.arrow import layout_from_json
from schemas.episode import Episode
from schemas.errors import EpisodeError, LinkedSourceChangedError, NotFoundError, SourceError
from schemas.identity import digest
from schemas.link import Link, LinkedUnit, SourceFile, SourceFiles
from schemas.packed import Media, Packed, Rows, Video, join, own, stored_bytes
from schemas.rows import RowLayout, to_rows
from schemas.spec import FieldSpec

CONNECTORS = "connectors.linked"
KEEP_BYTES = 512 << 20
"""Decoded rows that a process keeps; one block is kept whatever its size."""
MANY_FILES = 100
LOOK_SHARE = 20
"""A look at a source of more files holds for so many times as long as it took."""


class Connectors(Protocol):
    """What is asked of connectors."""

    def files_of(self, where: str) -> tuple[SourceFile, ...]:
        """Returns the files of a source as they are now; none if nothing is there."""
        ...

    def episodes(self, unit: LinkedUnit) -> Iterator[tuple[str, Episode]]:
        """Yields the healthy episodes of a unit and what the connector calls each of them."""
        ...

    def look_first(self, unit: LinkedUnit) -> None:
        """Makes sure that a source which has changed does not make its library hang."""
        ...


def layout_of(link: Link) -> RowLayout:
    """Returns what the rows of a linked block hold."""
    return layout_from_json(link.layout)


def read_rows(
    place: str, link: Link, sources: SourceFiles, names: Sequence[str] | None, rows: slice
) -> dict[str, Rows]:
    """Returns fields of some rows of a linked block, flags included, (rows, *shape) each.

    Args:
        place: key of the link, which tells what is kept of it.
        link: what it says.
        sources: the source's files as they were.
        names: full field names; None takes all.
        rows: which rows.

    Raises:
        LinkedSourceChangedError: if the source does not hold these episodes any more.
    """
    fields = pick_fields(layout_of(link), names)
    whole = _KEPT.rows_of(place, link, sources)
    # Copies: what is kept must stay as it is.
    return {name: own(whole[name][rows]) for name in fields}


def forget() -> None:
    """Drops all that this process keeps of linked sources: what follows is looked at anew."""
    _KEPT.clear()
    _LOOKS.clear()


# -- what is kept --------------------------------------------------------------------------------


@dataclass
class _Looks:
    """The last looks at sources' files."""

    _last: dict[str, tuple[float, tuple[SourceFile, ...]]] = field(default_factory=dict)

    def at(self, where: str) -> tuple[SourceFile, ...]:
        until, files = self._last.get(where, (0.0, ()))
        began = time.monotonic()
        if began >= until:
            files = _connectors().files_of(where)
            now = time.monotonic()
            holds = LOOK_SHARE * (now - began) if len(files) > MANY_FILES else 0.0
            self._last[where] = (now + holds, files)
        return files

    def clear(self) -> None:
        self._last.clear()


@dataclass
class _Kept:
    """Decoded blocks, those asked for last."""

    _lock: threading.Lock = field(default_factory=threading.Lock)
    _blocks: OrderedDict[str, tuple[tuple[SourceFile, ...], int, Mapping[str, Rows]]] = field(
        default_factory=OrderedDict
    )

    def rows_of(self, place: str, link: Link, sources: SourceFiles) -> Mapping[str, Rows]:
        with self._lock:  # one decodes at a time: memory holds one more block, not one per thread
            now = _LOOKS.at(sources.where)
            if place in self._blocks and self._blocks[place][0] == now:
                self._blocks.move_to_end(place)
                return self._blocks[place][2]
            self._blocks.pop(place, None)
            rows = _decode(link, sources, now)
            self._blocks[place] = (now, sum(map(stored_bytes, rows.values())), rows)
            while len(self._blocks) > 1 and self._size() > KEEP_BYTES:
                self._blocks.popitem(last=False)
            return rows

    def _size(self) -> int:
        return sum(size for _, size, _ in self._blocks.values())

    def clear(self) -> None:
        with self._lock:
            self._blocks.clear()


_LOOKS = _Looks()
_KEPT = _Kept()


# -- reading -------------------------------------------------------------------------------------


def _connectors() -> Connectors:
    return cast(Connectors, import_module(CONNECTORS))


def _decode(link: Link, sources: SourceFiles, now: tuple[SourceFile, ...]) -> Mapping[str, Rows]:
    """Reads a block where its rows are.

    Raises:
        LinkedSourceChangedError: if the source does not hold these episodes any more.
    """
    layout = layout_of(link)
    wanted = {key: at for at, key in enumerate(link.keys) if key is not None}
    found: dict[int, dict[str, Rows]] = {}
    came = _redirected(sources, now) if wanted else None
    if came is not None or (wanted and not now):
        raise _changed(sources, now, came)
    try:
        if wanted and now != sources.files:
            _connectors().look_first(link.unit)
        for key, episode in _connectors().episodes(link.unit) if wanted else ():
            at = wanted.get(key)
            if at is None:
                continue
            if digest(episode) != link.digests[at]:
                raise _changed(sources, now, f"other content in {key}")
            found[at] = to_rows(episode)
    except (SourceError, EpisodeError, NotFoundError, OSError) as error:
        raise _changed(sources, now, str(error)) from error
    lost = next((key for key, at in wanted.items() if at not in found), None)
    if lost is not None:
        raise _changed(sources, now, f"no {lost}")
    pieces = [
        found[at] if at in found else _padding(layout, length + 1)
        for at, length in enumerate(link.lengths)
    ]
    rows = {name: join([piece[name] for piece in pieces]) for name in layout.fields}
    return {name: _watched(one, sources) for name, one in rows.items()}


def _padding(layout: RowLayout, count: int) -> dict[str, Rows]:
    return {name: _pad_rows(spec, count) for name, spec in layout.fields.items()}


def _pad_rows(spec: FieldSpec, count: int) -> Rows:
    if spec.encoding == "video":
        return Video(spec, (), np.full(count, -1, np.int32), np.full(count, np.nan))
    if spec.encoding != "raw":
        return Packed.of(spec, [b""] * count)
    fill = np.nan if spec.numpy_dtype.kind == "f" else 0
    return np.full((count, *spec.shape), fill, spec.numpy_dtype)


def _watched(rows: Rows, sources: SourceFiles) -> Rows:
    """Lets the media files of a video speak of links where they have changed."""
    if not isinstance(rows, Video):
        return rows
    media = tuple(Media(m.sha256, m.size, _Load(m.load, sources)) for m in rows.media)
    return Video(rows.spec, media, rows.index, rows.timestamps)


@dataclass(frozen=True)
class _Load:
    """Reads a media file of a linked source."""

    load: Callable[[], bytes]
    sources: SourceFiles

    def __call__(self) -> bytes:
        try:
            return self.load()
        except (SourceError, OSError) as error:
            now = _connectors().files_of(self.sources.where)
            raise _changed(self.sources, now, str(error)) from error


# -- what changed --------------------------------------------------------------------------------


def _redirected(sources: SourceFiles, now: tuple[SourceFile, ...]) -> str | None:
    """Names a file that a link stands in for now: nothing that data put there is followed."""
    was = {file.name: file for file in sources.files}
    for file in now:
        if file.is_link and file.name in was and not was[file.name].is_link:
            return f"a symbolic link ({_path(sources, file.name)})"
    return None


def _changed(
    sources: SourceFiles, now: tuple[SourceFile, ...], came: str | None
) -> LinkedSourceChangedError:
    name, difference = _first_difference(sources, now)
    path = _path(sources, name)
    said = "; ".join(text for text in (difference, came) if text) or "other content"
    return LinkedSourceChangedError(
        f"Expected {path} as it was when its episodes were linked, came {said}; put it back as it "
        f"was, or remove its episodes and ingest it again.",
        where=path,
    )


def _first_difference(sources: SourceFiles, now: tuple[SourceFile, ...]) -> tuple[str, str]:
    """Returns the name of the first file that is not what it was, and what it is now."""
    there = {file.name: file for file in now}
    for file in sources.files:
        if file.name not in there:
            return file.name, "no file"
    for file in sources.files:
        other = there[file.name]
        if other.is_link != file.is_link:
            return file.name, "a symbolic link" if other.is_link else "a file in place of a link"
        if other.bytes != file.bytes:
            return file.name, f"{other.bytes:,} bytes in place of {file.bytes:,}"
    for file in sources.files:
        if there[file.name].stamp != file.stamp:
            return file.name, "a file written since"
    return "", ""


def _path(sources: SourceFiles, name: str) -> str:
    return f"{sources.where.rstrip('/')}/{name}" if name else sources.where
