"""Seeded changes to valid files.

Bytes are flipped, cut, put in and moved, lengths lied about; and, where the format is understood,
values are changed inside what is otherwise whole.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from connectors.rlds_records import masked_crc

Random = np.random.Generator
LENGTHS = (0, 1, 2, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**64 - 1)
VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 1, 2**31, 2**63, 2**64, 10**30, -(10**30), 0.5, 1e308, float("nan")),
    *(float("inf"), "", "x", "../../../etc/passwd", "/etc/passwd", "file:///etc/passwd", "a\0b"),
    *("\ud800", "é" * 300, "{}", "{a.b}", "%s", [], {}, [[]], [None], [-1], [2**40, 2**40], ["x"]),
    *({"a": {"b": {}}}, "|O", "<f4", "float32", "video", "image", "9.9", "v99.0", "string"),
)


def mutate(files: dict[str, bytes], random: Random) -> dict[str, bytes]:
    """Returns the files of a dataset, one or two of them changed; nothing else is random."""
    changed = dict(files)
    for _ in range(1 if random.random() < 0.8 else 2):
        names = sorted(changed)
        # Small files hold what decides about the large ones.
        name = names[int(random.integers(len(names)))]
        data = changed[name]
        aware = _aware(name, data)
        try:
            if aware is not None and random.random() < 0.6:
                changed[name] = aware(data, random)
            else:
                changed[name] = change_bytes(data, random)
        except UnmutableError:
            changed[name] = change_bytes(data, random)
        if random.random() < 0.01 and len(changed) > 1:
            del changed[names[int(random.integers(len(names)))]]
    return changed


class UnmutableError(Exception):
    """A structured change that this file (changed before) does not take."""


def change_bytes(data: bytes, random: Random) -> bytes:
    """Flips, cuts, inserts, moves or overwrites some bytes."""
    found = bytearray(data)
    size = max(1, len(found))
    # Heads and tails hold magic words, lengths and footers.
    at = int(random.integers(size))
    if random.random() < 0.4:
        at = min(size - 1, int(random.integers(64)))
        at = at if random.random() < 0.5 else size - 1 - at
    match int(random.integers(8)):
        case 0 | 1:
            for _ in range(int(random.integers(1, 9))):
                place = at if random.random() < 0.5 else int(random.integers(size))
                found[place : place + 1] = bytes([int(random.integers(256))])
        case 2:
            if found:
                found[min(at, len(found) - 1)] ^= 1 << int(random.integers(8))
        case 3:
            del found[at:]
        case 4:
            found[at:at] = random.bytes(int(random.integers(1, 40)))
        case 5:
            length = int(random.integers(1, 200))
            start = int(random.integers(size))
            found[at : at + length] = found[start : start + length]
        case 6:
            del found[at : at + int(random.integers(1, 100))]
        case _:
            value = LENGTHS[int(random.integers(len(LENGTHS)))]
            width = (1, 2, 4, 8)[int(random.integers(4))]
            order = "<>"[int(random.integers(2))]
            packed = struct.pack(f"{order}Q", value)
            found[at : at + width] = packed[:width] if order == "<" else packed[-width:]
    return bytes(found)


def _aware(name: str, data: bytes) -> Callable[[bytes, Random], bytes] | None:
    suffix = Path(name).suffix
    if suffix in (".json", ".jsonl") or name.endswith((".zarray", ".zattrs", ".zgroup")):
        return _change_json
    if data.startswith(b"\x89HDF"):
        return _change_hdf5
    if data.startswith(b"PK"):
        return _change_zip
    if data.startswith(b"PAR1"):
        return _change_parquet
    if ".tfrecord" in name:
        return _change_tfrecord
    if suffix in (".yaml", ".yml"):
        return _change_lines
    return None


# -- JSON ----------------------------------------------------------------------------------------


def _change_json(data: bytes, random: Random) -> bytes:
    """Changes one value somewhere in a JSON document, or in one of its lines."""
    lines = data.decode("utf-8", "surrogateescape").splitlines()
    at = int(random.integers(len(lines))) if data.count(b"\n{") and lines else None
    try:
        document = json.loads(lines[at] if at is not None else data)
    except (ValueError, RecursionError) as error:
        raise UnmutableError from error
    text = json.dumps(_changed(document, random))
    if random.random() < 0.05:
        text = "[" * 100_000 + text
    if at is None:
        return text.encode("utf-8", "surrogatepass")
    lines[at] = text
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _changed(node: Any, random: Random) -> Any:
    deeper = isinstance(node, (dict, list)) and len(node) and random.random() < 0.85
    if not deeper:
        return VALUES[int(random.integers(len(VALUES)))]
    if isinstance(node, list):
        at = int(random.integers(len(node)))
        return [*node[:at], _changed(node[at], random), *node[at + 1 :]]
    key = sorted(node)[int(random.integers(len(node)))]
    match int(random.integers(8)):
        case 0:
            return {k: v for k, v in node.items() if k != key}
        case 1:
            return {(f"../{k}" if k == key else k): v for k, v in node.items()}
    return {**node, key: _changed(node[key], random)}


# -- HDF5, npz, zip ------------------------------------------------------------------------------


def _change_hdf5(data: bytes, random: Random) -> bytes:
    """Puts another dataset, group, link or attribute in the place of one."""
    buffer = io.BytesIO(data)
    try:
        with h5py.File(buffer, "r+") as file:
            paths: list[str] = []
            file.visit(paths.append)
            path = paths[int(random.integers(len(paths)))]
            node = file[path]
            choice = int(random.integers(7))
            if choice == 0 and len(node.attrs):
                name = sorted(node.attrs)[int(random.integers(len(node.attrs)))]
                node.attrs[name] = _hdf5_value(random)
            elif choice == 1 and isinstance(node, h5py.Dataset) and node.size:
                rows = node[()]
                flat = np.atleast_1d(np.asarray(rows)).reshape(-1)
                if flat.dtype.kind in "biuf":
                    flat[int(random.integers(flat.size))] = (0, 1, 2, 255)[int(random.integers(4))]
                    if flat.dtype.kind == "f" and random.random() < 0.5:
                        flat[int(random.integers(flat.size))] = np.nan
                    node[()] = flat.reshape(np.shape(rows))
            elif choice == 2:
                del file[path]
            elif choice == 3:
                del file[path]
                file[path] = (h5py.SoftLink("/"), h5py.ExternalLink("/etc/passwd", "/"))[
                    int(random.integers(2))
                ]
            elif choice == 4 and isinstance(node, h5py.Dataset) and node.shape:
                rows = node[: max(0, len(node) - 1)]
                del file[path]
                file[path] = rows
            else:
                del file[path]
                file[path] = _hdf5_value(random)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError) as error:
        raise UnmutableError from error
    return buffer.getvalue()


def _hdf5_value(random: Random) -> Any:
    values: tuple[Any, ...] = (
        *(0, -1, 2**62, 0.5, np.nan, "", "x", "{" * 1000, b"\xff\xfe", h5py.Empty("f4")),
        *(np.zeros(0), np.zeros((0, 3)), np.zeros((5, 0)), np.zeros((2, 2, 2)), np.zeros(14)),
        *(np.array(["a", "b"], "S1"), np.zeros(3, [("a", "f4"), ("b", "i8")]), np.zeros(3, "c16")),
        *(np.arange(14) % 2 == 0, np.full(14, np.nan), np.zeros((14, 3), ">f8"), np.zeros(5, "?")),
        *(np.full(14, 2**63, "u8"), np.full((14, 3), 1e30), np.zeros((14, 1), "f2")),
    )
    return values[int(random.integers(len(values)))]


def _change_zip(data: bytes, random: Random) -> bytes:
    """Changes one member of an archive, which stays whole: an npy header or some bytes."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, NotImplementedError) as error:
        raise UnmutableError from error
    except Exception as error:  # zlib's own, of what was changed before
        raise UnmutableError from error
    if not members:
        raise UnmutableError
    name = sorted(members)[int(random.integers(len(members)))]
    member = members[name]
    if name.endswith((".zarray", ".json", ".zgroup", ".zattrs")):
        members[name] = _change_json(member, random)
    elif member.startswith(b"\x93NUMPY") and random.random() < 0.5:
        members[name] = _change_npy(member, random)
    elif random.random() < 0.1:
        members[("../" + name, "/" + name, name + "/x", "")[int(random.integers(4))]] = member
    elif random.random() < 0.1:
        del members[name]
    else:
        members[name] = change_bytes(member, random)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for one, content in members.items():
            archive.writestr(one or "empty", content)
    return buffer.getvalue()


