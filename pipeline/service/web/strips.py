"""Rows of thumbnails of an episode's cameras, kept for a moment between a page and its pictures.

The page decodes them, so that it can say what is wrong; the browser then fetches each by name.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

from schemas.episode import Episode
from schemas.errors import PenstockError
from schemas.thumbnails import cameras, png, strip

FRAMES = 8
"""Thumbnails in a row."""
CAMERAS = 4
"""Rows of an episode."""
MAX_BYTES = 32 << 20
"""Of all rows that are kept."""


@dataclass(frozen=True)
class Strip:
    """One camera's row, or what is wrong with it."""

    field: str
    steps: tuple[int, ...] = ()
    problem: PenstockError | None = None
    width: int = 0
    height: int = 0


class Strips:
    """PNG files by version, episode and field; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, str, str], bytes] = OrderedDict()
        self._bytes = 0

    def make(self, version_id: str, episode: Episode) -> list[Strip]:
        """Returns the rows of an episode, and keeps their pictures."""
        found = []
        for name, rows in list(cameras(episode).items())[:CAMERAS]:
            try:
                steps, pixels = strip(rows, FRAMES)
            except PenstockError as error:
                found.append(Strip(name, problem=error))
                continue
            if pixels is not None:
                self._keep((version_id, episode.episode_id, name), png(pixels))
                height, width = pixels.shape[:2]
                found.append(Strip(name, tuple(steps), None, width, height))
        return found

    def find(self, version_id: str, episode_id: str, field: str) -> bytes | None:
        """Returns a picture that is still kept."""
        with self._lock:
            return self._kept.get((version_id, episode_id, field))

    def _keep(self, key: tuple[str, str, str], data: bytes) -> None:
        with self._lock:
            self._bytes += len(data) - len(self._kept.pop(key, b""))
            self._kept[key] = data
            while self._bytes > MAX_BYTES:
                self._bytes -= len(self._kept.popitem(last=False)[1])
