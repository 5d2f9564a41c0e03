"""RLlib's recorded steps: one row per step, columns by RLlib's names."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from connectors.arrow_files import open_parquet, read_groups
from connectors.next_rows import differing_rows
from connectors.rllib_msgpack import arrays_of
from schemas.episode import Episode, FinalObservation
from schemas.errors import EpisodeError, SourceError
from schemas.nesting import Nested

_NEEDED = ("obs", "actions")
_IDS = ("eps_id", "agent_id", "t")
_KNOWN = (*_NEEDED, *_IDS, "new_obs", "rewards", "terminateds", "truncateds", "dones")
_LEFT_OUT = ("infos", "module_id", "agent_index", "unroll_id", "env_id")
_SHAPE = b"ARROW:extension:metadata"
_DEPTH = 8


GUESSES = {
    "infos": "infos are left out",
    "no_id": "no eps_id: every row is an episode of one step, as in RLlib",
    "no_t": "no t: the steps of an episode are in the order of rows and files",
    "no_final": "no new_obs: final observations are missing",
    "no_terminateds": "no terminateds: what is done was terminated",
    "shape": "the shape of {name} is in a pickle: its rows are read flat",
}


@dataclass(frozen=True)
class FoundSteps:
    """Which rows are which episode."""

    files: Sequence[Path]
    starts: Sequence[int]
    """First row of each file, counted over all files; one more at the end."""
    names: Sequence[str]
    """Key of each episode."""
    rows: Sequence[np.ndarray]  # each (T,) int64, in order of time
    times: Sequence[np.ndarray | None]  # t of these rows
    lengths: Sequence[int]
    step_bytes: int
    guesses: Sequence[str]


def find(root: Path, files: Sequence[Path]) -> FoundSteps:
    """Reads the ids of all rows."""
    starts = [0]
    groups: dict[tuple[Any, Any], list[int]] = {}
    all_times: list[np.ndarray] = []
    schema = None
    for file in files:
        with open_parquet(file) as opened:
            _check(opened.schema_arrow, schema, file)
            schema = opened.schema_arrow
            present = [name for name in _IDS if name in schema.names]
            ids = read_groups(opened, file, columns=present) if present else None
            count = opened.metadata.num_rows
        if ids is not None and "t" in present:
            all_times.append(_times(ids.column("t"), file))
        for row, name in enumerate(_ids(ids, present, count, starts[-1])):
            groups.setdefault(name, []).append(starts[-1] + row)
        starts.append(starts[-1] + count)
    assert schema is not None  # there is a file
    times = np.concatenate(all_times) if "t" in schema.names else None
    rows, ordered = [], []
    for found in groups.values():
        at = np.array(found, np.int64)
        at = at if times is None else at[np.argsort(times[at], kind="stable")]
        rows.append(at)
        ordered.append(None if times is None else times[at])
    lengths = [
        len(at) if t is None else len(np.unique(t)) for at, t in zip(rows, ordered, strict=True)
    ]
    return FoundSteps(
        files=files,
        starts=starts,
        names=[_key(name) for name in groups],
        rows=rows,
        times=ordered,
        lengths=lengths,
        step_bytes=_step_bytes(files, starts[-1]),
        guesses=_guesses(schema),
    )


def read(found: FoundSteps, start: int, stop: int) -> Iterator[tuple[str, Episode | EpisodeError]]:
    """Yields key and episode, or why it cannot be read."""
    wanted = found.rows[start:stop]
    chosen = np.sort(np.concatenate(wanted)) if wanted else np.zeros(0, np.int64)
    table = _rows(found, chosen)
    for position in range(start, stop):
        key = found.names[position]
        part = table.take(pa.array(np.searchsorted(chosen, found.rows[position])))
        try:
            yield key, _episode(part, found.times[position], key)
        except EpisodeError as fault:
            yield key, fault


def _check(schema: pa.Schema, before: pa.Schema | None, file: Path) -> None:
    absent = [name for name in _NEEDED if name not in schema.names]
    if absent or len(set(schema.names)) != len(schema.names):
        raise SourceError(
            f"Expected RLlib's columns {', '.join(_NEEDED)} once in {file}, came "
            f"{', '.join(schema.names[:16])}.",
            where=str(file),
        )
    for name in ("obs", "new_obs", "actions"):
        kind = schema.field(name).type if name in schema.names else pa.null()
        if pa.types.is_string(kind) or pa.types.is_binary(kind):
            raise SourceError(
                f"Expected numbers in the column {name!r} of {file}, came {kind}: RLlib's "
                f"compressed columns are pickles, which run code and are never opened; record "
                f"with output_compress_columns=[].",
                where=str(file),
            )
    if before is not None and schema.names != before.names:
        raise SourceError(
            f"Expected the same columns in every file, {file} has {', '.join(schema.names[:16])}.",
            where=str(file),
        )


def _ids(
    ids: pa.Table | None, present: Sequence[str], count: int, start: int
) -> Iterator[tuple[Any, Any]]:
    """Yields what tells the episode of each row."""
    if ids is None or "eps_id" not in present:
        yield from ((None, start + row) for row in range(count))
        return
    episodes = ids.column("eps_id").to_pylist()
    agents = ids.column("agent_id").to_pylist() if "agent_id" in present else [None] * count
    for episode, agent in zip(episodes, agents, strict=True):
        if not isinstance(episode, str | int) or not isinstance(agent, str | int | None):
            raise SourceError(f"Expected text or numbers as eps_id, came {episode!r}."[:200])
        yield episode, agent


def _key(name: tuple[Any, Any]) -> str:
    episode, agent = name
    if episode is None:
        return f"row {agent}"
    said = f"episode {episode!r}" if isinstance(episode, str) else f"episode {episode}"
    return said if agent is None else f"{said} of {agent!r}"


def _times(column: pa.ChunkedArray, file: Path) -> np.ndarray:
    if not pa.types.is_integer(column.type) or column.null_count:
        raise SourceError(
            f"Expected whole numbers in the column 't' of {file}, came {column.type}.",
            where=str(file),
        )
    return np.asarray(column.cast(pa.int64()).to_numpy())


def _step_bytes(files: Sequence[Path], rows: int) -> int:
    """Bytes of one step, as the files' footers tell."""
    total = 0
    for file in files:
        with open_parquet(file) as opened:
            groups = range(opened.metadata.num_row_groups)
            total += sum(opened.metadata.row_group(n).total_byte_size for n in groups)
    return total // max(1, rows)


