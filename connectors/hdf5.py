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

import itertools
import json
import math
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from schemas.errors import NotFoundError, SourceError

NUMERIC_KINDS = "biuf"
_DEFLATE, _FLETCHER32 = 1, 3
_COMPRESSORS = {_DEFLATE: "gzip", 4: "szip", 5: "nbit", 6: "scaleoffset", 32000: "lzf"}
_HARMLESS = {2, _FLETCHER32}  # shuffle and checksum keep the size
_POINTER = np.dtype([("length", "<u4"), ("address", "<u8"), ("index", "<u4")])
"""What stands for a row of its own length (addresses have 8 bytes unless a file says otherwise)."""
_DEFLATE_RATIO = 1032  # the most that one byte of a deflate stream can become (zlib, "maximum")


class UnreadableError(SourceError):
    """Content that is not there or that HDF5 cannot decode: damage, not malice."""


@dataclass(frozen=True)
class Limits:
    """What a file may make us allocate."""

    free_bytes: int = 64 * 2**20
    """A dataset may always claim this much."""
    ratio: int = 200
    """Beyond that: claimed bytes per stored byte, for compressed datasets."""
    attribute_bytes: int = 16 * 2**20
    """Size of one attribute (robomimic keeps whole XML models in one)."""
    depth: int = 16
    """Nesting of groups that `leaves` follows."""
    leaves: int = 4096
    """Datasets that `leaves` lists below one group."""
    texts: int = 1024
    """Values of a text attribute; each may point to the same megabyte."""


@dataclass(frozen=True)
class _Bounds:
    """The limits with the size of the file they hold for."""

    limits: Limits
    file_bytes: int
    path: str


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
    with _decoding(str(path)):
        file = h5py.File(path, "r")
    with file:
        bounds = _Bounds(limits or Limits(), path.stat().st_size, str(path))
        with _decoding(str(path)):
            root = file["/"]
        yield Hdf5Group(root, str(path), bounds)


def is_hdf5(path: Path) -> bool:
    """True for a file with HDF5's signature, whole or not."""
    return path.is_file() and bool(h5py.is_hdf5(path))


class Hdf5Group:
    """A group seen through hard links only."""

    def __init__(self, group: Any, where: str, bounds: _Bounds) -> None:
        self._group = group
        self._bounds = bounds
        self._limits = bounds.limits
        self.where = where
        """File and path within it, for messages."""

    def names(self) -> list[str]:
        """Returns the names of all members, links of any kind included."""
        with _decoding(self.where):
            return [self._printable(name) for name in self._group.keys()]  # noqa: SIM118

    def __contains__(self, name: str) -> bool:
        with _decoding(self.where):
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
        with _decoding(self.where):
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
        return dtype.kind in NUMERIC_KINDS or _is_text(dtype)

    def _open(self, name: str) -> Any:
        with _decoding(self.where):
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


