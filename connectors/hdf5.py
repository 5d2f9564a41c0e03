"""Opens HDF5 files that we did not write ourselves, without trusting them.

An HDF5 file can make its reader open other files (external links, external storage, virtual
datasets), claim a terabyte that is not there, or inflate a few kilobytes into gigabytes. So nothing
in this project touches an h5py object of somebody else's file: connectors see `Hdf5Group` and
`Hdf5Array`, which

* follow hard links only: a soft or external link is refused where it stands;
* refuse external storage, virtual datasets, unknown or doubled compression filters, and dtypes
  other than bool, integers, floats and (where the caller asks for them) text and byte frames;
* compare the bytes a dataset claims with the bytes it has stored *before* any allocation. Up to
  64 MiB are always allowed (flags of a million steps compress 1000:1 and are no attack); beyond
  that a dataset may claim at most 200 times what it stores, and one without a compression filter
  at most what it stores. A gzip chunk that could inflate past 64 MiB is inflated here first, with
  a limit, because HDF5's own filter grows its buffer as far as the stream asks;
* turn every failure of the library into one sentence: `SourceError` for a file that breaks these
  rules, its subclass `UnreadableError` for damaged or absent content.

What no check from outside can prevent is that the library itself, in C, loops on a damaged file
(seen: 2 of 5,000 files with flipped bytes, in a text attribute). So a process that can be killed
looks at files first (`connectors.guard`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py

from connectors.hdf5_array import Hdf5Array, rows_differ
from connectors.hdf5_values import (
    NUMERIC_KINDS,
    Bounds,
    Limits,
    UnreadableError,
    decoding,
    is_text,
    plain,
)
from schemas.errors import NotFoundError, SourceError


@contextmanager
def open_hdf5(where: str | Path, limits: Limits | None = None) -> Iterator[Hdf5Group]:
    """Opens a file for reading and hands out its root.

    Raises:
        NotFoundError: if there is no file at `where`.
        SourceError: if it is not a whole HDF5 file.
    """
    path = Path(where)
    if not path.exists():
        raise NotFoundError(f"Expected an HDF5 file, there is nothing at {where}.", where=str(path))
    if not path.is_file():
        raise SourceError(f"Expected an HDF5 file, {where} is not a file.", where=str(path))
    with decoding(str(path)):
        file = h5py.File(path, "r")
    with file:
        bounds = Bounds(limits or Limits(), path.stat().st_size, str(path))
        with decoding(str(path)):
            root = file["/"]
        yield Hdf5Group(root, str(path), bounds)


def is_hdf5(path: Path) -> bool:
    """True for a file with HDF5's signature, whole or not."""
    return path.is_file() and bool(h5py.is_hdf5(path))


class Hdf5Group:
    """A group seen through hard links only."""

    def __init__(self, group: Any, where: str, bounds: Bounds) -> None:
        self._group = group
        self._bounds = bounds
        self._limits = bounds.limits
        self.where = where
        """File and path within it, for messages."""

    def names(self) -> list[str]:
        """Returns the names of all members, links of any kind included."""
        with decoding(self.where):
            return [self._printable(name) for name in self._group.keys()]  # noqa: SIM118

    def __contains__(self, name: str) -> bool:
        with decoding(self.where):
            return bool(self._group.id.links.exists(name.encode()))

    def group(self, name: str) -> Hdf5Group:
        """Opens a sub-group.

        Raises:
            SourceError: if it is not there, not a group, or a link.
        """
        found = self._open(name)
        if not isinstance(found, h5py.Group):
            raise self._unexpected(name, "a group")
        return Hdf5Group(found, f"{self.where}:{name}", self._bounds)

    def array(self, name: str) -> Hdf5Array:
        """Opens a dataset and checks all it claims; reads nothing.

        Raises:
            SourceError: if it is not there, not a dataset, a link, or breaks a limit.
        """
        found = self._open(name)
        if not isinstance(found, h5py.Dataset):
            raise self._unexpected(name, "a dataset")
        return Hdf5Array(found, f"{self.where}:{name}", self._bounds)

    def is_group(self, name: str) -> bool:
        """True if the member is a group."""
        return isinstance(self._open(name), h5py.Group)

    def leaves(self) -> dict[str, Hdf5Array]:
        """Returns all datasets below, by path joined with `/`."""
        found: dict[str, Hdf5Array] = {}
        self._collect("", found, 0)
        return found

    def attributes(self, skip: tuple[str, ...] = ()) -> dict[str, Any]:
        """Returns the attributes as plain values: numbers, text, lists of them, None.

        Attributes of other dtypes are left out.
        """
        found = {}
        with decoding(self.where):
            for name in self._group.attrs:
                if self._printable(name) in skip:
                    continue
                if self._is_plain(name, self._group.attrs.get_id(name)):
                    found[name] = plain(self._group.attrs[name])
        return found

    def _printable(self, name: Any) -> str:
        """The name itself; h5py gives names that are no text as bytes."""
        if not isinstance(name, str) or not name.isprintable():
            raise SourceError(
                f"Expected names of printable text in {self.where}, came {name!r}.",
                where=self.where,
            )
        return name

    def _is_plain(self, name: str, attribute: Any) -> bool:
        """True for an attribute of numbers or text; refuses one that claims too much."""
        try:
            dtype = attribute.dtype
        except TypeError:
            return False  # a type NumPy has no word for
        count = math.prod(attribute.shape or ())
        texts = count if dtype.kind == "O" else 0
        if count * dtype.itemsize > self._limits.attribute_bytes or texts > self._limits.texts:
            raise SourceError(
                f"Expected attributes of at most {self._limits.attribute_bytes:,} bytes or "
                f"{self._limits.texts:,} texts, {name!r} of {self.where} claims more.",
                where=self.where,
            )
        return dtype.kind in NUMERIC_KINDS or is_text(dtype)

    def _open(self, name: str) -> Any:
        with decoding(self.where):
            links = self._group.id.links
            key = name.encode()
            if "/" in name or name in ("", ".") or not links.exists(key):
                raise self._unexpected(name, "a member")
            if links.get_info(key).type != h5py.h5l.TYPE_HARD:
                raise SourceError(
                    f"Expected data in the file itself, {name!r} in {self.where} is a link to "
                    f"somewhere else; links are never followed.",
                    where=self.where,
                )
            return self._group[name]

    def _unexpected(self, name: str, expected: str) -> UnreadableError:
        there = ", ".join(self.names()[:12]) or "nothing"
        return UnreadableError(
            f"Expected {expected} {name!r} in {self.where}, there is {there}.", where=self.where
        )

    def _too_many(self) -> SourceError:
        return SourceError(
            f"Expected at most {self._limits.leaves} datasets, nested at most "
            f"{self._limits.depth} deep; {self.where} has more.",
            where=self.where,
        )

    def _collect(self, prefix: str, found: dict[str, Hdf5Array], depth: int) -> None:
        if depth > self._limits.depth:
            raise self._too_many()
        for name in self.names():
            if len(found) >= self._limits.leaves:
                raise self._too_many()
            if self.is_group(name):
                self.group(name)._collect(f"{prefix}{name}/", found, depth + 1)
            else:
                found[prefix + name] = self.array(name)


__all__ = [
    "Hdf5Array",
    "Hdf5Group",
    "Limits",
    "UnreadableError",
    "is_hdf5",
    "open_hdf5",
    "rows_differ",
]
