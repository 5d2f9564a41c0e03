"""Opens Arrow and Parquet files that we did not write ourselves, without trusting them.

An Arrow file is memory-mapped and its buffers are used where they lie, so it can never become
larger than it is, unless its record batches are compressed: then a few bytes may claim gigabytes.
The writers we read from never compress them, so such batches are refused. A Parquet file is held
to what its footer and its pages say it becomes (`connectors.parquet_footer`): at most 200 times
the file, where that is more than 64 MiB. Every table is validated in full before anything reads it:
Arrow trusts its own offsets, and wrong ones end the process.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from connectors.parquet_footer import claimed_bytes
from schemas.errors import SourceError

FREE_BYTES = 64 * 2**20
RATIO = 200
MAGIC, _END = b"ARROW1\0\0", b"ARROW1"
# Slots of the flatbuffer tables in Arrow's format/Message.fbs.
_MESSAGE_HEADER, _BATCH_BUFFERS, _BATCH_COMPRESSION = 2, 2, 3


def read_ipc(path: Path) -> pa.Table:
    """Reads an Arrow IPC file.

    Raises:
        SourceError: if it is not a whole, uncompressed one.
    """
    try:
        stream = _whole(path).slice(8)  # the file format is the stream format between two marks
        for message in pa.ipc.MessageReader.open_stream(stream):
            if message.type != "schema" and not _is_plain_batch(message):
                raise SourceError(
                    f"Expected plain record batches in {path}, they are compressed or hold "
                    f"dictionaries; that could hide any size, write them without.",
                    where=str(path),
                )
        table = pa.ipc.open_stream(stream).read_all()
        _check_names(table.schema)
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, struct.error) as error:
        raise _damaged(path, error) from error
    return table


@dataclass(frozen=True)
class IpcFile:
    """An Arrow file's schema and its record batches, each decoded when asked for."""

    path: Path
    schema: pa.Schema
    messages: tuple[pa.Message, ...]

    def read(self, index: int) -> pa.Table:
        """Decodes one record batch.

        Raises:
            SourceError: if it is damaged.
        """
        try:
            batch = pa.ipc.read_record_batch(self.messages[index], self.schema)
            table = pa.Table.from_batches([batch])
            table.validate(full=True)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise _damaged(self.path, error) from error
        return table


def open_ipc(path: Path) -> IpcFile:
    """Opens an Arrow or Feather file, whose batches may be compressed (Feather's usually are).

    Raises:
        SourceError: if it is not a whole one, or its buffers claim more than they may.
    """
    try:
        data = _whole(path)
        first, *batches = pa.ipc.MessageReader.open_stream(data.slice(8))
        schema = pa.ipc.read_schema(first)
        _check_names(schema)
        if any(message.type != "record batch" for message in batches):
            raise SourceError(
                f"Expected record batches without dictionaries in {path}; write texts as texts.",
                where=str(path),
            )
        claimed = sum(map(_claimed_by_batch, batches))
        allowed = max(FREE_BYTES, RATIO * data.size)
        if claimed > allowed:
            raise SourceError(
                f"Expected at most {allowed:,} bytes in {path}, it claims {claimed:,} "
                f"(a decompression bomb?).",
                where=str(path),
            )
    except (pa.ArrowException, OSError, ValueError, struct.error) as error:
        raise _damaged(path, error) from error
    return IpcFile(path, schema, tuple(batches))


def _whole(path: Path) -> pa.Buffer:
    """The bytes of a file that has both of its marks."""
    data = pa.memory_map(str(path)).read_buffer()
    if data.size < 16 or data[:8].to_pybytes() != MAGIC or data[-6:].to_pybytes() != _END:
        raise SourceError(
            f"Expected a whole Arrow file, {path} lacks its first or last mark.",
            where=str(path),
        )
    return data


def read_parquet(path: Path) -> pa.Table:
    """Reads a Parquet file.

    Raises:
        SourceError: if it is not a whole one, or claims more than it may.
    """
    with open_parquet(path) as file:
        return read_groups(file, path)