def _guesses(schema: pa.Schema) -> list[str]:
    said = [GUESSES["infos"]] if "infos" in schema.names else []
    if "eps_id" not in schema.names:
        said.append(GUESSES["no_id"])
    elif "t" not in schema.names:
        said.append(GUESSES["no_t"])
    if "new_obs" not in schema.names:
        said.append(GUESSES["no_final"])
    if "terminateds" not in schema.names and "dones" in schema.names:
        said.append(GUESSES["no_terminateds"])
    for name in ("obs", "new_obs", "actions"):
        if name in schema.names and _stated_shape(schema.field(name)) == ():
            said.append(GUESSES["shape"].format(name=name))
    return said


def _rows(found: FoundSteps, chosen: np.ndarray) -> pa.Table:
    """Reads some rows, counted over all files and in order."""
    parts = []
    for index, file in enumerate(found.files):
        first, last = found.starts[index], found.starts[index + 1]
        here = chosen[(chosen >= first) & (chosen < last)] - first
        if not len(here):
            continue
        with open_parquet(file) as opened:
            names = [n for n in opened.schema_arrow.names if n not in _LEFT_OUT]
            sizes = [opened.metadata.row_group(n).num_rows for n in range(opened.num_row_groups)]
            ends = np.cumsum(sizes)
            needed = np.unique(np.searchsorted(ends, here, side="right"))
            if len(ends) == 0 or needed[-1] >= len(ends):
                raise SourceError(f"Expected {last - first} rows in {file}, it changed.")
            before = np.concatenate([[0], ends])[needed]
            shift = before - np.concatenate([[0], np.cumsum(np.array(sizes)[needed])[:-1]])
            at = here - shift[np.searchsorted(needed, np.searchsorted(ends, here, side="right"))]
            table = read_groups(opened, file, needed.tolist(), names)
        parts.append(table.take(pa.array(at)))
    return pa.concat_tables(parts, promote_options="default") if parts else pa.table({})


def _episode(table: pa.Table, times: np.ndarray | None, key: str) -> Episode:
    if times is not None:
        table = _in_time(table, times, key)
    columns = {name: _array(table, name, key) for name in table.column_names if name not in _IDS}
    steps = table.num_rows
    observations = arrays_of("observations", columns["obs"])
    actions = arrays_of("actions", columns["actions"])
    final: FinalObservation = "missing"
    if "new_obs" in columns:
        following = arrays_of("observations", columns["new_obs"])
        observations = _with_final(observations, following, key)
        final = "present"
    flags = {name: _flags(columns, name, steps, key) for name in ("terminateds", "truncateds")}
    rewards = columns.get("rewards")
    if rewards is not None and not isinstance(rewards, np.ndarray):
        raise _fault(key, "one reward per step", "several", "bad_dtype")
    return Episode(
        episode_id="",
        observations=observations,
        actions=actions.get("actions", actions),
        rewards=rewards,
        terminated=flags["terminateds"],
        truncated=flags["truncateds"],
        final_observation=final,
        extras={n: a for n, a in columns.items() if n not in _KNOWN and isinstance(a, np.ndarray)},
    )


