"""Marks: the names of files that are about to be deleted, or have been.

While a mark stands, no commit and no tag may refer to a file it names: the sweep that follows could
delete the file at any moment after its own last look.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.store import layout
from pipeline.store.files import unit_of
from pipeline.store.objects import Objects
from schemas.document import DataFile
from schemas.errors import DamagedStoreError, FilesExpiredError


@dataclass(frozen=True)
class Mark:
    """One list of doomed files."""

    key: str
    marked_at: dt.datetime
    files: frozenset[str]
    units: frozenset[str]


class Marks:
    """The marks of one store; each is read once, for it never changes."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._read: dict[str, Mark] = {}

    def all(self) -> list[Mark]:
        """Returns the marks that stand."""
        names = sorted(self._objects.names(layout.MARKS))
        found = {}
        for name in names:
            mark = self._read.get(name) or self._parse(f"{layout.MARKS}/{name}")
            if mark is not None:
                found[name] = mark
        self._read = found
        return list(found.values())

    def refuse(self, files: Iterable[DataFile], what: str) -> None:
        """Makes sure that none of some files is about to be deleted.

        Raises:
            FilesExpiredError: if one is.
        """
        marks = self.all()
        if not marks:
            return
        doomed = frozenset[str]().union(*(mark.units for mark in marks))
        for file in files:
            if unit_of(file.key) in doomed:
                raise FilesExpiredError(
                    f"Expected {what} to refer to kept files only, came one that is marked for "
                    f"deletion; run the job again, under a lease if it takes long.",
                    where=file.key,
                )

    def _parse(self, key: str) -> Mark | None:
        try:
            document = json.loads(self._objects.read(key))
            files = frozenset(map(str, document["files"]))
            marked_at = dt.datetime.fromisoformat(document["marked_at"])
        except FileNotFoundError:
            return None  # pruned meanwhile
        except (ValueError, KeyError, TypeError):
            raise DamagedStoreError("Expected a mark, came something else.", where=key) from None
        return Mark(key, marked_at, files, frozenset(unit_of(name) for name in files))
