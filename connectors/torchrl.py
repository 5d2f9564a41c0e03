"""Reads TorchRL's replay buffers on disk: `ReplayBuffer.dumps`, or `TensorDict.memmap` itself.

* Steps (TED) have `observation`, `action` and, under `next`, `observation`, `reward` and the end
  flags, N rows of each. Fields that stand under `next` too are observations. An episode ends where
  `terminated`, `truncated` or `done` is set, or the trajectory's number changes.
* Flat storages (`TED2Flat`) have the end flags at the root, and one observation more per episode.
* The final observation is `next`'s last. One that repeats the last observation bit for bit is a
  copy; one of zeros only, which TorchRL's own dataset readers put where it was lost, is missing.
* Inside an episode a row's next observation must be the next row's: else steps are missing.
* A buffer that is full begins at its writer's cursor; its first episode may have lost its start.
* Rows after the last end are an episode that merely stops.

Pickles beside the memory maps (`prefetch.pkl`, `other.pickle`) are never opened.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from connectors.base import Found, Listing, Unit
from connectors.files import fingerprint
from connectors.next_rows import differing_rows
from connectors.torchrl_storage import Map, Storage, open_storage, read_object
from connectors.units import check_count, plan_units
from schemas.episode import Episode, FinalObservation
from schemas.errors import EpisodeError, NotFoundError, SourceError

_GUESSES = {
    "no_terminated": "no terminated: what is done but not truncated was terminated",
    "no_truncated": "no truncated: what is done but not terminated was cut off",
    "stops": "the rows after the last end are kept as an episode that merely stops",
    "full": "the buffer was full: its first episode may have lost its start",
    "zeros": "a final observation of zeros only counts as missing",
    "left_out": "pickles are left out: {names}",
}
FLAGS = ("terminated", "truncated", "done")
_TRAJECTORIES = ("collector/traj_ids", "episode", "traj_ids")
_BOOKKEEPING = (*FLAGS, "is_init", "index", "_weight", "priority")


class TorchrlSource:
    """TorchRL's memory maps as a source."""

    def guesses(self) -> tuple[str, ...]:
        """Says what may be guessed (see `connectors.base.Source`)."""
        return tuple(_GUESSES.values())

    def discover(self, where: str) -> Listing:
        """Finds the episodes from the end flags (see `connectors.base.Source`)."""
        buffer = _open(where)
        lengths = np.diff(buffer.ends, prepend=0)
        units = tuple(
            Unit(format="torchrl", where=where, start=start, stop=stop, steps=steps)
            for start, stop, steps in plan_units(lengths, buffer.row_bytes)
        )
        return Listing(
            format="torchrl",
            where=where,
            identity=None,
            units=units,
            episodes=len(lengths),
            steps=int(lengths.sum()),
            fingerprint=fingerprint(buffer.storage.folder, buffer.storage.files),
            guesses=_guesses(buffer),
        )

    def read(self, unit: Unit) -> Iterator[Found]:
        """Reads episodes; one with a gap comes back as a fault."""
        buffer = _open(unit.where)
        check_count(unit, len(buffer.ends))
        for position in range(unit.start, unit.stop):
            start = int(buffer.ends[position - 1]) if position else 0
            stop = int(buffer.ends[position])
            key = f"rows {start}:{stop}"
            try:
                parts = buffer.flat(position) if buffer.is_flat else buffer.steps(start, stop)
                flags: dict[str, Any] = {n: a[start:stop] for n, a in buffer.flags.items()}
                episode = Episode(
                    episode_id="", source=unit.where, source_key=key, **flags, **parts
                )
                yield Found(key, position, None, episode)
            except EpisodeError as fault:
                yield Found(key, position, None, None, fault)


