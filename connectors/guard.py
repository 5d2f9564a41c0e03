"""Looks at an HDF5 or Arrow file first in a process that can be killed.

The HDF5 library can loop or crash, in C, on a damaged file, and Arrow's can abort; Python cannot
interrupt it. So before a file is discovered here, by `ingest` and `validate`, a child process opens
it and walks through its groups, attributes and datasets, or its batches, saying at each that it is
alive. One that stays silent, or dies, is a file that cannot be trusted.

What it costs, measured: about 0.3 s once per process for the child, which then serves all files,
and some 0.1 ms per object of a file. That is little enough to do it for every file. Reading rows is
not guarded: no loop was seen there.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import resource
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py

from connectors.arrow_files import MAGIC, open_ipc
from connectors.hdf5 import Limits, is_hdf5
from connectors.minari_layout import MAIN_FILE, data_folder
from schemas.errors import PenstockError, SourceError

SILENCE = 20.0
"""Seconds of wall time between two signs of life; a healthy object takes milliseconds."""
_STARTUP = 60.0
_OBJECTS = 100_000
"""Objects that are walked through at most; a cycle of links has no end."""
_DEPTH = 16
_WRONG = (
    *(OSError, RuntimeError, KeyError, ValueError, TypeError, NotImplementedError),
    PenstockError,
)
"""What is raised on damaged files; their reader will say so."""
_ALIVE, _DONE, _TOO_MUCH = b".", b"\n", b"!\n"
_MEMORY = 1 << 30
"""Bytes that the child may map beyond what it starts with: a text attribute of a few bytes can
claim 4 GB, and HDF5 allocates them before it looks."""
_COMMAND = "from connectors.guard import serve; serve()"


def check(where: str, silence: float = SILENCE) -> None:
    """Returns if its library gets through the file, or the one of a Minari dataset, at a path.

    Anything else is not looked at, and what is merely wrong in a file is left to its reader.

    Raises:
        SourceError: if the library hangs or crashes on it.
    """
    path = Path(where)
    folder = data_folder(where)
    path = folder / MAIN_FILE if folder else path
    if path.is_file() and (is_hdf5(path) or _is_arrow(path)):
        _WATCH.check(path, silence)


def _is_arrow(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


class _Watch:
    """The child process, started when first needed and again after one was lost."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def check(self, path: Path, silence: float) -> None:
        """See `check`."""
        with self._lock:
            child = self._started()
            assert child.stdin is not None  # both are pipes, always
            assert child.stdout is not None
            with contextlib.suppress(BrokenPipeError):  # then it reads as dead below
                child.stdin.write(json.dumps(str(path.absolute())).encode() + b"\n")
                child.stdin.flush()
            while True:
                if not select.select([child.stdout], [], [], silence)[0]:
                    self.stop()
                    raise SourceError(
                        f"Expected a whole file, {path} makes its library hang (nothing for "
                        f"{silence:g} s): it is damaged; get a fresh copy.",
                        where=str(path),
                    )
                said = os.read(child.stdout.fileno(), 65536)
                if not said:
                    self.stop()
                    raise SourceError(
                        f"Expected a whole file, {path} makes its library crash: it is damaged; "
                        f"get a fresh copy.",
                        where=str(path),
                    )
                if said.endswith(_TOO_MUCH):
                    raise SourceError(
                        f"Expected attributes that fit in memory, one of {path} claims more than "
                        f"{_MEMORY:,} bytes: it is damaged; get a fresh copy.",
                        where=str(path),
                    )
                if said.endswith(_DONE):
                    return

    def stop(self) -> None:
        """Ends the child, whatever it does."""
        child, self._child = self._child, None
        if child is not None and self._owner == os.getpid():
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                with contextlib.suppress(OSError):
                    if pipe is not None:
                        pipe.close()

    def _started(self) -> subprocess.Popen[bytes]:
        child = self._child
        if child is None or self._owner != os.getpid() or child.poll() is not None:
            self.stop()
            paths = os.pathsep.join(path for path in (os.getcwd(), *sys.path) if path)  # noqa: PTH109 - sys.path is text
            child = subprocess.Popen(
                [sys.executable, "-c", _COMMAND],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": paths},
            )
            self._child, self._owner = child, os.getpid()
            assert child.stdout is not None
            ready = select.select([child.stdout], [], [], _STARTUP)[0]
            if not ready or os.read(child.stdout.fileno(), 1) != _DONE:
                self.stop()
                raise SourceError("Expected a process that looks at files, it did not start.")
        return child


_WATCH = _Watch()
atexit.register(_WATCH.stop)


def serve() -> None:
    """Runs in the child: walks through the files that its input names, one per line."""
    output = sys.stdout.fileno()
    _bound_memory()
    os.write(output, _DONE)
    for line in sys.stdin:
        try:
            walk(json.loads(line), lambda: os.write(output, _ALIVE))
        except MemoryError:
            os.write(output, _TOO_MUCH)
            continue
        except _WRONG:
            pass
        os.write(output, _DONE)


def _bound_memory() -> None:
    """Holds this process to `_MEMORY` more than it has, where the system can."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        most = int(statm.read_text().split()[0]) * resource.getpagesize() + _MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))


@contextlib.contextmanager
def _noticing() -> Iterator[None]:
    """Passes over what h5py raises, but not that memory is short."""
    try:
        yield
    except _WRONG as error:
        if "alloc" in str(error):
            raise MemoryError from error


def walk(where: str, alive: Callable[[], object]) -> int:
    """Opens everything in a file, reading attributes or batches; returns how many it saw.

    In the plain words of the library, which is faster than our readers: what this process believes
    does not matter, only whether it comes back.
    """
    count = 0

    def visit(group: h5py.h5g.GroupID, depth: int) -> None:
        nonlocal count
        for index in range(h5py.h5a.get_num_attrs(group)):
            alive()
            attribute = h5py.h5a.open(group, index=index)
            name = attribute.name.decode("utf-8", "replace")
            if attribute.get_storage_size() <= Limits().attribute_bytes:
                with _noticing():
                    _ = h5py.Group(group).attrs[name]
        for name in group:
            alive()
            count += 1
            if count > _OBJECTS:
                return
            if group.links.get_info(name).type != h5py.h5l.TYPE_HARD:
                continue
            with contextlib.suppress(*_WRONG):
                found = h5py.h5o.open(group, name)
                if isinstance(found, h5py.h5g.GroupID) and depth < _DEPTH:
                    visit(found, depth + 1)
                elif isinstance(found, h5py.h5d.DatasetID):
                    _ = (found.shape, found.dtype, found.get_create_plist(), found.rank)

    alive()
    if _is_arrow(Path(where)):
        file = open_ipc(Path(where))
        for index in range(len(file.messages)):
            alive()
            file.read(index)
            count += 1
        return count
    with h5py.File(where, "r") as hdf5:
        visit(hdf5["/"].id, 0)
    return count
