"""Minari's Arrow and Parquet storage: a folder per episode, one row per observation.

Actions, rewards and flags are padded by one row that reading drops. Dict and Tuple spaces are
structs, arrays of any shape are fixed-size lists that the space (or, for infos, the field's
metadata `shape`) gives back their shape; seed and options are in the folder's `metadata.json`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from connectors.arrow_files import read_ipc, read_parquet
from connectors.minari_images import decode_frames
from connectors.minari_layout import METADATA_FILE, Dataset, Record, read_json
from connectors.minari_spaces import Space
from schemas.errors import EpisodeError, SourceError
from schemas.nesting import Nested

_READERS: Mapping[str, Callable[[Path], pa.Table]] = {"arrow": read_ipc, "parquet": read_parquet}
_SHAPE = b"shape"
_PADDED = b"padded"
"""Our own mark on an info whose last row is padding; Minari ignores it."""


def episode_lengths(dataset: Dataset) -> list[int]:
    """Returns the steps that each episode's metadata states, 0 where it states none.

    Raises:
        SourceError: if an episode's folder is missing or its metadata cannot be read.
    """
    lengths = []
    for index in range(dataset.episodes):
        steps = read_json(dataset.folder / str(index) / METADATA_FILE).get("total_steps")
        lengths.append(steps if isinstance(steps, int) and steps >= 0 else 0)
    return lengths


def read_records(dataset: Dataset, start: int, stop: int) -> Iterator[Record | EpisodeError]:
    """Yields episodes `start:stop`; one that cannot be read as its error."""
    for index in range(start, stop):
        folder = dataset.folder / str(index)
        try:
            yield _read_record(dataset, folder)
        except EpisodeError as fault:
            yield fault
        except SourceError as error:
            yield EpisodeError(error.message, code="unreadable", where=error.where)
        except pa.ArrowException as error:  # parts of one episode that do not fit together
            yield EpisodeError(
                f"Expected parts of one kind in {folder}, came others: {error}.",
                code="unreadable",
                where=str(folder),
            )


def write_record(folder: Path, index: int, storage: str, record: Record) -> None:
    """Writes one episode's folder, as Minari lays it out."""
    target = folder / str(index)
    target.mkdir()
    rows = len(record.rewards) + 1
    columns = {
        "observations": _encode(record.observations, rows),
        "actions": _encode(record.actions, rows),
        "rewards": _encode(record.rewards, rows),
        "terminations": _encode(record.terminations, rows),
        "truncations": _encode(record.truncations, rows),
    }
    if record.infos:
        columns["infos"] = _encode_infos(record.infos, rows)
    table = pa.table(columns)
    if storage == "parquet":
        pq.write_table(table, target / "part-0.parquet")
    else:
        # One batch: Minari's reader takes one batch per episode.
        with pa.ipc.new_file(str(target / "part-0.arrow"), table.schema) as file:
            file.write_table(table, max_chunksize=max(1, rows))
    text = json.dumps({"id": index, **record.attributes})
    (target / METADATA_FILE).write_text(text, "utf-8")


def _read_record(dataset: Dataset, folder: Path) -> Record:
    observation_space, action_space = dataset.observation_space, dataset.action_space
    if observation_space is None or action_space is None:
        raise SourceError(
            f"Expected both spaces in the metadata of {dataset.folder}: {dataset.storage} storage "
            f"does not keep shapes itself.",
            where=str(dataset.folder),
        )
    parts = _parts(folder)
    if not parts:
        raise EpisodeError(
            f"Expected a data file in {folder}, there is none.",
            code="unreadable",
            where=str(folder),
        )
    links = [part.name for part in (folder, *parts) if part.is_symlink()]
    if links:
        raise SourceError(
            f"Expected data files in {folder} itself, {links[0]} is a link; links are never "
            f"followed.",
            where=str(folder),
        )
    reader = _READERS[dataset.storage]
    table = pa.concat_tables([reader(part) for part in parts])

    def column(name: str) -> pa.Array:
        if table.column_names.count(name) != 1:
            raise SourceError(
                f"Expected one column {name!r} in {folder}, there is "
                f"{', '.join(table.column_names)}.",
                where=str(folder),
            )
        return table[name].combine_chunks()

    where, steps = str(folder), max(0, table.num_rows - 1)
    return Record(
        observations=_decode(column("observations"), observation_space, where, dataset.is_jpeg),
        actions=_decode(column("actions")[:steps], action_space, where, dataset.is_jpeg),
        rewards=_numbers(column("rewards")[:steps], (), where),
        terminations=_numbers(column("terminations")[:steps], (), where),
        truncations=_numbers(column("truncations")[:steps], (), where),
        infos=_decode_infos(column("infos"), where) if "infos" in table.column_names else {},
        attributes=_attributes(read_json(folder / METADATA_FILE)),
    )