@dataclass(frozen=True)
class _Buffer:
    """A storage, understood."""

    storage: Storage
    rows: int
    cursor: int
    """Stored row that comes first; 0 unless the buffer is full."""
    is_flat: bool
    ends: np.ndarray  # (E,) int64, exclusive end row of each episode
    flags: Mapping[str, np.ndarray]  # terminated and truncated, each (rows,) bool
    observed: tuple[str, ...]
    acted: tuple[str, ...]
    extras: tuple[str, ...]
    stops: bool
    """Rows follow the last end."""

    @property
    def row_bytes(self) -> int:
        """Bytes of one step's observations."""
        return sum(self.storage.maps[name].row_bytes for name in self.observed)

    def steps(self, start: int, stop: int) -> dict[str, Any]:
        """Returns the arrays of rows `start:stop` as arguments of `Episode`."""
        named = {name: self._read(name, start, stop) for name in self.observed}
        following = {name: self._read(f"next/{name}", start, stop) for name in self.observed}
        for name, rows in named.items():
            gaps = np.flatnonzero(differing_rows(following[name][:-1], rows[1:]))
            if len(gaps):
                raise EpisodeError(
                    f"Expected next/{name} of row {start + gaps[0]} to be {name} of the row after, "
                    f"they differ: steps are missing between them, or rows are not in order.",
                    code="gap",
                    where=f"rows {start}:{stop}",
                )
        final = _final(named, following)
        if final != "missing":
            named = {n: np.concatenate([rows, following[n][-1:]]) for n, rows in named.items()}
        return {
            **self._others(start, stop, "next/reward"),
            "observations": _below("observations", "observation", named),
            "final_observation": final,
        }

    def flat(self, position: int) -> dict[str, Any]:
        """Returns the arrays of one episode of a flat storage as arguments of `Episode`."""
        start = int(self.ends[position - 1]) if position else 0
        stop = int(self.ends[position])
        rows = (start + position, stop + position + 1)  # one more row for each episode before
        named = {name: self.storage.maps[name].read(*rows) for name in self.observed}
        before = {name: array[:-1] for name, array in named.items()}
        final = _final(before, {name: array[1:] for name, array in named.items()})
        return {
            **self._others(start, stop, "reward"),
            "observations": _below(
                "observations", "observation", before if final == "missing" else named
            ),
            "final_observation": final,
        }

    def _others(self, start: int, stop: int, reward: str) -> dict[str, Any]:
        acted = {name: self._read(name, start, stop) for name in self.acted}
        has_reward = reward in self.storage.maps
        rewards = self._read(reward, start, stop).reshape(stop - start, -1) if has_reward else None
        if rewards is not None and rewards.shape[1] != 1:
            raise EpisodeError(
                f"Expected one reward per step, came {rewards.shape[1]}.",
                code="length_mismatch",
                where=f"rows {start}:{stop}",
            )
        return {
            "actions": _below("actions", "action", acted) or None,
            "rewards": None if rewards is None else rewards[:, 0],
            "extras": {name: self._read(name, start, stop) for name in self.extras},
        }

    def _read(self, name: str, start: int, stop: int) -> np.ndarray:
        return _rolled(self.storage.maps[name], start, stop, self.cursor, self.rows)


def _open(where: str) -> _Buffer:
    path = Path(where)
    if not path.exists():
        raise NotFoundError(f"Expected a replay buffer, there is nothing at {where}.", where=where)
    is_dump = (path / "storage").is_dir() and not (path / "storage").is_symlink()
    storage = open_storage(path / "storage" if is_dump else path)
    folder = storage.folder
    stated = folder / "storage_metadata.json"
    metadata = read_object(stated) if stated.exists() else {}
    if metadata.get("is_pytree"):
        raise SourceError(f"Expected a tensordict at {where}, came another tree.", where=where)
    is_flat = not any(name.startswith("next/") for name in storage.maps)
    if is_flat:
        return _open_flat(storage, metadata)
    writer = path / "writer" / "metadata.json"
    return _open_steps(storage, metadata, read_object(writer) if writer.exists() else {})


def _open_steps(
    storage: Storage, metadata: Mapping[str, Any], writer: Mapping[str, Any]
) -> _Buffer:
    maps = storage.maps
    stored = _common_rows(storage, {n: m for n, m in maps.items() if n.startswith("next/")})
    rows = _count(metadata, "len", stored, stored, storage)
    cursor = _count(writer, "cursor", 0, stored, storage) % max(1, stored) if rows == stored else 0
    following = {name.removeprefix("next/") for name in maps if name.startswith("next/")}
    observed = tuple(sorted((following & maps.keys()) - {*_BOOKKEEPING, "reward"}))
    flags = {
        name: _any(_rolled(maps[f"next/{name}"], 0, rows, cursor, rows))
        for name in FLAGS
        if f"next/{name}" in maps
    }
    is_end = _ends(flags, rows, storage)
    for name in _TRAJECTORIES:
        if name in maps:
            numbers = _rolled(maps[name], 0, rows, cursor, rows)
            numbers = numbers.reshape(rows, int(np.prod(numbers.shape[1:], dtype=np.int64)))
            is_end[:-1] |= (numbers[1:] != numbers[:-1]).any(axis=1)
    return _buffer(storage, rows, cursor, is_end, flags, observed, is_flat=False)


def _open_flat(storage: Storage, metadata: Mapping[str, Any]) -> _Buffer:
    maps = storage.maps
    shape = storage.values.get("_storage_shape")
    if isinstance(shape, list) and len(shape) != 1:
        raise _refused(storage, "a storage with one axis of steps", f"the shape {shape}")
    present = {name: maps[name] for name in (*FLAGS, "reward") if name in maps}
    stored = _common_rows(storage, present)
    rows = stored
    if not storage.values.get("is_full", True):
        rows = _count(storage.values, "shift", stored, stored, storage)
    rows = _count(metadata, "len", rows, rows, storage)
    flags = {name: _any(maps[name].read(0, rows)) for name in FLAGS if name in maps}
    is_end = _ends(flags, rows, storage)
    episodes = int(is_end.sum()) + (bool(rows) and not is_end[-1])
    most = rows + episodes
    observed = tuple(sorted(name for name, m in maps.items() if m.shape and m.shape[0] > stored))
    short = [name for name in observed if maps[name].shape[0] < most]
    if short or not observed:
        came = f"{maps[short[0]].shape[0]} of {short[0]}" if short else "none"
        raise _refused(storage, f"{most} observations of {episodes} episodes", came)
    return _buffer(storage, rows, 0, is_end, flags, observed, is_flat=True)


