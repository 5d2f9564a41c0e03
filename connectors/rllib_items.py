"""RLlib's recorded episodes: one msgpack message per row of the column `item`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from connectors.arrow_files import open_parquet, read_groups
from connectors.rllib_msgpack import PICKLED, arrays_of, unpack
from schemas.episode import Episode
from schemas.errors import EpisodeError, SourceError
from schemas.nesting import Nested

_NEEDED = ("id_", "t", "t_started", "observations", "actions", "rewards")
_DEPTH = 8


GUESSES = {
    "infos": "infos are left out",
    "doubles": "{number} episodes that were recorded twice are read once",
}


@dataclass(frozen=True)
class Place:
    """Where one recorded episode is."""

    file: Path
    group: int
    row: int
    """In its row group."""
    key: str
    is_conflict: bool = False
    """Another one of its id came before, with other content."""


@dataclass(frozen=True)
class FoundItems:
    """All recorded episodes, doubles dropped."""

    places: Sequence[Place]
    lengths: Sequence[int]
    step_bytes: int
    guesses: Sequence[str]


def find(root: Path, files: Sequence[Path]) -> FoundItems:
    """Unpacks every message for its id and length."""
    places: list[Place] = []
    lengths: list[int] = []
    seen: dict[str, bytes] = {}
    doubles = largest = 0
    for place, message in _messages(root, files):
        try:
            state = _state(message, place.key)
        except EpisodeError:  # reading reports it
            places.append(place)
            lengths.append(0)
            continue
        name, digest = str(state["id_"]), hashlib.sha256(message).digest()
        if seen.get(name) == digest:
            doubles += 1
            continue
        places.append(replace(place, is_conflict=name in seen))
        lengths.append(max(0, state["t"] - state["t_started"]))
        largest = max(largest, len(message) // max(1, lengths[-1]))
        seen.setdefault(name, digest)
    said = [GUESSES["infos"]]
    if doubles:
        said.append(GUESSES["doubles"].format(number=doubles))
    return FoundItems(places, lengths, largest, said)


def read(found: FoundItems, start: int, stop: int) -> Iterator[tuple[str, Episode | EpisodeError]]:
    """Yields key and episode, or why it cannot be read."""
    items, held = None, None
    for place in found.places[start:stop]:
        if held != (place.file, place.group):
            with open_parquet(place.file) as opened:
                items = _items(opened, place.file, place.group)
            held = (place.file, place.group)
        message = b"" if items is None else items[place.row].as_py() or b""
        try:
            yield place.key, _episode(message, place)
        except EpisodeError as fault:
            yield place.key, fault


def _messages(root: Path, files: Sequence[Path]) -> Iterator[tuple[Place, bytes]]:
    for file in files:
        name = file.relative_to(root).as_posix()
        first = 0
        with open_parquet(file) as opened:
            for group in range(opened.metadata.num_row_groups):
                items = _items(opened, file, group)
                for row in range(len(items)):
                    place = Place(file, group, row, f"{name} row {first + row}")
                    yield place, items[row].as_py() or b""
                first += len(items)


def _items(opened: Any, file: Path, group: int) -> pa.ChunkedArray:
    items = read_groups(opened, file, [group], ["item"]).column("item")
    if not (pa.types.is_binary(items.type) or pa.types.is_large_binary(items.type)):
        raise SourceError(
            f"Expected msgpack in the column 'item' of {file}, came {items.type}.", where=str(file)
        )
    return items


def _state(message: bytes, key: str) -> dict[str, Any]:
    """Returns an episode's state, its counts checked."""
    state = unpack(message, key)
    absent = [name for name in _NEEDED if not isinstance(state, dict) or name not in state]
    if absent:
        raise EpisodeError(
            f"Expected an episode's state in {key}, {', '.join(absent)} missing (episodes of "
            f"several agents are not read).",
            code="unreadable",
            where=key,
        )
    if not all(type(state[name]) is int and state[name] >= 0 for name in ("t", "t_started")):
        raise EpisodeError(
            f"Expected t and t_started as counts in {key}, came {state['t']!r} and "
            f"{state['t_started']!r}."[:300],
            code="bad_dtype",
            where=key,
        )
    return dict(state)


