"""Reads plain tables of steps: Parquet, Arrow or Feather files, one row per step.

A dataset is one file, or a folder with `steps.parquet` (or parts of it, all with one schema) and at
most one `episodes.parquet`. Columns: `connectors.step_columns` and `connectors.parquet_facts`.

* An episode's rows may lie anywhere, in any order: `episode_id` and `step` say where they belong.
  Its steps must be 0, 1, 2, ..., each once; anything else is a gap.
* A null is never a number. A column that is null in *all* rows of an episode is absent there, which
  actions, rewards and extras may be; any other null is a fault.
* The final observation is `next_observation` of the last row; where that repeats the observation of
  that row it counts as copied, unless the table of episodes says otherwise. In earlier rows
  `next_observation` may be null, and must else be the observation of the next row.
* An end that `terminated` and `truncated` do not state is neither.

The dataset has no identity of its own, so its episodes are named by content. Their order is that of
the table of episodes, else that of their first rows.

Memory: discovery reads the column `episode_id` alone. A unit reads the row groups that hold rows of
its episodes, in batches, and keeps its own rows. Where rows lie in no order that is every row group
for every unit: slow, but no more memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from connectors.base import Found, Listing, Unit
from connectors.files import fingerprint
from connectors.parquet_facts import FINAL, LENGTH, rows_by_id, stated
from connectors.parquet_parts import (
    Files,
    common_schema,
    find_files,
    open_part,
    read_table,
)
from connectors.step_columns import FLAGS, ID, STEP, StepColumn, step_columns, to_rows
from connectors.units import plan_units
from schemas.episode import Episode, FinalObservation
from schemas.errors import EpisodeError, SourceError
from schemas.packed import Packed, Rows, join, spec_of

_GUESSES = {
    **{flag: f"no {flag}: no step is" for flag in FLAGS},
    "no_final": "no next_observation: final observations are missing",
    "no_action": "no action: actions are unknown",
    "no_reward": "no reward: rewards are unknown",
    "left_out": "columns that are no field's are left out: {names}",
}


class ParquetSource:
    """Tables of steps as a source."""

    def guesses(self) -> tuple[str, ...]:
        """Says what may be guessed (see `connectors.base.Source`)."""
        return tuple(_GUESSES.values())

    def discover(self, where: str) -> Listing:
        """Finds the episodes from `episode_id` alone (see `connectors.base.Source`)."""
        files = find_files(where)
        dataset = _open(files, where)
        index = _index(files, dataset)
        names = list(index)
        lengths = [index[name].steps for name in names]
        units = tuple(
            Unit(
                format="parquet",
                where=where,
                start=start,
                stop=stop,
                steps=steps,
                options={
                    "ids": names[start:stop],
                    "groups": [list(g) for g in _groups(index[n] for n in names[start:stop])],
                },
            )
            for start, stop, steps in plan_units(lengths, _step_bytes(files, sum(lengths)))
        )
        below = [*files.steps, *([files.episodes] if files.episodes else [])]
        return Listing(
            format="parquet",
            where=where,
            identity=None,
            units=units,
            episodes=len(names),
            steps=sum(lengths),
            fingerprint=fingerprint(files.root, below),
            guesses=_guesses(dataset),
        )

    def read(self, unit: Unit) -> Iterator[Found]:
        """Reads the row groups of the unit's episodes once, then cuts its rows into episodes."""
        files = find_files(unit.where)
        dataset = _open(files, unit.where)
        names = unit.options["ids"]
        table = _rows_of(files, dataset, names, unit.options["groups"])
        places = pc.index_in(_ids(table, unit.where), pa.array(names)).to_numpy()
        steps = pc.fill_null(table.column(STEP).cast(pa.int64(), safe=False), -1).to_numpy()
        order = np.lexsort((steps, places))
        if (np.diff(order) != 1).any():
            table, places, steps = table.take(pa.array(order)), places[order], steps[order]
        bounds = np.searchsorted(places, np.arange(len(names) + 1))
        for at, name in enumerate(names):
            rows = slice(int(bounds[at]), int(bounds[at + 1]))
            cut = table.slice(rows.start, rows.stop - rows.start)
            yield _found(_Steps(dataset, name, cut, steps[rows]), unit, unit.start + at)


@dataclass(frozen=True)
class _Dataset:
    """What the files of a dataset hold."""

    where: str
    schema: pa.Schema
    columns: tuple[StepColumn, ...]
    left_out: tuple[str, ...]
    episodes: Mapping[int | str, Mapping[str, Any]]
    """What the table of episodes states, by id; empty without one."""


@dataclass
class _Place:
    """Where the rows of one episode are."""

    steps: int = 0
    groups: set[tuple[int, int]] = field(default_factory=set)
    """Part and row group."""


