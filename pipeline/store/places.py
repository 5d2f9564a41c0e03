"""From a URL to the objects below it.

A URL names one place: a folder, a bucket and prefix, whatever else fsspec can open, or the service
that serves a store, which is to be read only then. Chained URLs
(`simplecache::...`) and credentials inside a URL are refused: the first can name local files from
anywhere, the second end up in logs and version histories.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec

from pipeline.store.fsspec_objects import FsspecObjects
from pipeline.store.objects import LocalObjects, Objects
from schemas.errors import UsageError, missing_extra, suggest

WRAPPERS = frozenset(
    {
        *("async_wrapper", "asyncwrapper", "asynclocal", "blockcache", "cached", "dask", "data"),
        *("dir", "filecache", "generic", "libarchive", "local", "reference", "simplecache"),
        *("tar", "zip"),
    }
)
"""fsspec's names for what is no place of its own."""
S3 = ("s3", "s3a")
SERVICES = ("grpc", "grpc+tcp", "grpc+tls")
_BEHIND_A_SERVICE = "pipeline.service.client.objects"
"""Named, not imported: a store knows nothing of services, and only such URLs load Flight."""
_SCHEME = re.compile(r"\A[A-Za-z][A-Za-z0-9+.-]*\Z")


def open_objects(
    url: str | Path,
    options: Mapping[str, Any] | None = None,
    *,
    single_writer: bool = False,
) -> Objects:
    """Returns the objects at a path or URL; nothing is asked or written yet.

    Args:
        url: a folder, or a URL.
        options: `storage_options` as in fsspec, for a URL.
        single_writer: the caller declares that nobody else writes there at the same time.

    Raises:
        UsageError: if it is not one place that we can open.
        MissingExtraError: if its package is not installed.
    """
    text = str(url)
    scheme, is_url, rest = text.partition("://")
    if not is_url or scheme == "file":
        if options:
            raise UsageError("Expected storage_options for a URL only, came some for a folder.")
        return LocalObjects(_folder(rest if is_url else text))
    if scheme.lower() in SERVICES and "::" not in text:
        return _behind_a_service(text, options, single_writer)
    scheme = _checked(text, scheme.lower(), rest)
    rest = rest.rstrip("/")
    if scheme in S3:
        return _s3(f"s3://{rest}", options, single_writer)
    return FsspecObjects(f"{scheme}://{rest}", options, single_writer=single_writer)


def _folder(text: str) -> Path:
    root = Path(text).expanduser().absolute()
    if root.exists() and not root.is_dir():
        raise UsageError("Expected a folder for the store, came a file.", where=str(root))
    return root


def _checked(text: str, scheme: str, rest: str) -> str:
    """Returns the scheme of a URL that names one place and holds no secret."""
    host = rest.partition("/")[0]
    if "@" in host and (scheme in S3 or ":" in host.rpartition("@")[0]):
        # The text is not repeated: it holds a secret.
        raise UsageError(
            f"Expected a {scheme} URL without credentials, came one with; put them into the "
            f"environment, a profile or storage_options."
        )
    if "::" in text:
        raise UsageError(f"Expected a URL of one place, came the chained {text!r}.", where=text)
    known = sorted(({*fsspec.available_protocols()} - WRAPPERS) | {"file"})
    if not _SCHEME.match(scheme) or scheme not in known:
        raise UsageError(
            f"Expected a folder or a URL of a known kind, came {scheme!r}://; "
            f"{suggest(scheme, known)}",
            where=text,
        )
    if scheme in S3 and (not host or any(sign in rest for sign in "?#:")):
        raise UsageError(f"Expected s3://BUCKET/PREFIX, came {text!r}.", where=text)
    return scheme


def _behind_a_service(url: str, options: Mapping[str, Any] | None, single_writer: bool) -> Objects:
    if single_writer:
        raise UsageError("Expected a store that is read, behind a service, came single_writer.")
    found: Objects = importlib.import_module(_BEHIND_A_SERVICE).ServiceObjects(url, options)
    return found


def _s3(url: str, options: Mapping[str, Any] | None, single_writer: bool) -> Objects:
    try:
        from pipeline.store.s3 import S3Objects  # noqa: PLC0415 - an optional extra
    except ImportError as error:
        raise missing_extra("s3", "s3fs") from error
    return S3Objects(url, options, single_writer=single_writer)
