"""What an HDF5 file may claim, what its values are in Python, and its failures in a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np

from schemas.errors import SourceError

NUMERIC_KINDS = "biuf"


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
class Bounds:
    """The limits with the size of the file they hold for."""

    limits: Limits
    file_bytes: int
    path: str


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


def is_text(dtype: np.dtype[Any]) -> bool:
    """True for text, of fixed or any length."""
    return dtype.kind == "S" or h5py.check_string_dtype(dtype) is not None


def dtype_of(dataset: Any, where: str) -> np.dtype[Any]:
    """Returns the dtype of an h5py dataset.

    Raises:
        SourceError: for any but numbers, text and byte frames.
    """
    try:
        dtype: np.dtype[Any] = dataset.dtype
    except TypeError as error:
        raise SourceError(
            f"Expected numbers or text in {where}, came a type NumPy has no word for.", where=where
        ) from error
    frames = h5py.check_vlen_dtype(dtype)
    if dtype.kind in NUMERIC_KINDS or is_text(dtype) or frames == np.uint8:
        return dtype
    raise SourceError(
        f"Expected bool, integers, floats or text in {where}, came dtype {dtype}; it is refused.",
        where=where,
    )


@contextmanager
def decoding(where: str) -> Iterator[None]:
    """Turns what h5py raises on damaged files into one sentence."""
    try:
        yield
    except (OSError, RuntimeError, KeyError, ValueError, UnicodeError) as error:
        said = str(error.args[0] if error.args else error).splitlines()[0]
        raise UnreadableError(
            f"Expected a whole HDF5 file, {where} cannot be read: {said}.", where=where
        ) from error