def _episode(message: bytes, place: Place) -> Episode:
    key = place.key
    state = _state(message, key)
    if place.is_conflict:
        raise _fault(key, "one episode per id", f"another one of {state['id_']!r}", "id_conflict")
    if state["t_started"]:
        raise _fault(key, "an episode from its first step", f"step {state['t_started']}", "gap")
    terminated, truncated = state.get("is_terminated"), state.get("is_truncated")
    if not terminated and not truncated:
        raise _fault(key, "an episode that is done", "one that goes on", "flags_inconsistent")
    steps = state["t"]
    outputs = state.get("extra_model_outputs")
    outputs = outputs if isinstance(outputs, dict) else {}
    extras = _extras({str(n): _rows(buffer, key) for n, buffer in outputs.items()}, steps)
    actions = arrays_of("actions", _rows(state["actions"], key))
    rewards = _rows(state["rewards"], key)
    if not isinstance(rewards, np.ndarray) or rewards.shape != (steps,):
        came = rewards.shape if isinstance(rewards, np.ndarray) else type(rewards).__name__
        raise _fault(key, f"{steps} rewards", str(came), "length_mismatch")
    is_last = np.arange(steps) == steps - 1
    return Episode(
        episode_id="",
        observations=arrays_of("observations", _rows(state["observations"], key)),
        actions=actions.get("actions", actions),
        rewards=rewards,
        terminated=is_last & bool(terminated),
        truncated=is_last & (bool(truncated) and not terminated),
        final_observation="present",
        extras=extras,
    )


def _extras(outputs: Mapping[str, Nested], steps: int) -> dict[str, np.ndarray]:
    """What is one number or array per step; other outputs are left out."""
    flat = {n: a for key, value in outputs.items() for n, a in arrays_of(key, value).items()}
    return {n: a for n, a in flat.items() if a.dtype.kind in "biuf" and len(a) == steps}


def _rows(buffer: Any, key: str) -> Nested:
    """Returns a lookback buffer's data without its lookback, as arrays with a time axis."""
    if not isinstance(buffer, dict) or "data" not in buffer:
        raise _fault(key, "a buffer with data", type(buffer).__name__)
    lookback = buffer.get("lookback", 0)
    if type(lookback) is not int or lookback < 0:
        raise _fault(key, "a lookback of 0 or more", repr(lookback)[:40])
    return _stacked(buffer["data"], lookback, key, 0)


def _stacked(data: Any, lookback: int, key: str, depth: int) -> Nested:
    if depth > _DEPTH:
        raise _fault(key, f"spaces nested at most {_DEPTH} deep", "deeper ones")
    if isinstance(data, np.ndarray):
        return data[lookback:] if data.ndim else _not_rows(key, data)
    if isinstance(data, dict):
        return {str(k): _stacked(v, lookback, key, depth + 1) for k, v in data.items()}
    if not isinstance(data, list):
        return _not_rows(key, data)
    rows = data[lookback:]
    if rows and all(isinstance(row, dict) and row.keys() == rows[0].keys() for row in rows):
        return {str(k): _stacked([r[k] for r in rows], 0, key, depth + 1) for k in rows[0]}
    is_tuples = rows and all(isinstance(r, list) and len(r) == len(rows[0]) for r in rows)
    if is_tuples and any(isinstance(part, np.ndarray | dict | list) for part in rows[0]):
        parts = range(len(rows[0]))
        return tuple(_stacked([row[n] for row in rows], 0, key, depth + 1) for n in parts)
    try:
        stacked = np.array(rows)
    except ValueError as error:
        raise _fault(key, "rows of one shape", "others", "length_mismatch") from error
    return stacked if stacked.dtype.kind in "biuf" else _not_rows(key, rows)


def _not_rows(key: str, data: Any) -> Nested:
    parts = data if isinstance(data, list) else [data]
    if any(part is PICKLED for part in parts):
        raise _fault(key, "arrays of numbers", "objects that only a pickle holds", "bad_dtype")
    raise _fault(key, "rows of numbers", type(data).__name__, "bad_dtype")


def _fault(key: str, expected: str, came: str, code: str = "unreadable") -> EpisodeError:
    return EpisodeError(f"Expected {expected} in {key}, came {came}.", code=code, where=key)
