"""Writes LeRobot datasets of version v3.0, or v2.1, without LeRobot itself.

Names go back as `connectors.lerobot_features` says. Pictures are written as PNG or JPEG bytes in
Parquet, as they came where they are encoded already. Videos stay the files they are where the
episodes written show all of a file's frames; else their frames are encoded anew, and the result is
decoded and compared. What LeRobot has no place for (who acted, seeds, columns, labels) stands as
JSON in a column of the table of episodes, which LeRobot passes over and our reader takes back.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from connectors.base import Loss
from connectors.facts import FACTS
from connectors.files import new_dataset
from connectors.lerobot_encode import PSNR
from connectors.lerobot_features import TASK_EXTRA, feature_names
from connectors.lerobot_files import CHUNK_FILES, DataFiles, VideoFiles, stats_line
from connectors.lerobot_finish import Writing, encode_episode, finish
from connectors.lerobot_layout import FACTS_COLUMN, V30, VERSIONS
from connectors.lerobot_schema import (
    AUTOMATIC,
    DONE,
    SUCCESS,
    TERMINATED,
    TRUNCATED,
    Column,
    column_of,
    schema_of,
    to_arrow,
)
from connectors.lerobot_stats import Stats, Total, of_numbers, of_pictures, sampled
from schemas.episode import Episode
from schemas.errors import UsageError
from schemas.packed import Packed, Rows, Video, plain
from schemas.spec import differences

DEFAULT_FPS = 30.0
_OUTCOME = "next/success"
"""Extra that our reader makes of `next.success` where it says more than the fact."""


class LerobotSink:
    """LeRobot datasets as a sink; `metadata["codebase_version"]` chooses the version."""

    def losses(self) -> tuple[Loss, ...]:
        """Says what a LeRobot dataset cannot hold (see `connectors.base.Sink`)."""
        return (
            Loss("ids", "LeRobot numbers its episodes"),
            Loss("final_observation", "LeRobot has an observation per action: no final one"),
            Loss(
                "extras",
                "row T+1; extras that not every episode has, of one dtype and shape; ragged ones "
                "and those of more than five axes; `next/success` where not all episodes state "
                "success",
            ),
            Loss(
                "fps",
                f"where an episode states none: LeRobot needs one, and gets the metadata's fps, "
                f"that of another episode, or {DEFAULT_FPS:g}",
            ),
            Loss("task", "an empty task comes back as none, an extra `task` of one text as task"),
            Loss("names", "a dot in a name comes back as a level of nesting"),
            Loss("encodings", "arrays of colour pictures come back as PNG, without loss"),
            Loss(
                "pixels",
                f"frames of videos that are not written as a whole file, and of pictures with "
                f"use_videos, are encoded anew; each keeps {PSNR:g} dB",
            ),
            Loss("ragged", "observations of ragged arrays", refused=True),
            Loss("fps", "episodes of different rates", refused=True),
            Loss("specs", "episodes of different fields", refused=True),
        )

    def options(self) -> Mapping[str, str]:
        """Says which metadata it uses (see `connectors.base.Sink`)."""
        return {
            "codebase_version": "v3.0 (the default) or v2.1",
            "fps": f"where no episode states it; by default {DEFAULT_FPS:g}",
            "use_videos": "true: colour pictures with even sides become MP4",
            "robot_type": "as stated",
            "features": "the names of each feature's values, as stated",
        }

    def write(self, episodes: Iterable[Episode], where: str, metadata: Mapping[str, Any]) -> int:
        """Writes one dataset folder; see `connectors.base.Sink`."""
        version = metadata.get("codebase_version", V30)
        if version not in VERSIONS:
            raise UsageError(
                f"Expected codebase_version {' or '.join(VERSIONS)}, came {version!r}.", where=where
            )
        with new_dataset(where) as draft:
            (draft / "meta").mkdir(parents=True)
            written = None
            try:
                for episode in episodes:
                    written = written or _begin(draft, version, episode, metadata)
                    _add(written, episode)
            finally:
                if written is not None:
                    written.data.close()
            if written is None:
                raise UsageError("Expected at least one episode to write, came none.", where=where)
            finish(written, metadata)
            return len(written.rows)


def _begin(root: Path, version: str, first: Episode, metadata: Mapping[str, Any]) -> Writing:
    """Decides from the first episode which features there are."""
    fps = first.fps or metadata.get("fps") or DEFAULT_FPS
    if not isinstance(fps, int | float) or not 0 < fps <= 1e6:
        raise UsageError(f"Expected fps as a positive number, came {fps!r}.")
    extras = {name: rows for name, rows in first.extras.items() if name != _OUTCOME}
    names = feature_names(first.spec.fields, extras)
    taken = [*names.values(), *(column.name for column in (DONE, TRUNCATED, TERMINATED, SUCCESS))]
    if len(set(taken)) < len(taken):
        twice = sorted({name for name in taken if taken.count(name) > 1})
        raise UsageError(f"Expected names that stay different, {twice[0]!r} would be there twice.")
    columns: dict[str, Column] = {}
    is_video = metadata.get("use_videos") is True
    for key, name in names.items():
        rows = first.arrays[key]
        column = column_of(name, rows, is_video=is_video and key.startswith("observations"))
        if column is None and not key.startswith("extras/"):
            raise UsageError(
                f"Expected plain numbers of at most five axes, pictures of one size, videos or "
                f"texts, came {name} as {first.spec.fields[key]}; LeRobot cannot hold it."
            )
        is_kept = column is not None and not (key.startswith("extras/") and column.kind == "video")
        if column is not None and is_kept:
            columns[key] = column
    for column in (DONE, TRUNCATED, TERMINATED, SUCCESS, *AUTOMATIC):
        columns[column.name] = column
    return Writing(
        root=root,
        version=version,
        fps=float(fps),
        spec=first.spec,
        columns=columns,
        data=DataFiles(root, version, schema_of(list(columns.values()))),
        videos={
            key: VideoFiles(root, version, column.name, float(fps))
            for key, column in columns.items()
            if column.kind == "video"
        },
    )


def _add(written: Writing, episode: Episode) -> None:
    """Writes one episode's steps and statistics."""
    number, steps = len(written.rows), episode.length
    _check(written, episode)
    tasks = _tasks(episode)
    numbers = [written.tasks.setdefault(text, len(written.tasks)) for text in tasks]
    values = _values(episode)
    counted = np.arange(steps)
    values |= {
        "timestamp": (counted / written.fps).astype(np.float32),
        "frame_index": counted,
        "episode_index": np.full(steps, number),
        "index": counted + written.frames,
        "task_index": np.array(numbers * (steps if len(tasks) == 1 else 1), np.int64),
    }
    arrays, stats = [], {}
    for key, column in written.columns.items():
        rows = values.get(key)
        if rows is None or (key.startswith("extras/") and not _fits(rows, column)):
            written.lost.add(key)
        if column.kind == "video":
            assert rows is not None
            _add_video(written, key, number, rows)
        elif key in written.lost:
            arrays.append(pa.nulls(steps, column.arrow_type))
        else:
            assert rows is not None
            arrays.append(to_arrow(rows, column))
        if key not in written.lost and column.kind != "text" and rows is not None:
            stats[column.name] = _stats(rows, column)
    table = pa.Table.from_arrays(arrays, schema=written.data.schema)
    chunk, file = written.data.write(table, number)
    for name, one in stats.items():
        written.totals.setdefault(name, Total()).add(one)
    with written.stats_file.open("a") as lines:
        lines.write(stats_line(stats))
    written.rows.append(
        {
            "episode_index": number,
            "tasks": sorted(set(tasks), key=written.tasks.__getitem__),
            "length": steps,
            "data/chunk_index": chunk,
            "data/file_index": file % CHUNK_FILES,
            "dataset_from_index": written.frames,
            "dataset_to_index": written.frames + steps,
            FACTS_COLUMN: _facts(episode),
        }
    )
    written.frames += steps


