"""Minari's HDF5 storage: a group `episode_<i>` per episode in one file.

Dict spaces are groups, Tuple spaces groups with members `_index_<i>`; seed, options (flattened with
`/`) and `total_steps` are attributes of the episode's group.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from connectors.hdf5 import Hdf5Array, Hdf5Group, UnreadableError, open_hdf5
from connectors.minari_images import decode_frames
from connectors.minari_layout import MAIN_FILE, Dataset, Record
from connectors.minari_spaces import Space
from schemas.errors import EpisodeError, SourceError
from schemas.nesting import Nested
from schemas.packed import plain

_FIELDS = ("observations", "actions", "rewards", "terminations", "truncations")
_TUPLE_PART = "_index_"


def episode_lengths(dataset: Dataset) -> list[int]:
    """Returns the steps that each episode's attributes state, 0 where they state none.

    Raises:
        SourceError: if the file does not hold the episodes that the metadata counts.
    """
    lengths = []
    with open_hdf5(dataset.folder / MAIN_FILE) as file:
        names = set(file.names())
        expected = {f"episode_{index}" for index in range(min(dataset.episodes, len(names) + 1))}
        if names != expected:
            raise SourceError(
                f"Expected the {dataset.episodes} episodes that the metadata counts in "
                f"{file.where}, it holds {len(names)} members"
                f"{_examples(' without', expected - names)}{_examples(' and', names - expected)}.",
                where=file.where,
            )
        for index in range(dataset.episodes):
            steps = file.group(f"episode_{index}").attributes().get("total_steps")
            lengths.append(steps if isinstance(steps, int) and steps >= 0 else 0)
    return lengths


def read_records(dataset: Dataset, start: int, stop: int) -> Iterator[Record | EpisodeError]:
    """Yields episodes `start:stop`; one that cannot be read as its error."""
    with open_hdf5(dataset.folder / MAIN_FILE) as file:
        for index in range(start, stop):
            try:
                yield _read_record(file.group(f"episode_{index}"), dataset)
            except EpisodeError as fault:
                yield fault
            except UnreadableError as error:
                yield EpisodeError(error.message, code="unreadable", where=error.where)


def write_record(file: Any, index: int, record: Record) -> None:
    """Adds one episode to an open file, as Minari lays it out."""
    group = file.create_group(f"episode_{index}")
    group.attrs["id"] = index
    for name, value in record.attributes.items():
        group.attrs[name] = value
    for name in _FIELDS:
        _write(group, name, getattr(record, name))
    for name, array in record.infos.items():
        _write(group, f"infos/{name}", array)


def create(folder: Path) -> Any:
    """Creates the file; members keep the order in which they are made, as Minari's do."""
    return h5py.File(folder / MAIN_FILE, "x", track_order=True)


def _read_record(group: Hdf5Group, dataset: Dataset) -> Record:
    def read(name: str, space: Space | None) -> Nested:
        return _read(group, name, space, dataset.is_jpeg)

    flat = {name: group.array(name).read() for name in _FIELDS[2:]}
    return Record(
        observations=read("observations", dataset.observation_space),
        actions=read("actions", dataset.action_space),
        rewards=flat["rewards"].reshape(-1),
        terminations=flat["terminations"].reshape(-1),
        truncations=flat["truncations"].reshape(-1),
        infos=_read_infos(group),
        attributes=group.attributes(),
    )


def _read(group: Hdf5Group, name: str, space: Space | None, is_jpeg: bool) -> Nested:
    """Reads an array or nested arrays, by the space where there is one, else by what is there."""
    if space is None:
        if not group.is_group(name):
            return group.array(name).read()
        inner = group.group(name)
        parts = {part: _read(inner, part, None, is_jpeg) for part in inner.names()}
        if parts and all(part.startswith(_TUPLE_PART) for part in parts):
            return tuple(parts[f"{_TUPLE_PART}{i}"] for i in range(len(parts)))
        return parts
    if space.kind == "Dict":
        inner = group.group(name)
        return {k: _read(inner, k, child, is_jpeg) for k, child in space.children.items()}
    if space.kind == "Tuple":
        inner = group.group(name)
        children = space.children.items()
        return tuple(_read(inner, f"{_TUPLE_PART}{i}", c, is_jpeg) for i, c in children)
    array = group.array(name)
    if space.is_image and is_jpeg and len(array.shape) <= 2:
        return decode_frames(_frames(array), space, array.where)
    return array.read()


def _frames(array: Hdf5Array) -> Iterator[bytes]:
    """Encoded frames: rows of varying length, or of one length where all frames agree."""
    if len(array.shape) == 2 and array.dtype == np.uint8:
        return (row.tobytes() for row in array.read())
    return array.items()


def _read_infos(group: Hdf5Group) -> dict[str, np.ndarray]:
    if "infos" not in group:
        return {}
    leaves = group.group("infos").leaves()
    return {name: a.read() for name, a in leaves.items() if a.is_numeric and a.shape}


def _write(group: Any, name: str, value: Nested) -> None:
    if isinstance(value, Mapping):
        inner = group.require_group(name)
        for key, child in value.items():
            _write(inner, key, child)
    elif isinstance(value, tuple):
        inner = group.require_group(name)
        for index, child in enumerate(value):
            _write(inner, f"{_TUPLE_PART}{index}", child)
    else:
        numbers = plain(value)
        limits = (None, *numbers.shape[1:])
        chunks = True if numbers.size else (1, *(max(1, n) for n in numbers.shape[1:]))
        group.create_dataset(name, data=numbers, chunks=chunks, maxshape=limits)


def _examples(before: str, names: set[str]) -> str:
    return f"{before} {', '.join(sorted(names)[:3])}" if names else ""
