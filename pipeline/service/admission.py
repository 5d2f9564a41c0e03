"""Whether there is room for a put: on the disk, and between what comes in and what is sealed.

A put that begins an episode is refused at the mark; one that goes on with an episode only at twice
the mark, for what has begun must be able to end, or nothing could ever be sealed.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from schemas.errors import BusyError, DiskFullError

LOOK_SECONDS = 0.5
"""How long a look at the disk holds good."""


@dataclass(frozen=True)
class Marks:
    """What is held back."""

    max_unsealed_bytes: int
    disk_reserve_bytes: int
    retry_after: float
    """Seconds after which room may have been made."""


class Admission:
    """Says no, with a reason, while there is no room."""

    def __init__(self, folder: Path, marks: Marks) -> None:
        self._folder = folder
        self._marks = marks
        self._looked = -LOOK_SECONDS
        self._free = 0
        self.refusals = 0
        """How often `admit` found no room on the disk."""

    def free_bytes(self) -> int:
        """Returns the room on the log's disk, as it was a moment ago."""
        now = time.monotonic()
        if now - self._looked >= LOOK_SECONDS:
            self._free = shutil.disk_usage(self._folder).free
            self._looked = now
        return self._free

    def admit(self, unsealed_bytes: int, *, is_begun: bool = False) -> None:
        """Makes sure that there is room for a put that came; see `check`."""
        try:
            self.check(unsealed_bytes, is_begun=is_begun)
        except DiskFullError:
            self.refusals += 1
            raise

    def check(self, unsealed_bytes: int, *, is_begun: bool = False) -> None:
        """Makes sure that there is room.

        Args:
            unsealed_bytes: what the log holds that the store does not.
            is_begun: for an episode that has begun.

        Raises:
            DiskFullError: if the disk's reserve would be used up.
            BusyError: if too much waits to be sealed.
        """
        free = self.free_bytes()
        if free < self._marks.disk_reserve_bytes:
            raise DiskFullError(
                f"Expected {self._marks.disk_reserve_bytes:,} free bytes on the log's disk, came "
                f"{free:,}; free some space, puts are taken again then.",
                where=str(self._folder),
            )
        most = self._marks.max_unsealed_bytes * (2 if is_begun else 1)
        if unsealed_bytes > most:
            raise BusyError(
                f"Expected at most {most:,} bytes that are not sealed, came {unsealed_bytes:,}; "
                f"try again when some are in the store.",
                retry_after=self._marks.retry_after,
                where=str(self._folder),
            )
