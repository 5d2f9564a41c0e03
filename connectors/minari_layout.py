"""Where a Minari dataset lies and what its `metadata.json` says.

A dataset is a folder `<namespace>/<name>-v<N>` with a folder `data` that holds `metadata.json` and
the episodes: all in `main_data.hdf5`, or one folder per episode in Arrow and Parquet storage.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from connectors.minari_spaces import Space, parse_space
from schemas.errors import NotFoundError, SourceError
from schemas.nesting import Nested

MAIN_FILE = "main_data.hdf5"
METADATA_FILE = "metadata.json"
STORAGES = ("hdf5", "arrow", "parquet")
_METADATA_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Dataset:
    """What `metadata.json` says, checked."""

    folder: Path
    """The `data` folder."""
    dataset_id: str
    storage: str
    episodes: int
    steps: int
    observation_space: Space | None
    action_space: Space | None
    is_jpeg: bool
    """Image spaces are stored as JPEG, which loses detail."""
    metadata: Mapping[str, Any]
    """All of it, as JSON values."""

    @property
    def environment(self) -> str | None:
        """Id of the environment, where `env_spec` names one."""
        try:
            stated = json.loads(self.metadata.get("env_spec") or "null")
        except (ValueError, TypeError, RecursionError):
            return None
        name = stated.get("id") if isinstance(stated, dict) else None
        return name if isinstance(name, str) else None

    @property
    def files(self) -> Iterator[Path]:
        """All files of the dataset."""
        yield self.folder / METADATA_FILE
        if self.storage == "hdf5":
            yield self.folder / MAIN_FILE
        else:
            for index in range(self.episodes):
                yield from (p for p in (self.folder / str(index)).glob("*") if p.is_file())


@dataclass(frozen=True)
class Record:
    """One episode as a storage holds it, before it becomes an `Episode`."""

    observations: Nested  # arrays (T+1, ...)
    actions: Nested  # arrays (T, ...)
    rewards: np.ndarray  # (T,)
    terminations: np.ndarray  # (T,)
    truncations: np.ndarray  # (T,)
    infos: Mapping[str, np.ndarray]  # (T, ...) or (T+1, ...)
    attributes: Mapping[str, Any]  # seed, options, total_steps, ...


def locate(where: str) -> str:
    """Returns a path as it is, and the path of a dataset id such as `hopper/medium-v0`.

    Ids lie under `$MINARI_DATASETS_PATH`, else `~/.minari/datasets`, as in Minari itself.
    """
    if Path(where).exists():
        return where
    root = os.environ.get("MINARI_DATASETS_PATH") or Path.home() / ".minari" / "datasets"
    return str(Path(root) / where)


def data_folder(where: str) -> Path | None:
    """Returns the `data` folder of a path that is (in) a Minari dataset, else None."""
    path = Path(where)
    for folder in (path / "data", path, path.parent if path.name == MAIN_FILE else path):
        if (folder / METADATA_FILE).is_file():
            return folder
    return None


def open_dataset(where: str) -> Dataset:
    """Reads and checks the metadata of a dataset, given its path or its id.

    Raises:
        NotFoundError: if there is nothing at `where`.
        SourceError: if there is no Minari dataset, or its metadata cannot be trusted.
    """
    place = locate(where)
    if not Path(place).exists():
        raise NotFoundError(f"Expected a Minari dataset, there is nothing at {place}.", where=where)
    folder = data_folder(place)
    if folder is None:
        raise SourceError(
            f"Expected a Minari dataset, {place} has no data/{METADATA_FILE}.", where=where
        )
    metadata = read_json(folder / METADATA_FILE)
    path = str(folder / METADATA_FILE)
    storage = _stated(metadata, "data_format", str, path, "hdf5")
    if storage not in STORAGES:
        raise SourceError(
            f"Expected data_format {', '.join(STORAGES)} in {path}, came {storage!r}.", where=path
        )
    spaces = {
        name: parse_space(metadata[name], f"{path}: {name}") if name in metadata else None
        for name in ("observation_space", "action_space")
    }
    dataset_id = _stated(metadata, "dataset_id", str, path)
    if not dataset_id:
        raise SourceError(f"Expected a dataset_id in {path}, came an empty one.", where=path)
    return Dataset(
        folder=folder,
        dataset_id=dataset_id,
        storage=storage,
        episodes=_count(metadata, "total_episodes", path),
        steps=_count(metadata, "total_steps", path),
        **spaces,
        is_jpeg=bool(metadata.get("jpeg_encoding", True)),
        metadata=metadata,
    )


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        SourceError: if it is not there, not JSON, not an object, or larger than 64 MiB.
    """
    try:
        if path.stat().st_size > _METADATA_BYTES:
            raise ValueError("larger than 64 MiB")
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(
            f"Expected a JSON object in {path}, it cannot be read: {error}.", where=str(path)
        ) from error
    if not isinstance(found, dict):
        raise SourceError(
            f"Expected a JSON object in {path}, came {type(found).__name__}.", where=str(path)
        )
    return found


def _stated(
    metadata: Mapping[str, Any], name: str, kind: type, path: str, default: Any = None
) -> Any:
    value = metadata.get(name, default)
    if not isinstance(value, kind) or isinstance(value, bool):
        came = "nothing" if value is None else repr(value)[:80]
        raise SourceError(f"Expected {name} as {kind.__name__} in {path}, came {came}.", where=path)
    return value


def _count(metadata: Mapping[str, Any], name: str, path: str) -> int:
    value = int(_stated(metadata, name, int, path))
    if value < 0:
        raise SourceError(f"Expected {name} of at least 0 in {path}, came {value}.", where=path)
    return value
