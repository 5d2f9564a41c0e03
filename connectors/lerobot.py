"""Reads LeRobot datasets of versions v3.0 and v2.1, without LeRobot itself.

`connectors.lerobot_features` says which feature becomes which field. Nothing is decoded: pictures
stay the PNG or JPEG bytes they are, frames of MP4 files become timestamps into those files.

* There is no final observation: it is `missing`.
* `next.done` says that an episode ended, `next.truncated` that it was cut off: a step that is done
  but not truncated is terminated. Without `next.truncated` every done counts as terminated;
  without `next.done` an episode ends neither way. `next.terminated`, which our own sink adds, is
  taken as it is. `next.success` in any step is the episode's success; its rows are kept as the
  extra `next/success` where they say more than that.
* The task is the text of `task_index`; where it changes within an episode, every step has it in the
  extra `task`.
* `frame_index` must count the steps, `index` go on from what the table of episodes says, and
  `timestamp` be `frame_index / fps`; an episode where they do not is a fault.
* Statistics are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from connectors.arrow_files import open_parquet, read_groups
from connectors.base import Found, Listing, Unit
from connectors.files import fingerprint
from connectors.lerobot_columns import to_rows
from connectors.lerobot_episode import (
    Splits,
    check_order,
    end_flags,
    splits_of,
    stated_facts,
    success_of,
    task_of,
)
from connectors.lerobot_features import TASK_EXTRA, Feature, numbers
from connectors.lerobot_layout import Dataset, EpisodeRow, dataset_files, open_dataset
from connectors.lerobot_media import Opened, video_rows
from connectors.units import RUN_BYTES, check_count, plan_units
from schemas.episode import Episode
from schemas.errors import EpisodeError, SourceError
from schemas.packed import Packed, Rows

_KEPT_INFO = ("codebase_version", "robot_type", "fps", "features", "splits")
_GUESSES = {
    "no_done": "no next.done: episodes end neither terminated nor truncated",
    "no_truncated": "no next.truncated: every next.done is taken as terminated",
    "left_out": "left out, of a dtype that an episode cannot hold: {names}",
    "no_span": "splits that are no span of episodes are left out",
}
_GROUPS_PER_RUN = 8
_CHECKS = ("timestamp", "frame_index", "index", "task_index")


class LerobotSource:
    """LeRobot datasets as a source."""

    def guesses(self) -> tuple[str, ...]:
        """Says what may be guessed (see `connectors.base.Source`)."""
        return tuple(_GUESSES.values())

    def discover(self, where: str) -> Listing:
        """Reads the tables in `meta` (see `connectors.base.Source`)."""
        dataset = open_dataset(where)
        files = dataset_files(dataset.root)
        stored = sum(path.stat().st_size for path in files if path.suffix == ".parquet")
        steps = sum(dataset.lengths)
        step_bytes = max(numbers(dataset.features), stored // max(1, steps))
        return Listing(
            format="lerobot",
            where=where,
            identity=None,
            units=tuple(
                Unit(format="lerobot", where=where, start=start, stop=stop, steps=count)
                for start, stop, count in plan_units(dataset.lengths, step_bytes)
            ),
            episodes=len(dataset.lengths),
            steps=steps,
            fingerprint=fingerprint(dataset.root, files),
            metadata={name: dataset.info[name] for name in _KEPT_INFO if name in dataset.info},
            guesses=_guesses(dataset),
        )

    def read(self, unit: Unit) -> Iterator[Found]:
        """Reads episodes, a data file at a time; one that cannot be read comes as a fault."""
        dataset = open_dataset(unit.where)
        check_count(unit, len(dataset.lengths))
        reading = _Reading(dataset, unit.where, splits_of(dataset.info))
        rows = dataset.rows(unit.start, unit.stop)
        position = unit.start
        for path, members in groupby(rows, key=lambda row: row.data):
            for run in _runs(path, list(members)):
                for row, result in _read_file(reading, path, run):
                    key = f"episode_{row.index}"
                    if isinstance(result, EpisodeError):
                        yield Found(key, position, None, None, result)
                    else:
                        yield Found(key, position, None, result)
                    position += 1


@dataclass
class _Reading:
    """What reading one unit keeps at hand."""

    dataset: Dataset
    where: str
    splits: Splits
    media: Opened = field(default_factory=dict)


_Result = tuple[EpisodeRow, Episode | EpisodeError]


def _runs(path: Path, members: list[EpisodeRow]) -> Iterator[list[EpisodeRow]]:
    """Cuts episodes of a large file into runs of about `RUN_BYTES`.

    Row groups that two runs share are read twice: only where those are few.
    """
    try:
        if len(members) == 1 or path.stat().st_size <= RUN_BYTES:
            yield members
            return
        with open_parquet(path) as file:
            groups = [file.metadata.row_group(at) for at in range(file.metadata.num_row_groups)]
            index = read_groups(file, path, columns=["episode_index"])
    except (SourceError, OSError):  # whoever reads the episodes says what is wrong
        yield members
        return
    column = index.column(0) if index.num_columns else None
    if column is None or column.null_count or not pa.types.is_integer(column.type):
        yield members
        return
    before = np.cumsum([0, *(group.total_byte_size for group in groups)])
    ends = np.cumsum([group.num_rows for group in groups])
    run: list[EpisodeRow] = []
    begun = read = 0  # row groups
    for row, (start, stop) in zip(
        members, _spans(column.to_numpy(), [row.index for row in members]), strict=True
    ):
        first, last = np.searchsorted(ends, [start, max(start, stop - 1)], "right").tolist()
        last = min(last + 1, len(groups))
        is_border = first >= read or read - begun >= _GROUPS_PER_RUN
        if run and is_border and before[last] - before[begun] > RUN_BYTES:
            yield run
            run, begun = [], first
        run.append(row)
        read = max(read, last)
    yield run


def _read_file(reading: _Reading, path: Path, members: list[EpisodeRow]) -> Iterator[_Result]:
    """Reads some episodes of one data file, one by one where they cannot be read together."""
    try:
        with open_parquet(path) as file:
            table, spans = _table_of(file, path, members, reading.dataset)
    except SourceError as error:
        if len(members) == 1:
            yield members[0], EpisodeError(error.message, code="unreadable", where=str(path))
        else:
            for row in members:
                yield from _read_file(reading, path, [row])
        return
    shared = _try_columns(table, reading.dataset, str(path))
    for row, span in zip(members, spans, strict=True):
        try:
            yield row, _episode(reading, row, table, span, shared)
        except EpisodeError as fault:
            yield row, fault


def _table_of(
    file: pq.ParquetFile, path: Path, members: Sequence[EpisodeRow], dataset: Dataset
) -> tuple[pa.Table, list[tuple[int, int]]]:
    """Reads the row groups that some episodes lie in.

    Returns:
        The rows, and where in them each episode lies: `(first, last + 1)` of the rows that have its
        `episode_index`, which need not be all its own.
    """
    names = set(file.schema_arrow.names)
    held = [f.name for f in dataset.features.values() if f.is_held and not f.is_video]
    lacking = [name for name in (*held, "episode_index", *_CHECKS[:3]) if name not in names]
    if lacking:
        raise SourceError(
            f"Expected the columns {', '.join(lacking)} in {path}, they are not there.",
            where=str(path),
        )
    index = read_groups(file, path, columns=["episode_index"]).column(0)
    if index.null_count or not pa.types.is_integer(index.type):
        raise SourceError(f"Expected whole numbers as episode_index in {path}.", where=str(path))
    spans = _spans(index.to_numpy(), [row.index for row in members])
    low = min((start for start, stop in spans if stop > start), default=0)
    high = max((stop for _, stop in spans), default=0)
    groups, begin, first = [], 0, None
    for number in range(file.metadata.num_row_groups):
        end = begin + file.metadata.row_group(number).num_rows
        if begin < high and end > low:
            groups.append(number)
            first = begin if first is None else first
        begin = end
    columns = list(dict.fromkeys([*held, *(name for name in _CHECKS if name in names)]))
    columns = [name for name in (*columns, "episode_index") if name in names]
    table = read_groups(file, path, groups, list(dict.fromkeys(columns)))
    table = table.slice(low - (first or 0), high - low)
    return table, [(start - low, stop - low) if stop > start else (0, 0) for start, stop in spans]


def _spans(index: np.ndarray, wanted: Sequence[int]) -> list[tuple[int, int]]:
    """Returns the first and one past the last row of each wanted episode; (0, 0) for none."""
    order = np.argsort(index, kind="stable") if np.any(np.diff(index) < 0) else None
    values = index if order is None else index[order]
    left = np.searchsorted(values, wanted, "left")
    right = np.searchsorted(values, wanted, "right")
    spans = []
    for start, stop in zip(left.tolist(), right.tolist(), strict=True):
        if stop > start and order is not None:
            start, stop = int(order[start]), int(order[stop - 1]) + 1
        spans.append((start, stop) if stop > start else (0, 0))
    return spans


def _try_columns(table: pa.Table, dataset: Dataset, where: str) -> dict[str, Rows] | None:
    """Converts whole columns; None where one has a fault, so that each episode is tried alone."""
    try:
        return _columns(table, dataset, where)
    except EpisodeError:
        return None


def _columns(table: pa.Table, dataset: Dataset, where: str) -> dict[str, Rows]:
    wanted = [f for f in dataset.features.values() if f.is_held and not f.is_video]
    found = {f.name: to_rows(table.column(f.name), f, where) for f in wanted}
    for name in _CHECKS:
        if name in table.column_names and name not in found:
            feature = Feature(name, "int64", (1,), "automatic", name, True, False)
            found[name] = to_rows(table.column(name), feature, where)
    return found


def _episode(
    reading: _Reading,
    row: EpisodeRow,
    table: pa.Table,
    span: tuple[int, int],
    shared: Mapping[str, Rows] | None,
) -> Episode:
    dataset, key = reading.dataset, f"episode_{row.index}"
    start, stop = span
    if stop - start != row.length:
        raise EpisodeError(
            f"Expected {row.length} rows of {key} in {row.data}, came {stop - start}.",
            code="length_mismatch",
            where=key,
        )
    if shared is None:
        columns = _columns(table.slice(start, stop - start), dataset, f"{key} in {row.data}")
    else:
        columns = {name: rows[start:stop] for name, rows in shared.items()}
    check_order(columns, row, table, span, dataset.fps)
    for name, place in row.videos.items():
        feature = dataset.features[name]
        if feature.is_held:
            times = np.asarray(columns["timestamp"], np.float64)
            columns[name] = video_rows(reading.media, feature, place, times, key)
    steps: dict[str, dict[str, Rows]] = {"observation": {}, "action": {}, "extra": {}}
    for feature in dataset.features.values():
        if feature.role in steps and feature.name in columns:
            steps[feature.role][feature.field] = columns[feature.name]
    task = task_of(columns, dataset.tasks, key)
    if isinstance(task, Packed):
        steps["extra"][TASK_EXTRA] = task
    terminated, truncated = end_flags(columns, row.length, key)
    success, outcome = success_of(columns, key)
    if outcome is not None:
        steps["extra"]["next/success"] = outcome
    stated = {"success": success, "fps": dataset.fps, **stated_facts(row, reading.splits)}
    return Episode(
        episode_id="",
        observations=steps["observation"],
        actions=_actions(steps["action"]),
        rewards=columns.get("next.reward"),  # type: ignore[arg-type]
        terminated=terminated,
        truncated=truncated,
        final_observation="missing",
        extras=steps["extra"],
        source=reading.where,
        source_key=key,
        **{"task": task if isinstance(task, str) else None, **stated},
    )


def _actions(named: Mapping[str, Rows]) -> Any:
    return named["actions"] if named.keys() == {"actions"} else (named or None)


def _guesses(dataset: Dataset) -> tuple[str, ...]:
    features = dataset.features
    said = []
    if "next.done" not in features and "next.terminated" not in features:
        said.append(_GUESSES["no_done"])
    elif "next.truncated" not in features:
        said.append(_GUESSES["no_truncated"])
    left_out = [f.name for f in features.values() if not f.is_held]
    if left_out:
        said.append(_GUESSES["left_out"].format(names=", ".join(left_out)))
    splits = dataset.info.get("splits")
    if isinstance(splits, Mapping) and len(splits_of(dataset.info)) < len(splits):
        said.append(_GUESSES["no_span"])
    return tuple(said)
