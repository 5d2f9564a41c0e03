"""What is at a URL: its files by name, size and state, as the far side's listing says.

Names come from the listing, so each part of them must be a plain file name; what the far side calls
a link is no file and is left out. What a file system raises becomes an error of our tree.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from schemas.errors import (
    AccessDeniedError,
    NotFoundError,
    PenstockError,
    SourceError,
    TransientError,
    UsageError,
    missing_extra,
)

MOST_FILES = 100_000
_URL = re.compile(r"(?:[A-Za-z0-9+.-]+::)*([A-Za-z][A-Za-z0-9+.-]+)://(.*)", re.DOTALL)
_STAMPS = ("ETag", "etag", "md5Hash", "Content-MD5", "LastModified", "Last-Modified", "mtime")
_EXTRAS = {"s3": ("s3", "s3fs"), "s3a": ("s3", "s3fs")}
_INSTALLS = re.compile(r"[Ii]nstall (\S+)")
_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError")


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
    system, path = file_system(pattern)
    with typed(pattern):
        try:
            found = sorted(str(one) for one in system.glob(path))
        except ValueError as error:
            raise UsageError(f"Expected a pattern, came {pattern}: {error}.") from error
    return [_named(pattern, system, one) for one in found[:MOST_FILES]]


def members(url: str) -> list[str]:
    """Returns the URLs of a folder's files, sorted; nothing for a file or a folder of folders."""
    system, _ = file_system(url)
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
    system, path = file_system(url)
    system.invalidate_cache()
    with typed(url):
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


# -- how it is asked for -------------------------------------------------------------------------


def file_system(url: str) -> tuple[Any, str]:
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
        plain_name(url, part)
    stamps = [f"{key}={info[key]}" for key in (*_STAMPS, "created", "updated") if info.get(key)]
    return RemoteFile(path, name, size, ";".join(stamps))


def plain_name(url: str, name: str) -> str:
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
def typed(url: str) -> Iterator[None]:
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
