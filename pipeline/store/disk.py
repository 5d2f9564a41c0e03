"""The few system calls a local store is made of, behind one small object.

Everything durable goes through here, so that one place decides what is synced and in which order,
and a test can stand in for the kernel: record the calls, drop some, or let one fail.
"""

from __future__ import annotations

import os
from pathlib import Path


class Disk:
    """Unbuffered file operations. Paths are absolute."""

    def mkdir(self, path: Path) -> bool:
        """Makes one folder; returns False if it is there already."""
        try:
            path.mkdir()
        except FileExistsError:
            return False
        return True

    def create(self, path: Path, data: bytes) -> None:
        """Writes a new file and syncs its content; its name is not durable yet.

        Raises:
            FileExistsError: if the file exists.
        """
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(handle, view) :]
            os.fsync(handle)
        finally:
            os.close(handle)

    def link(self, path: Path, name: Path) -> bool:
        """Gives a file a second name; returns False if that name exists already."""
        try:
            os.link(path, name)
        except FileExistsError:
            return False
        return True

    def rename(self, path: Path, name: Path) -> None:
        """Moves a file over another."""
        path.replace(name)

    def unlink(self, path: Path) -> None:
        """Removes a name; no error if it is gone already."""
        path.unlink(missing_ok=True)

    def sync_dir(self, path: Path) -> None:
        """Makes a folder's names durable."""
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