def _buffer(
    storage: Storage,
    rows: int,
    cursor: int,
    is_end: np.ndarray,
    flags: Mapping[str, np.ndarray],
    observed: tuple[str, ...],
    *,
    is_flat: bool,
) -> _Buffer:
    maps = storage.maps
    if not observed:
        raise _refused(storage, "an observation beside its next one", ", ".join(sorted(maps)))
    ends = np.flatnonzero(is_end) + 1
    stops = bool(rows and (not len(ends) or ends[-1] != rows))
    acted = tuple(sorted(n for n in maps if n == "action" or n.startswith("action/")))
    known = {*observed, *acted, *_BOOKKEEPING, "reward"}
    stored = maps[f"next/{observed[0]}"].shape[0] if not is_flat else rows
    extras = sorted(
        name
        for name, m in maps.items()
        if name not in known and not name.startswith("next/") and m.shape and m.shape[0] >= stored
    )
    terminated = flags.get("terminated")
    truncated = flags.get("truncated")
    if terminated is None:
        done = flags.get("done", np.zeros(rows, bool))
        terminated = done if truncated is None else done & ~truncated
    if truncated is None:
        truncated = flags.get("done", terminated) & ~terminated
    return _Buffer(
        storage=storage,
        rows=rows,
        cursor=cursor,
        is_flat=is_flat,
        ends=(np.append(ends, rows) if stops else ends).astype(np.int64),
        flags={"terminated": terminated, "truncated": truncated},
        observed=observed,
        acted=acted,
        extras=tuple(extras),
        stops=stops,
    )


def _guesses(buffer: _Buffer) -> tuple[str, ...]:
    said = []
    prefix = "" if buffer.is_flat else "next/"
    if f"{prefix}terminated" not in buffer.storage.maps:
        said.append(_GUESSES["no_terminated"])
    elif f"{prefix}truncated" not in buffer.storage.maps:
        said.append(_GUESSES["no_truncated"])
    if buffer.stops:
        said.append(_GUESSES["stops"])
    if buffer.cursor:
        said.append(_GUESSES["full"])
    said.append(_GUESSES["zeros"])
    if buffer.storage.left_out:
        said.append(_GUESSES["left_out"].format(names=", ".join(buffer.storage.left_out)))
    return tuple(said)


def _ends(flags: Mapping[str, np.ndarray], rows: int, storage: Storage) -> np.ndarray:
    if not flags:
        raise _refused(storage, f"an end flag ({', '.join(FLAGS)})", ", ".join(storage.maps))
    return np.asarray(np.logical_or.reduce([np.zeros(rows, bool), *flags.values()]))


def _any(flags: np.ndarray) -> np.ndarray:
    """Returns (N,) bool of flags (N, ...), which mostly are (N, 1)."""
    return np.asarray(flags.any(axis=tuple(range(1, flags.ndim))))


def _final(
    named: Mapping[str, np.ndarray], following: Mapping[str, np.ndarray]
) -> FinalObservation:
    lasts = [(rows[-1:], following[name][-1:]) for name, rows in named.items()]
    if any(last.any() for last, _ in lasts) and not any(after.any() for _, after in lasts):
        return "missing"
    moved = any(differing_rows(last, after)[0] for last, after in lasts)
    return "present" if moved else "copied"


def _below(group: str, name: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Names arrays below a group: `observation` -> `observations`, others -> `observations/x`."""
    if set(arrays) == {name}:
        return {group: arrays[name]}
    return {f"{group}/{key.removeprefix(f'{name}/')}": array for key, array in arrays.items()}


def _rolled(stored: Map, start: int, stop: int, cursor: int, rows: int) -> np.ndarray:
    """Returns rows `start:stop` of a ring that begins at `cursor`."""
    first, last = start + cursor, stop + cursor
    if not cursor or last <= rows:
        return stored.read(first, last)
    if first >= rows:
        return stored.read(first - rows, last - rows)
    return np.concatenate([stored.read(first, rows), stored.read(0, last - rows)])


def _common_rows(storage: Storage, maps: Mapping[str, Map]) -> int:
    counts = {name: (m.shape or (0,))[0] for name, m in maps.items()}
    if len(set(counts.values())) != 1:
        said = ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"
        raise _refused(storage, "end flags and rewards of one length", said)
    return next(iter(counts.values()))


def _count(stated: Mapping[str, Any], name: str, default: int, most: int, storage: Storage) -> int:
    value = stated.get(name, default)
    if type(value) is not int or not 0 <= value <= most:
        raise _refused(storage, f"{name} of 0 to {most}", repr(value)[:40])
    return value


def _refused(storage: Storage, expected: str, came: str) -> SourceError:
    return SourceError(
        f"Expected {expected} in {storage.folder}, came {came}.", where=str(storage.folder)
    )
