"""Files of a LeRobot dataset while it is written: data, videos, and the tables in `meta`.

Which optional features a dataset has is known only when its last episode has come, and so is
whether the episodes written cover an MP4 file as a whole. So data files are written with every
feature of the first episode and lose a column afterwards where one lacked it; videos that came as
files are looked at last; and statistics wait in a file of lines.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from connectors.lerobot_episode import TIME_SLACK
from connectors.lerobot_layout import DATA_PATH, V21, V30, VIDEO_PATH
from connectors.lerobot_stats import QUANTILES, Stats
from connectors.mp4 import read_header
from schemas.errors import EpisodeError
from schemas.packed import Media, Video

CHUNK_FILES = 1000
DATA_BYTES = 100 * 2**20
"""A data file of v3.0 that has grown past this is followed by another."""
_STATS_ROWS = 500


@dataclass
class DataFiles:
    """Parquet files of steps: one row group per episode; one file per episode in v2.1."""

    root: Path
    version: str
    schema: pa.Schema
    paths: list[Path] = field(default_factory=list)
    _writer: pq.ParquetWriter | None = None
    _file: Any = None

    def write(self, table: pa.Table, episode: int) -> tuple[int, int]:
        """Writes an episode; returns the chunk and the file it is in."""
        if self._writer is None:
            number = episode if self.version == V21 else len(self.paths)
            path = self.root / place(DATA_PATH[self.version], number)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("wb")
            self._writer = _parquet_writer(self._file, self.schema)
            self.paths.append(path)
        self._writer.write_table(table, row_group_size=max(1, len(table)))
        at = len(self.paths) - 1
        if self.version == V21 or self._file.tell() > DATA_BYTES:
            self.close()
        return divmod(at, CHUNK_FILES)

    def close(self) -> None:
        """Ends the file that is being written."""
        if self._writer is not None:
            self._writer.close()
            self._file.close()
            self._writer = self._file = None

    def keep(self, schema: pa.Schema) -> None:
        """Rewrites all files with some of their columns."""
        for path in self.paths:
            smaller = path.with_suffix(".smaller")
            with (
                pq.ParquetFile(path) as old,
                smaller.open("wb") as file,
                _parquet_writer(file, schema) as new,
            ):
                for group in range(old.num_row_groups):
                    table = old.read_row_group(group, schema.names).cast(schema)
                    new.write_table(table, row_group_size=max(1, len(table)))
            smaller.replace(path)


def _parquet_writer(file: Any, schema: pa.Schema) -> pq.ParquetWriter:
    plain = [f.name for f in schema if not pa.types.is_struct(f.type)]
    return pq.ParquetWriter(file, schema, compression="snappy", use_dictionary=plain)


def place(template: str, number: int, key: str = "") -> str:
    """Fills one of our own path templates in for a file or episode of some number."""
    chunk, file = divmod(number, CHUNK_FILES)
    return template.format(
        chunk_index=chunk,
        file_index=file,
        episode_chunk=chunk,
        episode_index=number,
        video_key=key,
    )


@dataclass
class VideoFiles:
    """MP4 files of one camera, and where each episode lies in them."""

    root: Path
    version: str
    key: str
    fps: float
    places: dict[int, tuple[int, float]] = field(default_factory=dict)
    """Episode -> file and seconds at which it begins."""
    waiting: dict[int, Video] = field(default_factory=dict)
    """Episodes whose frames came as files that may be kept."""
    files: int = 0

    def next_path(self, episode: int) -> Path:
        """Returns the path of the next file, or of an episode's own in v2.1."""
        number = episode if self.version == V21 else self.files
        path = self.root / place(VIDEO_PATH[self.version], number, self.key)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def put(self, episodes: Mapping[int, float]) -> None:
        """Says that the next file is there, and where in it episodes begin."""
        self.places.update({episode: (self.files, start) for episode, start in episodes.items()})
        self.files += 1

    def keep_whole(self) -> dict[int, Video]:
        """Copies every file that the waiting episodes cover whole; returns the others."""
        users: dict[Media, list[int]] = {}
        left: dict[int, Video] = {}
        for episode, video in self.waiting.items():
            if len(video.media) == 1 and self._is_steady(video):
                users.setdefault(video.media[0], []).append(episode)
            else:
                left[episode] = video
        for media, episodes in users.items():
            groups = [[e] for e in episodes] if self.version == V21 else [episodes]
            for group in groups:
                if not self._keep(media, group):
                    left.update({episode: self.waiting[episode] for episode in group})
        self.waiting = {}
        return dict(sorted(left.items()))

    def _is_steady(self, video: Video) -> bool:
        times = video.timestamps
        steps = times[:1] + np.arange(len(times)) / self.fps
        is_start = self.version == V30 or abs(float(times[0])) <= TIME_SLACK
        return bool((video.index == 0).all() and is_start) and bool(
            (np.abs(times - steps) <= TIME_SLACK + np.spacing(steps.astype(np.float32))).all()
        )

    def _keep(self, media: Media, episodes: Sequence[int]) -> bool:
        """Copies one file if the episodes are all of its frames: nothing unasked goes along."""
        path = self.next_path(episodes[0])
        path.write_bytes(media.load())
        shown = [np.round(self.waiting[e].timestamps * self.fps) for e in episodes]
        try:
            is_whole = len(np.unique(np.concatenate(shown))) == read_header(path).frames
        except EpisodeError:  # not an MP4 file
            is_whole = False
        if is_whole:
            self.put({e: float(self.waiting[e].timestamps[0]) for e in episodes})
        else:
            path.unlink()
        return is_whole