@dataclass(frozen=True)
class _Steps:
    """The rows of one episode in the order of their steps."""

    dataset: _Dataset
    name: int | str
    table: pa.Table
    steps: np.ndarray  # (T,) int64

    @property
    def key(self) -> str:
        return f"episode {self.name}"

    def values(self, column: StepColumn) -> pa.Array:
        found = self.table.column(column.name).combine_chunks()
        is_chunked = isinstance(found, pa.ChunkedArray)
        return pa.concat_arrays(found.chunks) if is_chunked else found

    def where(self, column: StepColumn) -> str:
        return f"{self.key}: {column.name}"


def _open(files: Files, where: str) -> _Dataset:
    schema = common_schema(files)
    columns, left_out = step_columns(schema, where)
    told: Mapping[int | str, Mapping[str, Any]] = {}
    if files.episodes is not None:
        told = rows_by_id(read_table(files.episodes), str(files.episodes))
    return _Dataset(where, schema, tuple(columns), tuple(left_out), told)


def _index(files: Files, dataset: _Dataset) -> dict[int | str, _Place]:
    """Finds the rows of every episode, in the dataset's order."""
    found = {name: _Place() for name in dataset.episodes}
    for number, path in enumerate(files.steps):
        with open_part(path) as part:
            for group in range(part.groups):
                for table in part.batches(group, [ID]):
                    for one in pc.value_counts(_ids(table, str(path))).to_pylist():
                        place = found.setdefault(one["values"], _Place())
                        place.steps += one["counts"]
                        place.groups.add((number, group))
    if len({type(name) for name in found}) > 1:
        raise SourceError(
            f"Expected ids of one type in the steps and episodes of {dataset.where}, came numbers "
            f"and texts.",
            where=dataset.where,
        )
    return found


def _ids(table: pa.Table, where: str) -> pa.ChunkedArray:
    """Returns the ids of a table's rows as int64 or string."""
    column = table.column(ID)
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    try:
        if not column.null_count and (is_text or pa.types.is_integer(kind)):
            return column.cast(pa.string() if is_text else pa.int64())
    except pa.ArrowInvalid:
        pass
    raise SourceError(
        f"Expected a whole number or a text in every row of {ID} of {where}, came {column.type} "
        f"with {column.null_count} nulls.",
        where=where,
    )


def _step_bytes(files: Files, steps: int) -> int:
    size = 0
    for path in files.steps:
        with open_part(path) as part:
            size += part.size
    return size // max(1, steps)


def _groups(places: Iterable[_Place]) -> list[tuple[int, int]]:
    return sorted({group for place in places for group in place.groups})


def _guesses(dataset: _Dataset) -> tuple[str, ...]:
    roles = {column.role for column in dataset.columns}
    fields = {column.field for column in dataset.columns}
    said = [_GUESSES[flag] for flag in FLAGS if flag not in fields]
    if not any(c.role == "next" and c.field.startswith("observations") for c in dataset.columns):
        said.append(_GUESSES["no_final"])
    if "action" not in roles:
        said.append(_GUESSES["no_action"])
    if "reward" not in roles:
        said.append(_GUESSES["no_reward"])
    if dataset.left_out:
        said.append(_GUESSES["left_out"].format(names=", ".join(dataset.left_out)))
    return tuple(said)


def _rows_of(
    files: Files, dataset: _Dataset, names: Sequence[int | str], groups: Sequence[Sequence[int]]
) -> pa.Table:
    """Returns the rows of some episodes, in the order they lie in."""
    columns = [ID, STEP, *(column.name for column in dataset.columns)]
    wanted = pa.array(names)
    kept = [dataset.schema.empty_table().select(columns)]
    for number, path in enumerate(files.steps):
        chosen = [group for part, group in groups if part == number]
        if not chosen:
            continue
        with open_part(path) as part:
            if chosen[-1] >= part.groups:
                raise _changed(dataset)
            for group in chosen:
                for table in part.batches(group, columns):
                    is_mine = pc.is_in(_ids(table, str(path)), value_set=wanted)
                    kept.append(table.filter(is_mine))
    return pa.concat_tables(kept, promote_options="permissive")


def _found(rows: _Steps, unit: Unit, position: int) -> Found:
    try:
        episode = _episode(rows)
    except EpisodeError as fault:
        return Found(rows.key, position, None, None, fault)
    return Found(rows.key, position, None, episode)


