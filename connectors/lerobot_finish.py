"""Ends a LeRobot dataset that has been written: its videos, its features, and the tables in `meta`.

Only now is it known which features every episode had, and which video files are covered whole.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from connectors.lerobot_encode import can_encode, codec_of, encode
from connectors.lerobot_files import (
    CHUNK_FILES,
    DataFiles,
    VideoFiles,
    read_stats,
    without_quantiles,
    write_episodes,
    write_lines,
    write_tasks,
)
from connectors.lerobot_layout import DATA_PATH, FACTS_COLUMN, V21, VIDEO_PATH
from connectors.lerobot_schema import Column, schema_of
from connectors.lerobot_stats import Total
from schemas.errors import UsageError
from schemas.packed import Rows
from schemas.spec import DatasetSpec


@dataclass
class Writing:
    """A dataset while it is written."""

    root: Path
    version: str
    fps: float
    spec: DatasetSpec
    columns: dict[str, Column]
    """Field, `extras/<name>` or feature of ours -> how it is written."""
    data: DataFiles
    videos: dict[str, VideoFiles]
    totals: dict[str, Total] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)
    """Keys of `columns` that an episode did not have."""
    tasks: dict[str, int] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    """Of the table of episodes, but for videos and statistics."""
    frames: int = 0

    @property
    def stats_file(self) -> Path:
        """Where statistics wait, a line per episode."""
        return self.root / "stats.lines"

    def kept(self) -> list[Column]:
        """The features that every episode had."""
        return [column for key, column in self.columns.items() if key not in self.lost]


def encode_episode(files: VideoFiles, number: int, rows: Rows) -> None:
    """Encodes one episode's frames as a file of its own."""
    where = f"{files.key}, episode {number}"
    if not can_encode(rows):
        raise UsageError(
            f"Expected colour pictures with even sides in {where}, came {list(rows.shape[1:])}; "
            f"write them as pictures instead.",
            where=where,
        )
    encode(rows, files.next_path(number), files.fps, where)
    files.put({number: 0.0})


def finish(written: Writing, metadata: Mapping[str, Any]) -> None:
    """Settles videos and columns, then writes what stands in `meta`."""
    columns = written.kept()
    if written.lost:
        written.data.keep(schema_of(columns))
    info: dict[str, dict[str, Any]] = {}
    for files in written.videos.values():
        for number, video in files.keep_whole().items():
            encode_episode(files, number, video)
        info[files.key] = _video_info(files, written.columns, written.fps)
    meta = written.root / "meta"
    features = {
        column.name: column.feature(metadata, info.get(column.name, {})) for column in columns
    }
    kept = [column.name for column in columns if column.kind != "text"]
    stats = read_stats(written.stats_file, kept)
    if written.version == V21:
        rows = [
            {name: row[name] for name in ("episode_index", "tasks", "length", FACTS_COLUMN)}
            for row in written.rows
        ]
        write_lines(meta / "episodes.jsonl", rows)
        write_lines(
            meta / "episodes_stats.jsonl",
            (
                {"episode_index": at, "stats": without_quantiles(one)}
                for at, one in enumerate(stats)
            ),
        )
        write_lines(
            meta / "tasks.jsonl", ({"task_index": i, "task": t} for t, i in written.tasks.items())
        )
    else:
        for row in written.rows:
            row.update(_video_row(written, row))
        write_episodes(meta / "episodes/chunk-000/file-000.parquet", written.rows, stats)
        write_tasks(meta / "tasks.parquet", written.tasks)
        totals = {n: {k: a.tolist() for k, a in written.totals[n].sums.items()} for n in kept}
        (meta / "stats.json").write_text(json.dumps(totals, indent=4), "utf-8")
    written.stats_file.unlink()
    (meta / "info.json").write_text(
        json.dumps(_info(written, metadata, features), indent=4), "utf-8"
    )


def _video_row(written: Writing, row: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for files in written.videos.values():
        number, start = files.places[row["episode_index"]]
        chunk, file = divmod(number, CHUNK_FILES)
        found |= {
            f"videos/{files.key}/chunk_index": chunk,
            f"videos/{files.key}/file_index": file,
            f"videos/{files.key}/from_timestamp": start,
            f"videos/{files.key}/to_timestamp": start + row["length"] / written.fps,
        }
    return {**found, "meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}


def _video_info(files: VideoFiles, columns: Mapping[str, Column], fps: float) -> dict[str, Any]:
    """Returns what LeRobot says of a camera's files, from the first of them."""
    [shape] = [column.shape for column in columns.values() if column.name == files.key]
    path = next(iter(sorted((files.root / "videos").rglob("*.mp4"))))
    return {
        "video.height": shape[0],
        "video.width": shape[1],
        **codec_of(path),
        "video.is_depth_map": False,
        "video.fps": _whole(fps),
        "video.channels": 3,
    }


def _info(
    written: Writing, metadata: Mapping[str, Any], features: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the `info.json`."""
    count, version = len(written.rows), written.version
    robot = metadata.get("robot_type")
    videos = {
        "total_videos": count * len(written.videos),
        "total_chunks": -(-count // CHUNK_FILES),
    }
    sizes = {"data_files_size_in_mb": 100, "video_files_size_in_mb": 200}
    return {
        "codebase_version": version,
        "robot_type": robot if isinstance(robot, str) else None,
        "total_episodes": count,
        "total_frames": written.frames,
        "total_tasks": len(written.tasks),
        **(videos if version == V21 else sizes),
        "chunks_size": CHUNK_FILES,
        "fps": _whole(written.fps),
        "splits": {"train": f"0:{count}"},
        "data_path": DATA_PATH[version],
        "video_path": VIDEO_PATH[version] if written.videos else None,
        "features": features,
    }


def _whole(fps: float) -> int | float:
    return int(fps) if fps.is_integer() else fps
