"""Erasures: episodes that are gone for ever from every version, and what replaced their files.

`refs/erasures/` holds dense, exclusively created documents. Each names episodes by the 64-bit hash
of their ids, and says which files were rewritten without their bytes. Readers subtract the episodes
from every version at once; a version's documents never change, so the rewritten files stand in for
those they name.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from pipeline.store import layout
from pipeline.store.objects import Objects
from schemas.document import DataFile
from schemas.errors import DamagedStoreError


class Erasures:
    """What has been erased from one store so far."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self.count = 0
        """Documents read so far."""
        self.hashes: set[int] = set()
        """Of the ids of erased episodes."""
        self.rewrites: dict[str, DataFile] = {}
        """Key of a rewritten file to the file that stands in for it."""
        self.dropped: set[str] = set()
        """Keys of media files that only erased episodes used."""

    def refresh(self) -> Erasures:
        """Reads what is new; documents are dense and never removed."""
        while True:
            key = layout.erasure(self.count + 1)
            try:
                data = self._objects.read(key)
            except FileNotFoundError:
                return self
            try:
                document = json.loads(data)
                hashes = {int(value, 16) for value in document["id_hashes"]}
                rewrites = {
                    name: DataFile.model_validate(file)
                    for name, file in document.get("rewrites", {}).items()
                }
                dropped = set(map(str, document.get("dropped", [])))
            except (ValueError, KeyError, TypeError):
                raise DamagedStoreError(
                    "Expected a list of erased episodes, came something else.", where=key
                ) from None
            self.hashes |= hashes
            self.rewrites.update(rewrites)
            self.dropped |= dropped
            self.count += 1

    def resolve(self, file: DataFile) -> DataFile:
        """Returns the file that stands in for another, or that file itself."""
        while file.key in self.rewrites:
            file = self.rewrites[file.key]
        return file

    def add(
        self, hashes: set[int], rewrites: Mapping[str, DataFile], dropped: Iterable[str] = ()
    ) -> None:
        """Writes one more document; racing writers each get a number of their own."""
        document = {
            "id_hashes": sorted(f"{value:016x}" for value in hashes),
            "rewrites": {name: file.model_dump() for name, file in rewrites.items()},
            "dropped": sorted(dropped),
        }
        data = json.dumps(document).encode()
        while not self._objects.put_if_absent(layout.erasure(self.refresh().count + 1), data):
            pass
        self.refresh()