def _check(written: Writing, episode: Episode) -> None:
    where = episode.source_key or episode.episode_id

    def refuse(what: str) -> UsageError:
        return UsageError(f"{what} in {where!r}; LeRobot cannot hold it.", where=where)

    if episode.length == 0:
        raise refuse("Expected at least one step, came none")
    if episode.spec != written.spec:
        raise refuse(
            f"Expected the spec of the first episode ({differences(written.spec, episode.spec)})"
        )
    if episode.fps is not None and episode.fps != written.fps:
        raise refuse(f"Expected {written.fps:g} steps per second, came {episode.fps:g}")


def _fits(rows: Rows, column: Column) -> bool:
    """True if rows are written as the first episode's were."""
    return column_of(column.name, rows, is_video=column.kind == "video") == column


def _values(episode: Episode) -> dict[str, Rows]:
    """Returns all that is written of each step, T rows each."""
    steps = episode.length
    values: dict[str, Rows] = {name: rows[:steps] for name, rows in episode.arrays.items()}
    outcome = values.pop(f"extras/{_OUTCOME}", None)
    values |= {
        DONE.name: np.asarray(episode.terminated) | np.asarray(episode.truncated),
        TRUNCATED.name: np.asarray(episode.truncated),
        TERMINATED.name: np.asarray(episode.terminated),
    }
    if episode.success is not None:
        is_rows = isinstance(outcome, np.ndarray) and outcome.dtype == bool and outcome.ndim == 1
        last = (np.arange(steps) == steps - 1) & episode.success
        values[SUCCESS.name] = outcome if is_rows and outcome is not None else last
    return values


def _tasks(episode: Episode) -> list[str]:
    """Returns the task, or one of each step where the extra `task` says that it changes."""
    texts = episode.extras.get(TASK_EXTRA)
    if episode.task is None and isinstance(texts, Packed) and texts.spec.encoding == "text":
        each = [str(text) for text in plain(texts[: episode.length])]
        return each if len(set(each)) > 1 else each[:1]
    return [episode.task or ""]


def _facts(episode: Episode) -> str:
    """What LeRobot has no place for, as JSON."""
    facts = {name: getattr(episode, name) for name in FACTS if name not in ("task", "fps")}
    if episode.collected_at is not None:
        facts["collected_at"] = episode.collected_at.isoformat()
    stated = {
        "facts": {name: value for name, value in facts.items() if value is not None},
        "columns": dict(episode.columns),
        "labels": dict(episode.labels),
    }
    return json.dumps(stated)


def _stats(rows: Rows, column: Column) -> Stats:
    if column.kind == "numbers":
        return of_numbers(np.asarray(rows))
    wanted = sampled(len(rows))
    if isinstance(rows, Packed):
        return of_pictures(plain(Packed.of(rows.spec, [rows[int(at)] for at in wanted])))
    if isinstance(rows, Video):
        chosen = Video(rows.spec, rows.media, rows.index[wanted], rows.timestamps[wanted])
        return of_pictures(chosen.decode())
    return of_pictures(rows[wanted])


def _add_video(written: Writing, key: str, number: int, rows: Rows) -> None:
    """Videos wait, because whether they can be kept shows at the end; pictures do not."""
    files = written.videos[key]
    if isinstance(rows, Video):
        if (rows.index < 0).any():
            raise UsageError(f"Expected a frame in every row of {files.key}, some have none.")
        files.waiting[number] = rows
    else:
        encode_episode(files, number, rows)