def _in_time(table: pa.Table, times: np.ndarray, key: str) -> pa.Table:
    """Drops rows that are there twice; refuses conflicts and gaps."""
    kept = np.concatenate([[True], np.diff(times) != 0])
    for row in np.flatnonzero(~kept).tolist():
        if table.slice(row, 1).to_pylist() != table.slice(row - 1, 1).to_pylist():
            raise _fault(key, f"one row for step {times[row]}", "two that differ", "id_conflict")
    present = times[kept]
    if present[0] != 0 or (np.diff(present) != 1).any():
        at = 0 if present[0] != 0 else int(present[np.flatnonzero(np.diff(present) != 1)[0]]) + 1
        raise _fault(key, f"a row for step {at}", "none", "gap")
    return table.filter(pa.array(kept))


def _with_final(
    observations: Mapping[str, np.ndarray], following: Mapping[str, np.ndarray], key: str
) -> dict[str, np.ndarray]:
    joined = {}
    for name, rows in observations.items():
        after = following.get(name)
        if after is None or after.shape != rows.shape:
            raise _fault(key, "new_obs like obs", "another shape", "length_mismatch")
        after = after.astype(rows.dtype, copy=False)
        gaps = np.flatnonzero(differing_rows(after[:-1], rows[1:]))
        if len(gaps):
            raise _fault(
                key, f"new_obs of row {gaps[0]} to be obs of the row after", "another", "gap"
            )
        joined[name] = np.concatenate([rows, after[-1:]])
    return joined


def _flags(columns: Mapping[str, Nested], name: str, steps: int, key: str) -> np.ndarray:
    if name not in columns and name == "terminateds":
        name = "dones"
    flags = columns.get(name, np.zeros(steps, bool))
    if not isinstance(flags, np.ndarray) or flags.shape != (steps,):
        raise _fault(key, f"one flag per step in {name}", "another shape", "length_mismatch")
    if not np.isin(flags, (0, 1)).all():
        raise _fault(key, f"0 and 1 in {name}", "other values", "bad_dtype")
    if flags[:-1].any():
        raise _fault(key, f"{name} on the last step only", "an earlier one", "flags_inconsistent")
    return flags.astype(bool)


def _array(table: pa.Table, name: str, key: str) -> Nested:
    column = table.column(name)
    chunk = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    shape = _stated_shape(table.schema.field(name))
    return _values(chunk, f"{key}, column {name}", 0, shape or None, is_needed=name in _KNOWN)


def _stated_shape(field: pa.Field) -> tuple[int, ...] | None:
    """The shape of a tensor column's rows: () where only a pickle states it, None for others."""
    stated = (field.metadata or {}).get(_SHAPE)
    if stated is None:
        return None
    try:
        shape = json.loads(stated)
    except (ValueError, RecursionError):
        return ()
    is_shape = isinstance(shape, list) and all(type(n) is int and 0 < n < 2**31 for n in shape)
    return tuple(shape) if is_shape else ()


def _values(
    values: pa.Array, where: str, depth: int, shape: tuple[int, ...] | None, *, is_needed: bool
) -> Nested:
    """Returns rows as numbers (N, ...), structs as mappings of them."""
    kind = values.type
    if isinstance(values, pa.ExtensionArray):
        values, kind = values.storage, values.storage.type
    if depth > _DEPTH:
        raise _fault(where, f"values nested at most {_DEPTH} deep", "deeper ones")
    if pa.types.is_struct(kind) and not values.null_count:
        fields = [kind.field(n).name for n in range(kind.num_fields)]
        return {
            name: _values(values.field(n), where, depth + 1, None, is_needed=is_needed)
            for n, name in enumerate(fields)
        }
    if not (pa.types.is_boolean(kind) or _is_number(kind) or _is_list(kind)):
        return _no_numbers(kind, where, is_needed)
    if values.null_count:
        raise _fault(where, "a value in every row", f"{values.null_count} without")
    if not _is_list(kind):
        return np.asarray(values.to_numpy(zero_copy_only=False))
    inner = values.flatten()
    count = len(values)
    lengths = np.unique(np.diff(np.asarray(values.offsets)) if hasattr(values, "offsets") else [])
    if len(lengths) > 1:
        raise _fault(where, "rows of one length", "others", "length_mismatch")
    size = len(inner) // count if count else 0
    below = _values(inner, where, depth + 1, None, is_needed=is_needed)
    if not isinstance(below, np.ndarray):
        return _no_numbers(kind, where, is_needed)
    if shape is not None and math.prod(shape) != size * math.prod(below.shape[1:]):
        raise _fault(where, f"rows of shape {shape}", f"{size} values", "length_mismatch")
    return below.reshape(count, *(shape or (size, *below.shape[1:])))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _is_list(kind: pa.DataType) -> bool:
    tests = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(test(kind) for test in tests)


def _no_numbers(kind: pa.DataType, where: str, is_needed: bool) -> Nested:
    """What is no numbers is left out (as an empty mapping) where an episode does without."""
    if is_needed:
        raise _fault(where, "numbers", str(kind), "bad_dtype")
    return {}


def _fault(where: str, expected: str, came: str, code: str = "unreadable") -> EpisodeError:
    return EpisodeError(f"Expected {expected} in {where}, came {came}.", code=code, where=where)
