"""Sources that stay where they are: their files as they stand, and their units read once more.

`pipeline.store.linked` reads linked blocks through this module, and through nothing else here.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from connectors import places, registry, urls
from connectors.base import Unit
from schemas.episode import Episode
from schemas.errors import NotFoundError, SourceError
from schemas.link import LinkedUnit, SourceFile

MOST_FILES = 100_000


def placed(unit: Unit) -> LinkedUnit:
    """Returns a unit as any process can read it: a path in full, a URL whatever its state."""
    return LinkedUnit(
        format=unit.format,
        where=in_full(unit.where),
        start=unit.start,
        stop=unit.stop,
        steps=unit.steps,
        options={n: value for n, value in unit.options.items() if n != places.URL_STATE},
    )


def in_full(where: str) -> str:
    """Returns a local path as an absolute one, its links kept, and a URL as it is."""
    path = urls.local_path(where)
    return path if urls.is_url(path) else os.path.abspath(path)  # noqa: PTH100 - keeps links


def is_remote(where: str) -> bool:
    """True for what is copied here before it is read."""
    return urls.is_url(urls.local_path(where))


def files_of(where: str) -> tuple[SourceFile, ...]:
    """Returns the files of a source as they are now; none if nothing is there.

    Links within a source are listed as such, never followed.

    Raises:
        SourceError: if there are too many.
    """
    if is_remote(where):
        try:
            found = urls.remote_files(where)
        except NotFoundError:
            return ()
        return tuple(SourceFile(name=f.name, bytes=f.size, stamp=f.stamp) for f in found)
    root = Path(where)
    if root.is_dir():
        return tuple(sorted(_below(root), key=lambda file: file.name))
    if not root.is_file():
        return ()
    # What the user named himself may be a link.
    return (_file("", root.stat(), is_link=root.is_symlink()),)


def episodes(unit: LinkedUnit) -> Iterator[tuple[str, Episode]]:
    """Yields the healthy episodes of a unit and what the connector calls each of them.

    Raises:
        SourceError: if the source cannot be trusted whole, or is no data but something to run.
    """
    refuse_live(unit.format)
    wanted = Unit(unit.format, unit.where, unit.start, unit.stop, unit.steps, unit.options)
    for found in registry.source(unit.format).read(wanted):
        if found.episode is not None:
            yield found.key, found.episode


def refuse_live(format: str) -> None:
    """Makes sure that a format is of files: whoever reads a store must not run what it names.

    Raises:
        SourceError: if it is not.
    """
    row = registry.FORMATS.get(format)
    if row is not None and row.is_live:
        raise SourceError(
            f"Expected a format of files to link to, came {format}: it is made as it is read, so "
            f"it must be copied; leave out --link.",
            where=format,
        )


def look_first(unit: LinkedUnit) -> None:
    """Makes sure that a source which has changed does not make its library hang.

    Raises:
        SourceError: if it does.
    """
    refuse_live(unit.format)
    registry.identify(unit.where, unit.format)


def _below(root: Path) -> Iterator[SourceFile]:
    count = 0
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            try:
                status = path.lstat()
            except FileNotFoundError:
                continue
            if not stat.S_ISREG(status.st_mode) and not stat.S_ISLNK(status.st_mode):
                continue
            count += 1
            if count > MOST_FILES:
                raise SourceError(
                    f"Expected at most {MOST_FILES:,} files at {root}, came more; link its parts.",
                    where=str(root),
                )
            is_link = stat.S_ISLNK(status.st_mode)
            yield _file(path.relative_to(root).as_posix(), status, is_link=is_link)


def _file(name: str, status: os.stat_result, *, is_link: bool) -> SourceFile:
    return SourceFile(
        name=name, bytes=status.st_size, stamp=str(status.st_mtime_ns), is_link=is_link
    )
