"""What a put's record holds: its header, its schema if it begins an episode, its rows.

The rows are one Arrow IPC message, so that reading them back copies nothing. A fixed prefix and the
header's JSON are all that a restart reads; rows are looked at when their episode is needed.
"""

from __future__ import annotations

import json
import struct
from typing import Any, NamedTuple

import pyarrow as pa
from pydantic_core import from_json

from pipeline.service.records import ALIGNMENT, Bytes
from schemas.errors import DamagedLogError
from schemas.rollouts import EpisodeFacts, PutHeader

_PREFIX = struct.Struct("<IIIB3x")
"""Bytes of the header, bytes of the schema, rows, whether the episode was had already."""


class StoredHead(NamedTuple):
    """What a restart reads of a put."""

    header: dict[str, Any]
    """As `schemas.rollouts.PutHeader`; it was checked before it was written."""
    rows: int
    is_copy: bool
    """True for the end of an episode that had come before with the same content."""
    schema_at: int
    """Where in the payload its schema begins."""
    schema_bytes: int
    """Of the schema; 0 unless the put begins an episode."""

    @property
    def facts(self) -> EpisodeFacts:
        """The facts of an episode's last put."""
        return EpisodeFacts.model_validate_json(json.dumps(self.header["facts"]))


class StoredPut(NamedTuple):
    """A put as the log holds it."""

    header: dict[str, Any]
    """As `schemas.rollouts.PutHeader`; it was checked before it was written."""
    rows: int
    is_copy: bool
    """True for the end of an episode that had come before with the same content."""
    schema: memoryview
    """Empty unless the put begins an episode."""
    body: memoryview


def encode(
    header: PutHeader,
    rows: pa.RecordBatch,
    *,
    is_copy: bool = False,
    schema: bytes | None = None,
) -> list[Bytes]:
    """Returns the payload of a put's record in pieces.

    Args:
        header: the put's.
        rows: the put's.
        is_copy: for the end of an episode that had come before with the same content.
        schema: that of the rows as `schema_bytes` returns it, if it is at hand.
    """
    text = header.encoded()
    schema = b"" if header.start else schema or schema_bytes(rows.schema)
    prefix = _PREFIX.pack(len(text), len(schema), rows.num_rows, is_copy)
    return [prefix + _aligned(text) + _aligned(schema), rows.serialize()]


def as_copy(parts: list[Bytes]) -> list[Bytes]:
    """Returns a payload marked as the end of an episode that had come before."""
    first = bytearray(parts[0])
    first[_PREFIX.size - 4] = 1
    return [bytes(first), *parts[1:]]


def decode(payload: bytes | memoryview) -> StoredPut:
    """Inverse of `encode`.

    Raises:
        DamagedLogError: if the payload is none that this release writes.
    """
    header, rows, is_copy, begun, schema = decode_head(payload)
    data, body = memoryview(payload), begun + _padded(schema)
    return StoredPut(header, rows, is_copy, data[begun : begun + schema], data[body:])


def decode_head(payload: bytes | memoryview) -> StoredHead:
    """Returns all of a put but its rows.

    Raises:
        DamagedLogError: if the payload is none that this release writes.
    """
    try:
        text, schema, rows, is_copy = _PREFIX.unpack_from(payload)
        said = payload[_PREFIX.size : _PREFIX.size + text]
        header = from_json(said if isinstance(said, bytes) else bytes(said))
        return StoredHead(header, rows, bool(is_copy), _PREFIX.size + _padded(text), schema)
    except (ValueError, struct.error) as error:
        raise DamagedLogError(
            f"Expected a put in the log, came something else ({error}); start this log with the "
            f"release that wrote it."
        ) from None


def plain(says: dict[str, Any]) -> bytes:
    """Returns the payload of a record that is no put."""
    return json.dumps(says, separators=(",", ":")).encode()


def schema_bytes(schema: pa.Schema) -> bytes:
    """Returns the bytes of a schema, which go with the put that begins an episode."""
    data: bytes = schema.serialize().to_pybytes()
    return data


def read_schema(data: bytes | memoryview) -> pa.Schema:
    """Returns the schema of a put that begins an episode."""
    return pa.ipc.read_schema(pa.py_buffer(data))


def read_rows(stored: StoredPut, schema: pa.Schema) -> pa.RecordBatch:
    """Returns the rows of a put."""
    return pa.ipc.read_record_batch(pa.py_buffer(stored.body), schema)


def _padded(length: int) -> int:
    return -(-length // ALIGNMENT) * ALIGNMENT


def _aligned(data: bytes) -> bytes:
    return data + bytes(_padded(len(data)) - len(data))
