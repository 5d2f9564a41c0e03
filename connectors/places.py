"""Sources at URLs: a local copy for connectors, which read local paths only, under the URL's name.

Each process copies a URL once per state of its files, whole, to a spool folder of its own under
`$PENSTOCK_SPOOL` or the temporary directory. Before the first byte, the size that the listing
states is held against the room there is: copies that nobody reads are dropped, longest unused
first, then the copy is refused. Names come from the listing, so each part of them must be a plain
file name; what the far side calls a link is no file and is left out. Copies go when the process
ends.

What connectors say about the copy (units, episodes, errors) is said about the URL instead, so that
engines ship URLs to workers, and a unit carries the state it was planned for: a worker that finds
another state refuses it.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from connectors.base import Found, Listing, Source, Unit
from schemas.errors import (
    AccessDeniedError,
    DiskFullError,
    EpisodeError,
    NotFoundError,
    PenstockError,
    SourceError,
    TransientError,
    UsageError,
    missing_extra,
)

T = TypeVar("T")
MOST_FILES = 100_000
_URL = re.compile(r"(?:[A-Za-z0-9+.-]+::)*([A-Za-z][A-Za-z0-9+.-]+)://(.*)", re.DOTALL)
URL_STATE = "url_state"
"""Option of a unit: the state of the URL's files that it was planned for."""
_STAMPS = ("ETag", "etag", "md5Hash", "Content-MD5", "LastModified", "Last-Modified", "mtime")
_EXTRAS = {"s3": ("s3", "s3fs"), "s3a": ("s3", "s3fs")}
_INSTALLS = re.compile(r"[Ii]nstall (\S+)")
_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError")
_RESERVE = 64 * 2**20
"""Bytes of the disk that no copy takes."""


@dataclass(frozen=True)
class RemoteFile:
    """One file below a URL, as its listing states it."""

    path: str
    """In the file system's own terms."""
    name: str
    """Relative to the URL, checked; empty for the URL itself."""
    size: int
    stamp: str
    """Changes with the content: an etag or a write time, where the far side has either."""


def is_url(where: str) -> bool:
    """True for `scheme://...`."""
    return _URL.fullmatch(where) is not None


def local_path(where: str) -> str:
    """Returns the path of a `file://` URL, and anything else as it is."""
    return where[7:] if where.startswith("file:///") else where


def glob(pattern: str) -> list[str]:
    """Returns the URLs that match a pattern with `*`, `?`, `[...]` or `**`, sorted."""
    system, path = _open(pattern)
    with _typed(pattern):
        try:
            found = sorted(str(one) for one in system.glob(path))
        except ValueError as error:
            raise UsageError(f"Expected a pattern, came {pattern}: {error}.") from error
    return [_named(pattern, system, one) for one in found[:MOST_FILES]]


def members(url: str) -> list[str]:
    """Returns the URLs of a folder's files, sorted; nothing for a file or a folder of folders."""
    system, _ = _open(url)
    files = remote_files(url)
    if any(not file.name or "/" in file.name for file in files):
        return []
    return [_named(url, system, file.path) for file in files]


def remote_files(url: str) -> list[RemoteFile]:
    """Lists what is at a URL, one file or all files of a folder, sorted by name.

    Raises:
        NotFoundError: if there is nothing.
        SourceError: if a name could leave its folder, or there are too many files.
    """
    system, path = _open(url)
    system.invalidate_cache()
    with _typed(url):
        try:
            info = system.info(path)
        except FileNotFoundError:
            info = {}
        if info.get("type") == "file":
            return [_remote_file(url, path, "", info)]
        found = system.find(path, detail=True)
    root = str(path).rstrip("/") + "/"
    files = [
        _remote_file(url, str(one), str(one).removeprefix(root), info)
        for one, info in sorted(found.items())
        if info.get("type", "file") == "file" and not info.get("islink") and str(one) != path
    ]
    if not files:
        raise NotFoundError(f"Expected a dataset, there is nothing at {url}.", where=url)
    if len(files) > MOST_FILES:
        raise SourceError(
            f"Expected at most {MOST_FILES:,} files at {url}, came {len(files):,}.", where=url
        )
    return files


def state_of(files: list[RemoteFile]) -> str:
    """Returns 32 hex digits that change with any file's name, size or stamp."""
    sha = hashlib.sha256()
    for file in files:
        sha.update(f"{file.name}\0{file.size}\0{file.stamp}\n".encode())
    return sha.hexdigest()[:32]


# -- the spool -----------------------------------------------------------------------------------


@dataclass
class _Copy:
    """A URL's files in one state, here."""

    path: Path
    size: int
    readers: int = 0