def _change_npy(data: bytes, random: Random) -> bytes:
    size = int.from_bytes(data[8:10], "little")
    header = data[10 : 10 + size].decode("latin-1", "replace")
    edits = (
        ("(", "(-1,", 1),
        ("(", "(99999999999,", 1),
        ("<f4", "|O", 1),
        ("<f4", "<f8", 1),
        ("<f4", ">f4", 1),
        ("<f4", "<U9", 1),
        ("False", "True", 1),
        ("'shape'", "'shape': (1,), 'shape'", 1),
        ("{", "{'x': __import__('os'),", 1),
        (")", ",0)", 1),
        ("(", "(True,", 1),
    )
    old, new, count = edits[int(random.integers(len(edits)))]
    text = header.replace(old, new, count).rstrip().encode("latin-1", "replace")
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return data[:8] + len(text).to_bytes(2, "little") + text + data[10 + size :]


# -- Parquet, TFRecord, text ---------------------------------------------------------------------


def _change_parquet(data: bytes, random: Random) -> bytes:
    """Changes the footer's bytes, or one column of the table, written anew."""
    if random.random() < 0.4 and len(data) > 12:
        size = min(int.from_bytes(data[-8:-4], "little"), len(data) - 12)
        body, footer = data[: len(data) - 8 - size], data[len(data) - 8 - size : -8]
        footer = change_bytes(footer, random)
        return body + footer + len(footer).to_bytes(4, "little") + b"PAR1"
    try:
        table = pq.read_table(io.BytesIO(data))
        at = int(random.integers(table.num_columns))
        table = table.set_column(at, table.field(at).name, _column(table.column(at), random))
        if random.random() < 0.2:
            table = table.slice(0, int(random.integers(table.num_rows + 1)))
        if random.random() < 0.1:
            table = table.drop_columns([table.field(at).name])
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        return buffer.getvalue()
    except (pa.ArrowException, OSError, ValueError, TypeError, OverflowError) as error:
        raise UnmutableError from error


