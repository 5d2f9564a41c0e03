"""A dataset of an HDF5 file, read only after what it claims was held against what it stores.

The rules are those of `connectors.hdf5`.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from connectors.hdf5_values import NUMERIC_KINDS, Bounds, decoding, dtype_of, is_text, plain
from schemas.errors import SourceError

_DEFLATE, _FLETCHER32 = 1, 3
_COMPRESSORS = {_DEFLATE: "gzip", 4: "szip", 5: "nbit", 6: "scaleoffset", 32000: "lzf"}
_HARMLESS = {2, _FLETCHER32}  # shuffle and checksum keep the size
_POINTER = np.dtype([("length", "<u4"), ("address", "<u8"), ("index", "<u4")])
"""What stands for a row of its own length (addresses have 8 bytes unless a file says otherwise)."""
_DEFLATE_RATIO = 1032  # the most that one byte of a deflate stream can become (zlib, "maximum")


class Hdf5Array:
    """A dataset whose claims have been checked."""

    def __init__(self, dataset: Any, where: str, bounds: Bounds) -> None:
        self._dataset = dataset
        self._bounds = bounds
        self._limits = bounds.limits
        self.where = where
        with decoding(where):
            self.dtype: np.dtype[Any] = dtype_of(dataset, where)
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
        with decoding(self.where):
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
            with decoding(self.where):
                row = self._dataset[index]
            item = row.tobytes() if isinstance(row, np.ndarray) else _as_bytes(row)
            left -= len(item)
            if left < 0:
                raise self._too_large("more than its share of the file")
            yield item

    def scalar(self) -> Any:
        """Returns a dataset of one value as number or text; None for any other."""
        if self.shape not in ((), (1,)) or not (self.is_numeric or is_text(self.dtype)):
            return None
        if self._dataset.shape is None:
            return None
        if self.is_numeric:
            return self.read().reshape(-1)[0].item()
        self._check_pointers()
        with decoding(self.where):
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
        with decoding(self.where):
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
        with decoding(self.where):
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