class Spool:
    """The copies of this process."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._root: Path | None = None
        self._owner = 0
        self._copies: dict[tuple[str, str], _Copy] = {}

    @contextmanager
    def borrow(self, url: str, state: str | None = None) -> Iterator[tuple[str, str]]:
        """Yields the path of a copy, kept while the context lasts, and its state.

        Args:
            url: a file or a folder.
            state: what the caller expects it to be in; a copy of it is taken without asking.

        Raises:
            SourceError: if it is in another state by now.
            DiskFullError: if it does not fit.
        """
        with self._lock:
            key = (url, state or "")
            if key not in self._copies or self._owner != os.getpid():
                files = remote_files(url)
                key = (url, state_of(files))
                if state is not None and key[1] != state:
                    raise SourceError(
                        f"Expected {url} as it was listed, its files are others now: it changed "
                        f"while it was read; start again.",
                        where=url,
                    )
                if key not in self._copies or self._owner != os.getpid():
                    self._fetch(key, files)
            copy = self._copies.pop(key)
            self._copies[key] = copy  # the last one used goes last
            copy.readers += 1
        try:
            yield str(copy.path), key[1]
        finally:
            with self._lock:
                copy.readers -= 1

    def _fetch(self, key: tuple[str, str], files: list[RemoteFile]) -> None:
        url = key[0]
        folder = self._folder() / hashlib.sha256("\0".join(key).encode()).hexdigest()[:16]
        size = sum(file.size for file in files)
        self._make_room(url, size)
        system, _ = _open(url)
        target = folder / _plain_name(url, PurePosixPath(url.rstrip("/")).name)
        try:
            for file in files:
                path = target / file.name if file.name else target
                path.parent.mkdir(parents=True, exist_ok=True)
                with _typed(url):
                    system.get_file(file.path, str(path))
                if path.stat().st_size != file.size:
                    raise SourceError(
                        f"Expected {file.size:,} bytes of {file.name or url}, came "
                        f"{path.stat().st_size:,}; the file changed or was cut off.",
                        where=url,
                    )
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self._copies[key] = _Copy(target, size)

    def _make_room(self, url: str, size: int) -> None:
        """Drops copies that nobody reads until `size` bytes fit."""
        budget = os.environ.get("PENSTOCK_SPOOL_BYTES")

        def room() -> int:
            free = shutil.disk_usage(self._folder()).free - _RESERVE
            held = sum(copy.size for copy in self._copies.values())
            return min(free, int(budget) - held) if budget else free

        for key, copy in list(self._copies.items()):
            if size <= room():
                return
            if not copy.readers:
                shutil.rmtree(copy.path.parent, ignore_errors=True)
                del self._copies[key]
        if size > room():
            raise DiskFullError(
                f"Expected room for the {size:,} bytes of {url} in {self._folder()}, there is room "
                f"for {max(0, room()):,}; free some, or name another folder in $PENSTOCK_SPOOL.",
                where=url,
            )

    def _folder(self) -> Path:
        """The folder of this process, made when first needed; a fork makes its own."""
        if self._root is None or self._owner != os.getpid():
            base = os.environ.get("PENSTOCK_SPOOL") or tempfile.gettempdir()
            Path(base).mkdir(parents=True, exist_ok=True)
            self._root = Path(tempfile.mkdtemp(prefix="penstock-spool-", dir=base))
            self._owner = os.getpid()
            self._copies = {}
            atexit.register(_remove, self._root, self._owner)
        return self._root


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


SPOOL = Spool()


# -- connectors on copies ------------------------------------------------------------------------


class PlacedSource:
    """A connector that reads URLs too, through copies."""

    def __init__(self, inner: Source) -> None:
        self.inner = inner

    def guesses(self) -> tuple[str, ...]:
        """See `connectors.base.Source`."""
        return self.inner.guesses()

    def discover(self, where: str) -> Listing:
        """See `connectors.base.Source`; where and units name the URL."""
        if not is_url(where):
            return self.inner.discover(where)
        path = local_path(where)
        if path != where:
            with _speaking_of(where, path):
                return _placed(self.inner.discover(path), where, path, None)
        with SPOOL.borrow(where) as (path, state), _speaking_of(where, path):
            return _placed(self.inner.discover(path), where, path, state)

    def read(self, unit: Unit) -> Iterator[Found]:
        """See `connectors.base.Source`."""
        if not is_url(unit.where):
            yield from self.inner.read(unit)
            return
        path = local_path(unit.where)
        if path != unit.where:
            with _speaking_of(unit.where, path):
                for found in self.inner.read(replace(unit, where=path)):
                    yield _renamed(found, unit.where, path)
            return
        options = {name: value for name, value in unit.options.items() if name != URL_STATE}
        with (
            SPOOL.borrow(unit.where, unit.options.get(URL_STATE)) as (path, _),
            _speaking_of(unit.where, path),
        ):
            for found in self.inner.read(replace(unit, where=path, options=options)):
                yield _renamed(found, unit.where, path)


def _placed(listing: Listing, url: str, path: str, state: str | None) -> Listing:
    extra: dict[str, Any] = {} if state is None else {URL_STATE: state}
    return replace(
        listing,
        where=url,
        units=tuple(
            replace(unit, where=url, options={**unit.options, **extra}) for unit in listing.units
        ),
        fingerprint=listing.fingerprint if state is None else state,
        guesses=tuple(guess.replace(path, url) for guess in listing.guesses),
    )


def _renamed(found: Found, url: str, path: str) -> Found:
    episode, fault = found.episode, found.fault
    if episode is not None and episode.source and path in episode.source:
        episode = episode.replace(source=episode.source.replace(path, url))
    if fault is not None:
        where = fault.where and fault.where.replace(path, url)
        fault = EpisodeError(fault.message.replace(path, url), code=fault.code, where=where)
    return replace(found, episode=episode, fault=fault)


@contextmanager
def _speaking_of(url: str, path: str) -> Iterator[None]:
    """Lets errors about a copy name its URL."""
    try:
        yield
    except PenstockError as error:
        error.message = error.message.replace(path, url)
        error.args = (error.message,)
        error.where = error.where and error.where.replace(path, url)
        raise


def on_copy(where: str, work: Callable[[str], T]) -> T:
    """Returns what some work on a path gives, on a copy where `where` is a URL."""
    path = local_path(where)
    if not is_url(path):
        with _speaking_of(where, path):
            return work(path)
    with SPOOL.borrow(where) as (copy, _), _speaking_of(where, copy):
        return work(copy)


# -- within --------------------------------------------------------------------------------------


def _open(url: str) -> tuple[Any, str]:
    """Returns the file system of a URL and the path in it; asks nothing yet."""
    from fsspec.core import url_to_fs  # noqa: PLC0415 - slow, and only URLs need it

    match = _URL.fullmatch(url)
    scheme, rest = match.groups() if match else ("", url)
    host = rest.partition("/")[0]
    if "::" in url:
        raise UsageError(f"Expected a URL of one place, came the chained {url!r}.", where=url)
    if "@" in host:
        # The text is not repeated: it may hold a secret.
        raise UsageError(
            f"Expected a {scheme} URL without credentials, came one with; put them into the "
            f"environment or a profile."
        )
    try:
        system, path = url_to_fs(url)
    except ImportError as error:
        raise _missing(scheme, error) from error
    except ValueError as error:
        raise UsageError(
            f"Expected a URL of a kind that fsspec knows, came {url}: {error}.", where=url
        ) from error
    return system, path


def _missing(scheme: str, error: ImportError) -> PenstockError:
    if scheme in _EXTRAS:
        return missing_extra(*_EXTRAS[scheme])
    named = _INSTALLS.search(str(error))
    package = named.group(1).strip("\"'`.,") if named else f"fsspec's support for {scheme}://"
    wrong = UsageError(
        f"Expected the package for {scheme}:// URLs, it is not installed; install it with: "
        f"pip install {package}."
    )
    return wrong


def _remote_file(url: str, path: str, name: str, info: dict[str, Any]) -> RemoteFile:
    size = info.get("size")
    if not isinstance(size, int) or size < 0:
        raise SourceError(
            f"Expected the size of {name or url} to be stated, it is not; copy it here first.",
            where=url,
        )
    for part in name.split("/") if name else ():
        _plain_name(url, part)
    stamps = [f"{key}={info[key]}" for key in (*_STAMPS, "created", "updated") if info.get(key)]
    return RemoteFile(path, name, size, ";".join(stamps))


def _plain_name(url: str, name: str) -> str:
    """Returns a name that stays in its folder."""
    if name in ("", ".", "..") or not name.isprintable() or "\\" in name or "/" in name:
        raise SourceError(
            f"Expected plain file names at {url}, came {name!r}; it could leave its folder.",
            where=url,
        )
    return name


def _named(url: str, system: Any, path: str) -> str:
    """The URL of a path that a file system listed."""
    return path if is_url(path) else str(system.unstrip_protocol(path)) if is_url(url) else path


@contextmanager
def _typed(url: str) -> Iterator[None]:
    """Turns what a file system raises into an error of our tree."""
    try:
        yield
    except PenstockError:
        raise
    except FileNotFoundError as error:
        raise NotFoundError(f"Expected a dataset, there is nothing at {url}.", where=url) from error
    except ImportError as error:
        raise _missing(url.partition("://")[0], error) from error
    except Exception as error:  # every file system has exceptions of its own
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, PermissionError) or type(error).__name__ in _NO_CREDENTIALS:
            raise AccessDeniedError(
                f"Expected leave to read {url}, came the refusal {said}; check the credentials.",
                where=url,
            ) from error
        raise TransientError(
            f"Expected to read {url}, came {type(error).__name__}: {said}; try again later.",
            where=url,
        ) from error
