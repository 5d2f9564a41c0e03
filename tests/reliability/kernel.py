"""A stand-in for the kernel: every system call that changes files below one folder passes here.

It replaces the functions of `os` themselves, so that nothing a store does can go around it. Calls
are recorded, can be made to fail, and can be the moment at which something else happens. Syncs are
recorded but not done: what they promise is what `crashes` works out.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any


@dataclass(frozen=True)
class Call:
    """One system call on a file or folder; paths are relative to the watched folder."""

    verb: str
    """`mkdir create write truncate fsync sync_dir link rename unlink rmdir`, or `note`."""
    path: str
    to: str = ""
    data: bytes = b""
    size: int = 0
    """Of a truncated file."""
    note: Any = None


Before = Callable[[int, Call], int | None]
"""Called before each call with its number; may raise, or return how much of a write to do."""

VERBS = (
    *("open", "write", "writev", "ftruncate", "fsync", "fdatasync", "close"),
    *("mkdir", "link", "rename", "replace"),
)


class Kernel:
    """Watches one folder while the context lasts."""

    def __init__(self, root: Path, before: Before | None = None, *, syncs: bool = False) -> None:
        self.root = os.path.realpath(root)
        self.trace: list[Call] = []
        self.before = before
        self._syncs = syncs
        self._handles: dict[int, str] = {}
        self._folders: set[int] = set()
        self._real = {name: getattr(os, name) for name in (*VERBS, "unlink", "remove", "rmdir")}

    def __enter__(self) -> Kernel:
        for name in self._real:
            setattr(os, name, getattr(self, f"_{name}"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        for name, function in self._real.items():
            setattr(os, name, function)

    def note(self, note: Any) -> None:
        """Writes into the trace what the caller was told, or began."""
        self.trace.append(Call("note", "", note=note))

    # -- within --------------------------------------------------------------------------------

    def _inside(self, path: Any) -> str | None:
        if not isinstance(path, str | os.PathLike):
            return None
        text = os.fspath(path)
        if text == self.root:
            return ""
        return text[len(self.root) + 1 :] if text.startswith(self.root + "/") else None

    def _ask(self, call: Call) -> int | None:
        return self.before(len(self.trace), call) if self.before else None

    def _say(self, call: Call) -> None:
        self.trace.append(call)

    def _open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        inside = self._inside(path)
        makes = bool(flags & os.O_CREAT)
        if inside is not None and makes:
            assert flags & os.O_EXCL, f"{path} is opened without O_EXCL"
            self._ask(Call("create", inside))
        handle: int = self._real["open"](path, flags, mode, dir_fd=dir_fd)
        if inside is not None:
            if makes:
                self._say(Call("create", inside))
            self._handles[handle] = inside
            if flags & os.O_DIRECTORY:
                self._folders.add(handle)
        return handle

    def _write(self, handle: int, data: Any) -> int:
        path = self._handles.get(handle)
        if path is None:
            return int(self._real["write"](handle, data))
        allowed = self._ask(Call("write", path, data=bytes(data)))
        if allowed is not None:
            data = bytes(data)[:allowed]
        self._say(Call("write", path, data=bytes(data)))
        return int(self._real["write"](handle, data))

    def _writev(self, handle: int, buffers: Any) -> int:
        return self._write(handle, b"".join(bytes(memoryview(one)) for one in buffers))

    def _ftruncate(self, handle: int, size: int) -> None:
        path = self._handles.get(handle)
        if path is not None:
            call = Call("truncate", path, size=size)
            self._ask(call)
            self._say(call)
        self._real["ftruncate"](handle, size)

    def _fsync(self, handle: int) -> None:
        path = self._handles.get(handle)
        if path is not None:
            call = Call("sync_dir" if handle in self._folders else "fsync", path)
            self._ask(call)
            self._say(call)
        if path is None or self._syncs:
            self._real["fsync"](handle)

    _fdatasync = _fsync

    def _close(self, handle: int) -> None:
        self._handles.pop(handle, None)
        self._folders.discard(handle)
        self._real["close"](handle)

    def _mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        self._do(Call("mkdir", self._inside(path) or ""), "mkdir", path, mode, dir_fd=dir_fd)

    def _link(self, path: Any, name: Any, **options: Any) -> None:
        call = Call("link", self._inside(path) or "", self._inside(name) or "")
        self._do(call, "link", path, name, **options)

    def _rename(self, path: Any, name: Any, **options: Any) -> None:
        call = Call("rename", self._inside(path) or "", self._inside(name) or "")
        self._do(call, "replace", path, name, **options)

    _replace = _rename

    def _unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._do(Call("unlink", self._inside(path) or ""), "unlink", path, dir_fd=dir_fd)

    _remove = _unlink

    def _rmdir(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._do(Call("rmdir", self._inside(path) or ""), "rmdir", path, dir_fd=dir_fd)

    def _do(self, call: Call, name: str, *arguments: Any, **options: Any) -> None:
        """Does a call that changes a name, and records it if it worked."""
        if not call.path:
            self._real[name](*arguments, **options)
            return
        self._ask(call)
        self._real[name](*arguments, **options)
        self._say(call)
