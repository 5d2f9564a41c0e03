"""Media files: videos as they came, each stored once under the SHA-256 of its bytes.

Blocks refer to them, and several blocks may share one. A file that is about to be collected, or
whose content was erased, is never referred to again: the same bytes then get a key of their own,
`media/<sha256>-<id>`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pipeline.store import layout
from pipeline.store.blocks import data_file
from pipeline.store.erasures import Erasures
from pipeline.store.marks import Marks
from pipeline.store.objects import Objects
from schemas.document import DataFile
from schemas.errors import DamagedStoreError, SourceError
from schemas.packed import FindMedia, Media, Rows, Video


def media_of(rows: Iterable[Rows]) -> dict[str, Media]:
    """Returns all media files that some fields' rows name, by SHA-256."""
    videos = (one for one in rows if isinstance(one, Video))
    return {media.sha256: media for video in videos for media in video.media}


class MediaWriter:
    """Writes media files of one job, each once."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._written: dict[str, DataFile] = {}
        self._barred: frozenset[str] | None = None

    def put(self, media: Media) -> DataFile:
        """Returns the record of a media file that is durably in the store.

        Raises:
            SourceError: if the file is not what it was when its episode was read.
        """
        known = self._written.get(media.sha256)
        if known is None:
            known = self._written[media.sha256] = self._write(media)
        return known

    def _write(self, media: Media) -> DataFile:
        data = media.load()
        came = hashlib.sha256(data).hexdigest()
        if came != media.sha256:
            raise SourceError(
                f"Expected the media file {media.sha256[:12]}, came {came[:12]}: it has changed "
                f"since it was listed; run it again."
            )
        key = layout.media(came)
        if self._is_barred(key) or not self._create(key, data):
            key = layout.media(came, layout.new_id())
            self._objects.put({key: data})
        return data_file(key, data)

    def _create(self, key: str, data: bytes) -> bool:
        """True if the key holds the bytes now; False if it holds others: it is damaged."""
        if not self._objects.exists(key) and self._objects.put_if_absent(key, data):
            return True
        self._objects.settle(key)  # its maker may not be done with it
        return self._objects.read(key) == data

    def _is_barred(self, key: str) -> bool:
        if self._barred is None:
            marked = (mark.files for mark in Marks(self._objects).all())
            dropped = Erasures(self._objects).refresh().dropped
            self._barred = frozenset(dropped).union(*marked)
        return key in self._barred


@dataclass(frozen=True)
class _Load:
    """Reads a media file of a store, and makes sure that it is what its name says."""

    read: Callable[[DataFile], bytes]
    file: DataFile

    def __call__(self) -> bytes:
        data = self.read(self.file)
        if hashlib.sha256(data).hexdigest() != layout.sha256_of(self.file.key):
            raise DamagedStoreError(
                "Expected a media file named by its content, came other content; restore it from "
                "a copy.",
                where=self.file.key,
            )
        return data


def finder(read: Callable[[DataFile], bytes], files: Iterable[DataFile]) -> FindMedia:
    """Returns what finds a block's media files by their SHA-256.

    Args:
        read: returns a verified file of the store.
        files: the block's media files.
    """
    known = {layout.sha256_of(file.key): file for file in files}

    def find(sha256: str) -> Media:
        file = known.get(sha256)
        if file is None:
            raise DamagedStoreError(
                f"Expected the media file {sha256[:12]} to be listed with its block, came "
                f"{len(known)} others."
            )
        return Media(sha256, file.bytes, _Load(read, file))

    return find
