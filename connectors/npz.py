"""Opens NumPy's zip archives (.npz) that we did not write ourselves, without trusting them.

Nothing is ever unpickled: a member with Python objects is refused by its header. A member's bytes
are compared with what its header claims before any allocation, and rows are read in slices: a
member that is stored as it is through a memory map, a compressed one by inflating the stream up to
the rows that are asked for.
"""

from __future__ import annotations

import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from schemas.errors import NotFoundError, SourceError

_NUMBERS = "biuf"
_LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip entry: lengths of its name and extra field
_HEADER_BYTES = 10_000
_FREE_BYTES, _RATIO = 64 * 2**20, 200
"""What a member may always become, and how many times its size beyond that (as in HDF5)."""
_SKIP_BYTES = 1 << 20
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class UnreadableError(SourceError):
    """Content that is short or does not inflate: damage, not malice."""


@dataclass(frozen=True)
class NpzArray:
    """One member, its header checked; rows are read when asked for."""

    path: Path
    entry: zipfile.ZipInfo
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    header: int
    """Bytes before the data."""

    @property
    def where(self) -> str:
        """File and member, for messages."""
        return f"{self.path}:{self.entry.filename}"

    @property
    def row_bytes(self) -> int:
        """Bytes of one entry along the first axis."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Returns rows `start:stop`.

        Raises:
            UnreadableError: if they are damaged.
        """
        stop = self.shape[0] if stop is None else min(stop, self.shape[0])
        rows = max(0, stop - start)
        if self.entry.compress_type == zipfile.ZIP_STORED:
            data = self._mapped(start, rows)
        else:
            data = self._inflated(start, rows)
        array = np.frombuffer(data, self.dtype).reshape(rows, *self.shape[1:])
        return array.astype(self.dtype.newbyteorder("="), copy=False)

    def _mapped(self, start: int, rows: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.entry.header_offset)
            name, extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
            begin = self.entry.header_offset + _LOCAL_HEADER.size + name + extra
            file.seek(begin + self.header + start * self.row_bytes)
            return self._whole(file.read(rows * self.row_bytes), rows)

    def _inflated(self, start: int, rows: int) -> bytes:
        with (
            _reading(self.where),
            zipfile.ZipFile(self.path) as archive,
            archive.open(self.entry.filename) as stream,
        ):
            left = self.header + start * self.row_bytes
            while left > 0 and (skipped := len(stream.read(min(left, _SKIP_BYTES)))):
                left -= skipped
            return self._whole(stream.read(rows * self.row_bytes), rows)

    def _whole(self, data: bytes, rows: int) -> bytes:
        if len(data) != rows * self.row_bytes:
            raise UnreadableError(
                f"Expected {rows * self.row_bytes:,} bytes in {self.where}, came {len(data):,}.",
                where=self.where,
            )
        return data


def open_npz(where: str | Path) -> dict[str, NpzArray]:
    """Returns the arrays of an archive by name; reads headers only.

    Raises:
        NotFoundError: if there is no file at `where`.
        SourceError: if it is not a whole archive of plain arrays.
    """
    path = Path(where)
    if not path.exists():
        raise NotFoundError(f"Expected an .npz file, there is nothing at {where}.", where=str(path))
    found: dict[str, NpzArray] = {}
    with _reading(str(path)), zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            name = entry.filename.removesuffix(".npy")
            if name in found or not name.isprintable() or entry.flag_bits & 1:
                raise SourceError(
                    f"Expected members of different names that are not encrypted in {path}, came "
                    f"{entry.filename!r}.",
                    where=str(path),
                )
            if entry.filename.endswith(".npy"):
                found[name] = _open_member(path, archive, entry)
    if not found:
        raise SourceError(f"Expected arrays in {path}, there are none.", where=str(path))
    return found


def _open_member(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> NpzArray:
    where = f"{path}:{entry.filename}"
    if entry.compress_type not in _METHODS:
        raise SourceError(f"Expected {where} stored or deflated, it is neither.", where=where)
    with archive.open(entry) as stream:
        version = np.lib.format.read_magic(stream)
        if version != (1, 0):  # NumPy's own choice for every array of plain numbers
            raise SourceError(
                f"Expected a NumPy array of version 1.0 in {where}, came {version}.", where=where
            )
        try:
            shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(
                stream, max_header_size=_HEADER_BYTES
            )
        except (tokenize.TokenError, SyntaxError, RecursionError, MemoryError) as error:
            raise ValueError("a header that is no dictionary") from error  # of a few kB
        header = stream.tell()
    if dtype.kind not in _NUMBERS or dtype.itemsize > 8 or (is_fortran and len(shape) > 1):
        came = "columns first" if is_fortran and dtype.kind in _NUMBERS else f"dtype {dtype}"
        raise SourceError(
            f"Expected plain numbers, rows first, in {where}, came {came}; it is refused (objects "
            f"would need unpickling, which runs code).",
            where=where,
        )
    stated = header + math.prod(shape) * dtype.itemsize
    # What an archive claims of its own entry is only a claim; no deflate stream can exceed 1032:1.
    is_stored = entry.compress_type == zipfile.ZIP_STORED
    most = entry.compress_size if is_stored else max(_FREE_BYTES, _RATIO * entry.compress_size)
    most = min(most, 1032 * entry.compress_size)
    if stated != entry.file_size or stated > most + 64:
        raise SourceError(
            f"Expected {stated:,} bytes in {where} for shape {shape} of {dtype}, the archive holds "
            f"{entry.file_size:,} in {entry.compress_size:,} stored (a decompression bomb?).",
            where=where,
        )
    return NpzArray(path, entry, tuple(shape), dtype, header)


@contextmanager
def _reading(where: str) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError) as error:
        if isinstance(error, SourceError):
            raise
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UnreadableError(
            f"Expected a whole .npz file, {where} cannot be read: {said}.", where=where
        ) from error