class Hdf5Array:
    """A dataset whose claims have been checked."""

    def __init__(self, dataset: Any, where: str, bounds: _Bounds) -> None:
        self._dataset = dataset
        self._bounds = bounds
        self._limits = bounds.limits
        self.where = where
        with _decoding(where):
            self.dtype: np.dtype[Any] = _dtype(dataset, where)
            self.shape: tuple[int, ...] = tuple(int(n) for n in dataset.shape or ())
            self._check_storage()

    @property
    def is_numeric(self) -> bool:
        """True for bool, integers and floats."""
        return self.dtype.kind in NUMERIC_KINDS

    @property
    def row_bytes(self) -> int:
        """Bytes of one entry of the first axis."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Reads rows `start:stop` of a numeric dataset, or a numeric scalar as 0-d array."""
        if not self.is_numeric:
            raise SourceError(
                f"Expected numbers in {self.where}, came dtype {self.dtype}.", where=self.where
            )
        self._check_chunks(start, stop)
        with _decoding(self.where):
            rows = () if not self.shape else slice(start, stop)
            return np.asarray(self._dataset[rows])

    def items(self) -> Iterator[bytes]:
        """Yields the rows of a one-dimensional dataset of text or byte frames, one by one.

        Rows are read singly because many rows may point to one stored value: their sum is only
        known by counting, and is held to the same limit as any other dataset.
        """
        if self.is_numeric:
            raise SourceError(
                f"Expected text or bytes in {self.where}, came dtype {self.dtype}.",
                where=self.where,
            )
        left = self._allowed()
        self._check_chunks()
        self._check_pointers()
        for index in range(self.shape[0] if self.shape else 0):
            with _decoding(self.where):
                row = self._dataset[index]
            item = row.tobytes() if isinstance(row, np.ndarray) else _as_bytes(row)
            left -= len(item)
            if left < 0:
                raise self._too_large("more than its share of the file")
            yield item

    def scalar(self) -> Any:
        """Returns a dataset of one value as number or text; None for any other."""
        if self.shape not in ((), (1,)) or not (self.is_numeric or _is_text(self.dtype)):
            return None
        if self._dataset.shape is None:
            return None
        if self.is_numeric:
            return self.read().reshape(-1)[0].item()
        self._check_pointers()
        with _decoding(self.where):
            return plain(self._dataset[()] if not self.shape else self._dataset[0])

    def _check_storage(self) -> None:
        properties = self._dataset.id.get_create_plist()
        if properties.get_external_count():
            raise self._refused("keeps its bytes in other files (external storage)")
        if properties.get_layout() == h5py.h5d.VIRTUAL:
            raise self._refused("is a virtual dataset over other files")
        filters = [properties.get_filter(i)[0] for i in range(properties.get_nfilters())]
        compressors = [code for code in filters if code not in _HARMLESS]
        if len(compressors) > 1 or not set(compressors) <= _COMPRESSORS.keys():
            raise self._refused(
                f"has the filters {compressors}; expected at most one of "
                f"{', '.join(_COMPRESSORS.values())}"
            )
        self._is_compressed = bool(compressors)
        self._is_deflated = _DEFLATE in filters
        chunk = self._dataset.chunks or ()
        largest = max(math.prod(self.shape), math.prod(chunk) if chunk else 0)
        if largest * self.dtype.itemsize > self._allowed():
            raise self._too_large(f"{largest * self.dtype.itemsize:,} bytes")

    def _check_chunks(self, start: int = 0, stop: int | None = None) -> None:
        """Inflates, with a limit, gzip chunks large enough to become more than is free."""
        threshold = self._limits.free_bytes // _DEFLATE_RATIO
        if not self._is_deflated or self._dataset.id.get_storage_size() <= threshold:
            return
        with _decoding(self.where):
            expected = math.prod(self._dataset.chunks) * self.dtype.itemsize + 16
            for offset in self._chunks_over(threshold, start, stop):
                skipped, stored = self._dataset.id.read_direct_chunk(offset)
                if not skipped and len(_inflate(stored, expected + 1)) > expected:
                    raise self._too_large("a chunk that inflates past its size")

    def _chunks_over(self, size: int, start: int, stop: int | None) -> list[tuple[int, ...]]:
        """Returns where the chunks of some rows lie that store more than so many bytes.

        Walking through all of a long dataset for every piece that is read of it would take longer
        than to read it; asking for a single chunk costs as much as walking past fourteen.
        """
        dataset, chunks = self._dataset.id, self._dataset.chunks
        first, last, _ = slice(start, stop).indices(self.shape[0])
        ranges = [range(first // chunks[0] * chunks[0], last, chunks[0])]
        ranges += [range(0, n, c) for n, c in zip(self.shape[1:], chunks[1:], strict=True)]
        if 16 * math.prod(map(len, ranges)) < dataset.get_num_chunks():
            places = itertools.product(*ranges)
            return [at for at in places if dataset.get_chunk_info_by_coord(at).size > size]
        found: list[tuple[int, ...]] = []

        def note(info: Any) -> None:
            if info.size > size and first - chunks[0] < info.chunk_offset[0] < last:
                found.append(info.chunk_offset)

        dataset.chunk_iter(note)
        return found

    def _check_pointers(self) -> None:
        """Compares the lengths that rows of their own lengths state with the file they lie in.

        HDF5 allocates a row as long as its pointer says before it looks for it.
        """
        if self.dtype.kind != "O":
            return
        with _decoding(self.where):
            for stored in self._pointers():
                lengths = np.frombuffer(stored[: len(stored) // 16 * 16], _POINTER)["length"]
                longest = int(lengths.max(initial=0))
                if longest > self._bounds.file_bytes:
                    raise self._too_large(f"a row of {longest:,} bytes")

    def _pointers(self) -> Iterator[bytes]:
        """Yields what is stored for the rows, pieces of whole pointers."""
        dataset = self._dataset.id
        properties = dataset.get_create_plist()
        layout = properties.get_layout()
        filters = [properties.get_filter(i)[0] for i in range(properties.get_nfilters())]
        if layout == h5py.h5d.CONTIGUOUS:
            if dataset.get_offset() is not None:
                with Path(self._bounds.path).open("rb") as file:
                    file.seek(dataset.get_offset())
                    yield file.read(16 * math.prod(self.shape))
            return
        if layout != h5py.h5d.CHUNKED or not set(filters) <= {_DEFLATE, _FLETCHER32}:
            raise self._refused(
                "keeps rows of their own lengths neither plainly nor in gzip chunks without "
                "shuffle, so that how long they are cannot be checked"
            )
        places: list[tuple[int, ...]] = []
        dataset.chunk_iter(lambda info: places.append(info.chunk_offset))
        most = 16 * math.prod(self._dataset.chunks)
        for place in places:
            skipped, stored = dataset.read_direct_chunk(place)
            is_deflated = _DEFLATE in filters and not skipped & 1 << filters.index(_DEFLATE)
            yield _inflate(stored, most) if is_deflated else stored

    def _allowed(self) -> int:
        stored = int(self._dataset.id.get_storage_size())
        ratio = self._limits.ratio if self._is_compressed else 1
        return max(self._limits.free_bytes, ratio * min(stored, self._bounds.file_bytes))

    def _too_large(self, claim: str) -> SourceError:
        return self._refused(
            f"claims {claim}; expected at most {self._allowed():,} bytes of "
            f"{self._dataset.id.get_storage_size():,} stored (a decompression bomb?)"
        )

    def _refused(self, what: str) -> SourceError:
        return SourceError(f"The dataset {self.where} {what}; it is refused.", where=self.where)


def plain(value: Any) -> Any:
    """Returns an HDF5 value as plain Python: number, text, list of them, or None."""
    if isinstance(value, h5py.Empty):
        return None
    if isinstance(value, np.ndarray):
        return plain(value[()]) if value.ndim == 0 else [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, str):
        # h5py carries undecodable bytes as surrogates, which no other format can write.
        return value.encode("utf-8", "replace").decode()
    return value


def json_or_text(value: str) -> Any:
    """Returns what a JSON text holds, or the text itself where it is not JSON."""
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def rows_differ(arrays: Mapping[str, Hdf5Array]) -> str | None:
    """Says which arrays differ in their number of rows; None if all agree."""
    lengths = {name: (array.shape or (0,))[0] for name, array in arrays.items()}
    if len(set(lengths.values())) <= 1:
        return None
    return ", ".join(f"{name} {length}" for name, length in lengths.items())


def _inflate(stored: bytes, at_most: int) -> bytes:
    try:
        return zlib.decompressobj().decompress(stored, at_most)
    except zlib.error:
        return b""  # damage, which HDF5 reports better than we could


def _as_bytes(value: Any) -> bytes:
    return value.encode() if isinstance(value, str) else bytes(value)


def _is_text(dtype: np.dtype[Any]) -> bool:
    return dtype.kind == "S" or h5py.check_string_dtype(dtype) is not None


def _dtype(dataset: Any, where: str) -> np.dtype[Any]:
    try:
        dtype: np.dtype[Any] = dataset.dtype
    except TypeError as error:
        raise SourceError(
            f"Expected numbers or text in {where}, came a type NumPy has no word for.", where=where
        ) from error
    frames = h5py.check_vlen_dtype(dtype)
    if dtype.kind in NUMERIC_KINDS or _is_text(dtype) or frames == np.uint8:
        return dtype
    raise SourceError(
        f"Expected bool, integers, floats or text in {where}, came dtype {dtype}; it is refused.",
        where=where,
    )


@contextmanager
def _decoding(where: str) -> Iterator[None]:
    """Turns what h5py raises on damaged files into one sentence."""
    try:
        yield
    except (OSError, RuntimeError, KeyError, ValueError, UnicodeError) as error:
        said = str(error.args[0] if error.args else error).splitlines()[0]
        raise UnreadableError(
            f"Expected a whole HDF5 file, {where} cannot be read: {said}.", where=where
        ) from error