def _episode(rows: _Steps) -> Episode:
    told = rows.dataset.episodes.get(rows.name, {})
    _check_steps(rows, told.get(LENGTH))
    arrays: dict[str, Rows] = {}
    for column in rows.dataset.columns:
        values = rows.values(column)
        may_lack = column.role in ("action", "reward", "extra")
        if column.role != "next" and not (may_lack and values.null_count == len(values)):
            arrays[column.field] = to_rows(values, column.spec, rows.where(column))
    observed = {name: array for name, array in arrays.items() if name.startswith("observations")}
    final, lasts = _finals(rows, arrays)
    if final == "present" and all(_repeats(observed[n], lasts[n]) for n in observed):
        final = "copied"
    if final != "missing" and told.get(FINAL) in ("present", "copied"):
        final = told[FINAL]
    for name, last in lasts.items():
        if name in arrays:
            arrays[name] = join([arrays[name], last])
    actions = {name: array for name, array in arrays.items() if name.startswith("actions")}
    extras = {n.removeprefix("extras/"): a for n, a in arrays.items() if n.startswith("extras/")}
    facts = stated(told)
    has_task = any(column.name == "task" for column in rows.dataset.columns)
    if has_task and "task" not in facts:
        facts["task"] = _constant_text(extras)
    nothing = np.zeros(len(rows.steps), bool)
    return Episode(
        **{
            "episode_id": "",
            "observations": {n: arrays[n] for n in observed},
            "actions": actions.get("actions", actions or None),
            "rewards": arrays.get("rewards"),
            **{flag: arrays.get(flag, nothing) for flag in FLAGS},
            "final_observation": final,
            "extras": extras,
            "source": rows.dataset.where,
            "source_key": rows.key,
            **facts,
        }
    )


def _check_steps(rows: _Steps, length: Any) -> None:
    steps = rows.steps
    if not len(steps) or (isinstance(length, int) and length != len(steps)):
        raise EpisodeError(
            f"Expected {length if isinstance(length, int) else 'at least one'} steps of "
            f"{rows.key}, as the table of episodes says, came {len(steps)}.",
            code="length_mismatch",
            where=rows.key,
        )
    wrong = np.flatnonzero(steps != np.arange(len(steps)))
    if len(wrong):
        raise EpisodeError(
            f"Expected the steps of {rows.key} to be 0 to {len(steps) - 1}, each once, came "
            f"{steps[wrong[0]]} in the place of {wrong[0]}.",
            code="gap",
            where=rows.key,
        )


def _finals(rows: _Steps, arrays: Mapping[str, Rows]) -> tuple[FinalObservation, dict[str, Rows]]:
    """Returns the last rows that `next_` columns hold, (1, ...) each, by field."""
    lasts: dict[str, Rows] = {}
    for column in rows.dataset.columns:
        if column.role != "next" or column.field not in arrays:
            continue
        values = rows.values(column)
        array = arrays[column.field]
        is_there = values.is_valid().to_numpy(zero_copy_only=False)
        earlier = np.flatnonzero(is_there[:-1])
        if len(earlier):
            said = to_rows(values.take(pa.array(earlier)), column.spec, rows.where(column))
            differ = _differing(said, array, earlier + 1)
            if len(differ):
                row = int(earlier[differ[0]])
                raise EpisodeError(
                    f"Expected {column.name} of step {row} of {rows.key} to be the observation of "
                    f"step {row + 1}, they differ: steps are missing between them.",
                    code="gap",
                    where=rows.key,
                )
        if is_there[-1]:
            last = to_rows(values.slice(len(values) - 1), column.spec, rows.where(column))
            if spec_of(last) != spec_of(array):
                raise EpisodeError(
                    f"Expected {column.name} of {rows.key} as {spec_of(array)}, came "
                    f"{spec_of(last)}.",
                    code="bad_dtype",
                    where=rows.key,
                )
            lasts[column.field] = last
    observed = [name for name in arrays if name.startswith("observations")]
    there = [name for name in observed if name in lasts]
    if there and there != observed:
        raise EpisodeError(
            f"Expected next_observation of the last step of {rows.key} for all observations, came "
            f"{', '.join(there)} alone.",
            code="unreadable",
            where=rows.key,
        )
    return "present" if there else "missing", lasts


def _differing(said: Rows, array: Rows, places: np.ndarray) -> np.ndarray:
    """Returns the indices at which stated next rows are not the rows at some places."""
    if isinstance(said, Packed) and isinstance(array, Packed):
        pairs = zip(said, places.tolist(), strict=True)
        return np.flatnonzero([row != array[place] for row, place in pairs])
    if isinstance(said, Packed) or isinstance(array, Packed):
        return np.arange(1)
    one, two = np.asarray(said), np.asarray(array)[places]
    if one.shape != two.shape:
        return np.arange(1)
    differ = one != two
    if one.dtype.kind == "f":
        differ &= ~(np.isnan(one) & np.isnan(two))
    return np.flatnonzero(differ.reshape(len(one), -1).any(axis=1))


def _repeats(array: Rows, last: Rows) -> bool:
    return not len(_differing(last, array, np.array([len(array) - 1])))


def _constant_text(extras: dict[str, Rows]) -> str | None:
    """Takes the one text of a column `task` out of the extras: then it is the episode's task."""
    texts = extras.get("task")
    if not isinstance(texts, Packed) or texts.spec.encoding != "text" or len(set(texts)) != 1:
        return None
    del extras["task"]
    return texts[0].decode()


def _changed(dataset: _Dataset) -> SourceError:
    return SourceError(
        f"Expected the row groups of {dataset.where} that discovery saw, there are fewer now: it "
        f"changed while it was read.",
        where=dataset.where,
    )
