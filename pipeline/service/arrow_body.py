"""An Arrow IPC stream that came whole, as batches with their headers; looked at before it is read.

Reading a compressed message may take a thousand times its size of memory, and a dictionary or a
tensor has no place in a put, so the kinds of all messages are looked at first. That copies nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pyarrow as pa

from schemas.errors import PutError, TooLargeError
from schemas.rollouts import HEADER_KEY

MAX_MESSAGES = 1 << 16
_HEADER, _COMPRESSION = 2, 3
"""Numbers of fields in Arrow's `Message` and `RecordBatch` (format/Message.fbs)."""


def batches_in(body: bytes) -> Iterator[tuple[bytes, pa.RecordBatch]]:
    """Yields the header and the rows of each batch of a stream; neither is checked yet.

    Raises:
        TooLargeError: for more messages than a push has.
        PutError: if the bytes are no stream of plain batches with headers.
    """
    try:
        _look(body)
        with pa.ipc.open_stream(body) as reader:
            while True:
                try:
                    read = reader.read_next_batch_with_custom_metadata()
                except StopIteration:
                    return
                header = dict(read.custom_metadata or {}).get(HEADER_KEY)
                if header is None:
                    raise PutError(
                        f"Expected a header under {HEADER_KEY.decode()!r} in the custom metadata "
                        f"of every batch, came none."
                    )
                yield header, read.batch
    except (pa.ArrowException, OSError, UnicodeError, OverflowError, struct.error) as error:
        said = str(error).strip().rstrip(".")[:200]
        raise PutError(
            f"Expected an Arrow IPC stream of schemas.puts, came a body that is none ({said}); "
            f"write it with pyarrow.ipc.new_stream."
        ) from None


def _look(body: bytes) -> None:
    """Checks that a stream is a schema and plain record batches."""
    number = 0
    for number, message in enumerate(pa.ipc.MessageReader.open_stream(body)):
        if number > MAX_MESSAGES:
            raise TooLargeError(f"Expected at most {MAX_MESSAGES} batches in a request.")
        if message.type != ("record batch" if number else "schema"):
            raise PutError(f"Expected a schema and record batches, came a {message.type}.")
        if number and _is_compressed(memoryview(message.metadata)):
            raise PutError("Expected batches that are not compressed, came compressed ones.")
    if not number:
        raise PutError("Expected at least one record batch, came none.")


def _is_compressed(message: memoryview) -> bool:
    (root,) = struct.unpack_from("<I", message, 0)
    at = _field(message, root, _HEADER)
    if at is None:
        raise PutError("Expected a record batch, came a message without a header.")
    (offset,) = struct.unpack_from("<I", message, at)
    return _field(message, at + offset, _COMPRESSION) is not None


def _field(message: memoryview, table: int, number: int) -> int | None:
    """Returns where a field of a flatbuffer's table is; None if it is left out."""
    (back,) = struct.unpack_from("<i", message, table)
    vtable = table - back
    if vtable < 0:
        raise PutError("Expected a record batch, came a message that points before its start.")
    (size,) = struct.unpack_from("<H", message, vtable)
    slot = 4 + 2 * number
    if slot + 2 > size:
        return None
    (offset,) = struct.unpack_from("<H", message, vtable + slot)
    return table + offset if offset else None