@contextmanager
def open_parquet(path: Path) -> Iterator[pq.ParquetFile]:
    """Opens a Parquet file whose footer claims no more than it may; rows: `read_groups`.

    Raises:
        SourceError: if it is not a whole one, or claims more than it may.
    """
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _damaged(path, error) from error
    with file:
        try:
            claimed = _claimed_bytes(file, path)
            allowed = max(FREE_BYTES, RATIO * path.stat().st_size)
            _check_names(file.schema_arrow)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise _damaged(path, error) from error
        if claimed > allowed:
            raise SourceError(
                f"Expected at most {allowed:,} bytes in {path}, it claims {claimed:,} "
                f"(a decompression bomb?).",
                where=str(path),
            )
        yield file


def read_groups(
    file: pq.ParquetFile,
    path: Path,
    groups: Sequence[int] | None = None,
    columns: Sequence[str] | None = None,
) -> pa.Table:
    """Reads some row groups and columns of an open Parquet file, all of them by default.

    Raises:
        SourceError: if they cannot be read.
    """
    try:
        chosen = range(file.metadata.num_row_groups) if groups is None else groups
        names = None if columns is None else list(columns)
        table = file.read_row_groups(list(chosen), columns=names, use_threads=False)
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _damaged(path, error) from error
    return table


def _claimed_bytes(file: pq.ParquetFile, path: Path) -> int:
    """Bytes that a file becomes when it is read, as its footer and pages say."""
    width = sum(_width(field.type) for field in file.schema_arrow)
    return int(max(file.metadata.num_rows * width, claimed_bytes(path)))


def _check_names(fields: pa.Schema | pa.DataType) -> None:
    """Fails with ValueError on a name that is no text, before anyone asks for it."""
    for index in range(len(fields) if isinstance(fields, pa.Schema) else fields.num_fields):
        field = fields.field(index)
        if not field.name.isprintable():
            raise ValueError(f"the name {field.name!r}")
        _check_names(field.type)


def _width(kind: pa.DataType) -> int:
    """Bytes of one value of a type; 0 for types of no fixed size."""
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size) * _width(kind.value_type)
    if pa.types.is_struct(kind):
        return sum(_width(kind.field(i).type) for i in range(kind.num_fields))
    if pa.types.is_primitive(kind) or pa.types.is_boolean(kind):
        return max(1, int(kind.bit_width) // 8)
    return 0


def _is_plain_batch(message: pa.Message) -> bool:
    """True for a record batch whose flatbuffer has no table `compression`."""
    if message.type != "record batch":
        return False
    data = message.metadata.to_pybytes()
    header = _slot(data, struct.unpack_from("<I", data, 0)[0], _MESSAGE_HEADER)
    if header is None:
        return False
    batch = header + struct.unpack_from("<I", data, header)[0]
    return _slot(data, batch, _BATCH_COMPRESSION) is None


def _claimed_by_batch(message: pa.Message) -> int:
    """Bytes that the compressed buffers of a record batch say they become."""
    if _is_plain_batch(message):
        return 0
    data = message.metadata.to_pybytes()
    header = _slot(data, struct.unpack_from("<I", data, 0)[0], _MESSAGE_HEADER)
    batch = 0 if header is None else header + struct.unpack_from("<I", data, header)[0]
    buffers = _slot(data, batch, _BATCH_BUFFERS)
    if buffers is None:
        return 0
    vector = buffers + struct.unpack_from("<I", data, buffers)[0]
    count = struct.unpack_from("<I", data, vector)[0]
    claimed = 0
    for at in range(count):
        offset, length = struct.unpack_from("<qq", data, vector + 4 + 16 * at)
        if length:
            stated = struct.unpack_from("<q", message.body, offset)[0]
            claimed += length if stated < 0 else stated
    return int(claimed)


def _slot(data: bytes, table: int, index: int) -> int | None:
    """Position of a flatbuffer table's field, or None where it has its default."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    size = struct.unpack_from("<H", data, vtable)[0]
    entry = 4 + 2 * index
    if entry >= size:
        return None
    offset = struct.unpack_from("<H", data, vtable + entry)[0]
    return table + offset if offset else None


def _damaged(path: Path, error: Exception) -> SourceError:
    said = str(error).splitlines()[0] if str(error) else type(error).__name__
    return SourceError(
        f"Expected a whole Arrow or Parquet file, {path} cannot be read: {said}.", where=str(path)
    )