# -- meta ----------------------------------------------------------------------------------------


def stats_line(stats: Mapping[str, Stats]) -> str:
    """Returns an episode's statistics as a line of JSON."""
    plain = {name: {n: a.tolist() for n, a in one.items()} for name, one in stats.items()}
    return json.dumps(plain) + "\n"


def read_stats(path: Path, kept: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yields the lines that `stats_line` wrote, with the kept features only."""
    with path.open() as lines:
        for line in lines:
            found = json.loads(line)
            yield {name: found[name] for name in kept}


def write_episodes(
    path: Path, rows: Sequence[Mapping[str, Any]], stats: Iterator[dict[str, Any]]
) -> None:
    """Writes the table of episodes of v3.0, some hundred at a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    waiting = iter(rows)
    writer = None
    try:
        while batch := list(islice(waiting, _STATS_ROWS)):
            flat = [{**row, **_flat(one)} for row, one in zip(batch, stats, strict=False)]
            table = pa.Table.from_pylist(
                flat, writer.schema if writer else _episode_schema(flat[0])
            )
            writer = writer or pq.ParquetWriter(path, table.schema, compression="snappy")
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()


def _flat(stats: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {f"stats/{n}/{k}": v for n, one in stats.items() for k, v in one.items()}


def _episode_schema(row: Mapping[str, Any]) -> pa.Schema:
    """Column types, from the first row: stated, as an empty list or a null says less."""

    def kind(name: str, value: Any) -> pa.DataType:
        if name.startswith("stats/"):
            found = pa.int64() if name.endswith("/count") else pa.float64()
            while isinstance(value, list):
                found, value = pa.list_(found), value[0]
            return found
        if isinstance(value, list):
            return pa.list_(pa.string())
        return {int: pa.int64(), float: pa.float64(), str: pa.string()}[type(value)]

    return pa.schema([(name, kind(name, value)) for name, value in row.items()])


def write_tasks(path: Path, tasks: Iterable[str]) -> None:
    """Writes the tasks of v3.0: a pandas table whose index is the text, as LeRobot looks it up."""
    texts = list(tasks)
    described = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [
            {
                "name": name,
                "field_name": name,
                "pandas_type": kind,
                "numpy_type": dtype,
                "metadata": None,
            }
            for name, kind, dtype in (
                ("task_index", "int64", "int64"),
                ("task", "unicode", "object"),
            )
        ],
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.2.0",
    }
    table = pa.table(
        {
            "task_index": pa.array(range(len(texts)), pa.int64()),
            "task": pa.array(texts, pa.string()),
        }
    )
    pq.write_table(table.replace_schema_metadata({"pandas": json.dumps(described)}), path)


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes one JSON object per line."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def without_quantiles(stats: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Statistics as v2.1 has them."""
    return {
        name: {key: value for key, value in one.items() if key not in QUANTILES}
        for name, one in stats.items()
    }