def _column(column: pa.ChunkedArray, random: Random) -> pa.Array:
    rows = column.to_pylist()
    if not rows:
        raise UnmutableError
    at = int(random.integers(len(rows)))
    value = rows[at]
    if isinstance(value, bytes) and random.random() < 0.8:
        rows[at] = change_bytes(value, random)
        return pa.array(rows, column.type)
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes) and random.random() < 0.8:
        rows[at] = {**value, "bytes": change_bytes(value["bytes"], random)}
        return pa.array(rows, column.type)
    if isinstance(value, dict) and "path" in value:
        rows[at] = {**value, "path": "../../etc/passwd", "bytes": None}
        return pa.array(rows, column.type)
    if isinstance(value, str) and random.random() < 0.6:
        rows[at] = str(VALUES[int(random.integers(len(VALUES)))]).replace("\ud800", "?")
        return pa.array(rows, column.type)
    if isinstance(value, list) and random.random() < 0.6:
        rows[at] = (value[:-1], [*value, *value], [], None)[int(random.integers(4))]
        kind = column.type
        return pa.array(rows, pa.list_(kind.value_type) if kind.num_fields else kind)
    choices: tuple[Callable[[], pa.Array], ...] = (
        lambda: pa.array([*rows[:at], None, *rows[at + 1 :]], column.type),
        lambda: pa.nulls(len(rows)),
        lambda: pa.array(["x"] * len(rows)),
        lambda: pa.array([2**62] * len(rows)),
        lambda: pa.array([float("nan")] * len(rows)),
        lambda: pa.array([-1] * len(rows), pa.int8()),
        lambda: pa.array([[None]] * len(rows), pa.list_(pa.float32())),
        lambda: pa.array([[[1.0]], []] * len(rows), pa.list_(pa.list_(pa.float64())))[: len(rows)],
        lambda: pa.array([{"a": 1}] * len(rows)),
        lambda: pa.array([rows[at]] * len(rows), column.type),
    )
    return choices[int(random.integers(len(choices)))]()


def _change_tfrecord(data: bytes, random: Random) -> bytes:
    """Changes the content of a record; its length and checksums are right again."""
    records = []
    at = 0
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 8], "little")
        if at + 16 + length > len(data):
            break
        records.append(data[at + 12 : at + 12 + length])
        at += 16 + length
    if not records:
        raise UnmutableError
    chosen = int(random.integers(len(records)))
    records[chosen] = change_bytes(records[chosen], random)
    found = b""
    for record in records:
        head = struct.pack("<Q", len(record))
        found += head + struct.pack("<I", masked_crc(head))
        found += record + struct.pack("<I", masked_crc(record))
    return found


def _change_lines(data: bytes, random: Random) -> bytes:
    lines = data.decode("utf-8", "replace").splitlines()
    at = int(random.integers(max(1, len(lines))))
    values = (*map(repr, VALUES), "&a [*a, *a]", "!!python/name:os.system", "? [x]", "<<: *x", "|")
    said = values[int(random.integers(len(values)))]
    key = lines[at].split(":")[0] if lines else "into"
    lines[at : at + 1] = [f"{key}: {said}"]
    return "\n".join(lines).encode("utf-8", "replace")