def _parts(folder: Path) -> list[Path]:
    """Data files of one episode in the order they were written: `part-10` after `part-9`."""
    names = [p.name for p in folder.iterdir() if p.name[0] not in "_." and p.name != METADATA_FILE]
    return [
        folder / n for n in sorted(names, key=lambda n: [int(d) for d in re.findall(r"\d+", n)])
    ]


def _attributes(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Episode metadata with its options flattened, as the HDF5 storage has them."""
    flat: dict[str, Any] = {}
    for name, value in metadata.items():
        inner = value.items() if name == "options" and isinstance(value, dict) else ()
        flat.update({f"{name}/{key}": option for key, option in inner} if inner else {name: value})
    return flat


def _decode(array: pa.Array, space: Space, where: str, is_jpeg: bool) -> Nested:
    if space.kind in ("Dict", "Tuple"):
        parts = {}
        for key, child in space.children.items():
            if not pa.types.is_struct(array.type) or array.type.get_field_index(key) < 0:
                raise SourceError(
                    f"Expected a struct with the field {key!r} in {where}, came {array.type}.",
                    where=where,
                )
            parts[key] = _decode(_field(array, key, where), child, where, is_jpeg)
        return parts if space.kind == "Dict" else tuple(parts.values())
    if space.is_image and is_jpeg and pa.types.is_binary(array.type):
        return decode_frames((value.as_py() or b"" for value in array), space, where)
    return _numbers(array, space.shape, where)


def _field(array: pa.Array, key: str | int, where: str) -> pa.Array:
    _refuse_nulls(array, where)
    return array.field(key)


def _numbers(array: pa.Array, shape: tuple[int, ...], where: str) -> np.ndarray:
    """Returns numbers or fixed-size lists of numbers as (rows, *shape)."""
    _refuse_nulls(array, where)
    rows, values = len(array), array
    while pa.types.is_fixed_size_list(values.type):
        values = values.flatten()
        _refuse_nulls(values, where)
    kind = values.type
    if not (pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise SourceError(f"Expected numbers in {where}, came {array.type}.", where=where)
    numbers = values.to_numpy(zero_copy_only=False)
    if numbers.size != rows * int(np.prod(shape, dtype=np.int64)):
        raise EpisodeError(
            f"Expected {rows} rows of shape {shape} in {where}, came {numbers.size} values.",
            code="length_mismatch",
            where=where,
        )
    return np.asarray(numbers.reshape(rows, *shape))


def _decode_infos(array: pa.Array, where: str, prefix: str = "") -> dict[str, np.ndarray]:
    """Returns the numeric infos by path; others are left out."""
    infos: dict[str, np.ndarray] = {}
    for index in range(array.type.num_fields if pa.types.is_struct(array.type) else 0):
        field = array.type.field(index)
        values = _field(array, index, where)
        name, kind, shape = prefix + field.name, field.type, (field.metadata or {}).get(_SHAPE)
        if pa.types.is_struct(kind):
            infos.update(_decode_infos(values, where, f"{name}/"))
            continue
        sides = tuple(int(n) for n in re.findall(rb"\d+", shape or b""))
        if pa.types.is_fixed_size_list(kind):
            sides = (kind.list_size,) if shape is None else sides
            kind = kind.value_type
        is_number = pa.types.is_boolean(kind) or pa.types.is_integer(kind)
        if (is_number or pa.types.is_floating(kind)) and not values.null_count:
            numbers = _numbers(values, sides, where)
            infos[name] = numbers[:-1] if _PADDED in (field.metadata or {}) else numbers
    return infos


def _refuse_nulls(array: pa.Array, where: str) -> None:
    if array.null_count:
        raise EpisodeError(
            f"Expected values in every row of {where}, came {array.null_count} nulls.",
            code="unreadable",
            where=where,
        )


def _encode(value: Nested, rows: int) -> pa.Array:
    """Returns nested arrays as structs and fixed-size lists of `rows` rows, zeros appended."""
    if isinstance(value, Mapping):
        return pa.StructArray.from_arrays(
            [_encode(child, rows) for child in value.values()], names=list(value)
        )
    if isinstance(value, tuple):
        names = [str(index) for index in range(len(value))]
        return pa.StructArray.from_arrays([_encode(child, rows) for child in value], names=names)
    padded = np.zeros((rows, *value.shape[1:]), value.dtype)
    padded[: len(value)] = value
    if padded.ndim == 1:
        return pa.array(padded)
    width = int(np.prod(padded.shape[1:], dtype=np.int64))
    return pa.FixedSizeListArray.from_arrays(pa.array(padded.reshape(-1)), width)


def _encode_infos(infos: Mapping[str, np.ndarray], rows: int) -> pa.Array:
    fields, arrays = [], []
    for name, value in infos.items():
        array = _encode(value, rows)
        metadata = {_PADDED: b"1"} if len(value) < rows else {}
        if value.ndim > 1:
            metadata[_SHAPE] = ",".join(str(n) for n in value.shape[1:]).encode()
        fields.append(pa.field(name, array.type, metadata=metadata))
        arrays.append(array)
    return pa.StructArray.from_arrays(arrays, fields=fields)
