"""Reads d3rlpy's replay buffers: one HDF5 file of version 2.1, or the flat file of version 1.

* Version 2.1 has `num_episodes`, `columns`, and per episode i `observations_<i>` (or one
  `observations_<i>_<j>` for each part of a tuple), `actions_<i>`, `rewards_<i>` (T, 1) and the
  scalar `terminated_<i>`. d3rlpy itself refuses version 2.0, and so do we.
* Version 1 has `observations`, `actions`, `rewards`, `terminals` and mostly `episode_terminals`
  over all steps; an episode ends where either is set.
* There are T observations: the final one is missing. An episode that is not terminated was cut off,
  and then its last step is no transition, as in d3rlpy.
* Rows after the last end of a version 1 file are an episode that merely stops.

The file has no identity of its own, so its episodes are named by content.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from connectors.base import UNIT_STEPS, Found, Listing, Unit
from connectors.files import fingerprint
from connectors.hdf5 import Hdf5Array, Hdf5Group, UnreadableError, open_hdf5, rows_differ
from connectors.units import check_count, plan_units
from schemas.episode import Episode
from schemas.errors import EpisodeError, SourceError

VERSION = "2.1"
_CUT_OFF = "an episode that is not terminated was cut off; final observations are missing"
_RUNS_ON = "no episode_terminals: one that was cut off runs into the next"
_STOPS = "the rows after the last end are kept as an episode that merely stops"
_COLUMNS = ("observations", "actions", "rewards", "terminated")
_FLAT = ("observations", "actions", "rewards", "terminals")
_MOST_PARTS = 256
"""Parts of a tuple observation."""


class D3rlpySource:
    """d3rlpy's HDF5 layouts as a source."""

    def guesses(self) -> tuple[str, ...]:
        """Says what may be guessed (see `connectors.base.Source`)."""
        return (_CUT_OFF, _RUNS_ON, _STOPS)

    def discover(self, where: str) -> Listing:
        """Reads the lengths of episodes (see `connectors.base.Source`)."""
        path = Path(where)
        with open_hdf5(path) as file:
            book = _open(file)
            lengths = book.lengths()
            units = tuple(
                Unit(format="d3rlpy", where=where, start=start, stop=stop, steps=steps)
                for start, stop, steps in plan_units(lengths, book.step_bytes())
            )
            guesses = book.guesses()
        return Listing(
            format="d3rlpy",
            where=where,
            identity=None,
            units=units,
            episodes=len(lengths),
            steps=sum(lengths),
            fingerprint=fingerprint(path.parent, [path]),
            metadata={"version": book.version},
            guesses=guesses,
        )

    def read(self, unit: Unit) -> Iterator[Found]:
        """Reads episodes; one that cannot be read comes back as a fault."""
        with open_hdf5(unit.where) as file:
            book = _open(file)
            check_count(unit, book.count)
            for position in range(unit.start, unit.stop):
                key = f"episode_{position}"
                try:
                    parts = book.read(position)
                    episode = Episode(episode_id="", source=unit.where, source_key=key, **parts)
                    yield Found(key, position, None, episode)
                except EpisodeError as fault:
                    yield Found(key, position, None, None, fault)
                except UnreadableError as error:
                    damage = EpisodeError(error.message, code="unreadable", where=key)
                    yield Found(key, position, None, None, damage)


@dataclass(frozen=True)
class _Episodes:
    """A file of version 2.1."""

    file: Hdf5Group
    count: int
    version: str = VERSION

    def lengths(self) -> list[int]:
        """Steps of each episode; 0 where there are none, which reading reports."""
        return [self._length(index) for index in range(self.count)]

    def step_bytes(self) -> int:
        """Bytes of one step's observations."""
        try:
            return sum(a.row_bytes for a in self._observations(0).values()) if self.count else 0
        except SourceError:
            return 0

    def guesses(self) -> tuple[str, ...]:
        """In words."""
        return (_CUT_OFF,)

    def read(self, index: int) -> dict[str, Any]:
        """Returns one episode's arrays as arguments of `Episode`."""
        observed = self._observations(index)
        steps = {name: self.file.array(f"{name}_{index}") for name in ("actions", "rewards")}
        lengths = rows_differ({**observed, **steps})
        if lengths:
            raise EpisodeError(
                f"Expected arrays of one length in episode {index}, came {lengths}.",
                code="length_mismatch",
                where=f"episode_{index}",
            )
        terminated = self.file.array(f"terminated_{index}").scalar()
        if terminated not in (0, 1):
            raise EpisodeError(
                f"Expected terminated_{index} as one flag, came {terminated!r}.",
                code="bad_dtype",
                where=f"episode_{index}",
            )
        return {
            "observations": {name: array.read() for name, array in observed.items()},
            "actions": steps["actions"].read(),
            "rewards": _flat(steps["rewards"].read(), f"rewards_{index}"),
            "terminated": bool(terminated),
            "truncated": not terminated,
            "final_observation": "missing",
        }

    def _length(self, index: int) -> int:
        try:
            return (self.file.array(f"actions_{index}").shape or (0,))[0]
        except UnreadableError:
            return 0

    def _observations(self, index: int) -> dict[str, Hdf5Array]:
        name = f"observations_{index}"
        if name in self.file:
            return {"observations": self.file.array(name)}
        parts: dict[str, Hdf5Array] = {}
        while f"{name}_{len(parts)}" in self.file and len(parts) < _MOST_PARTS:
            parts[f"observations/{len(parts)}"] = self.file.array(f"{name}_{len(parts)}")
        return parts or {"observations": self.file.array(name)}  # raises: it is not there


@dataclass(frozen=True)
class _Flat:
    """A file of version 1."""

    file: Hdf5Group
    ends: np.ndarray  # (E,) int64, exclusive end row of each episode
    has_ends: bool
    """The file states where episodes were cut off."""
    stops: bool
    """Rows follow the last end."""
    version: str = "1"

    @property
    def count(self) -> int:
        """Episodes in the file."""
        return len(self.ends)

    def lengths(self) -> list[int]:
        """Steps of each episode."""
        found: list[int] = np.diff(self.ends, prepend=0).tolist()
        return found

    def step_bytes(self) -> int:
        """Bytes of one step's observations."""
        return self.file.array("observations").row_bytes

    def guesses(self) -> tuple[str, ...]:
        """In words."""
        said = [_CUT_OFF]
        if not self.has_ends:
            said.append(_RUNS_ON)
        if self.stops:
            said.append(_STOPS)
        return tuple(said)

    def read(self, index: int) -> dict[str, Any]:
        """Returns one episode's arrays as arguments of `Episode`."""
        start, stop = int(self.ends[index - 1]) if index else 0, int(self.ends[index])
        rows = {name: self.file.array(name).read(start, stop) for name in _FLAT}
        terminated = _flags(rows["terminals"], f"{self.file.where}:terminals")
        is_open = self.stops and index == len(self.ends) - 1
        return {
            "observations": rows["observations"],
            "actions": rows["actions"],
            "rewards": _flat(rows["rewards"], "rewards"),
            "terminated": terminated,
            "truncated": not terminated[-1] and not is_open,
            "final_observation": "missing",
        }


def _open(file: Hdf5Group) -> _Episodes | _Flat:
    if "num_episodes" in file:
        return _open_episodes(file)
    absent = [name for name in _FLAT if name not in file]
    if absent:
        there = ", ".join(file.names()[:12]) or "nothing"
        raise SourceError(
            f"Expected num_episodes or the arrays {', '.join(_FLAT)} in {file.where}, "
            f"{', '.join(absent)} missing; there is {there}.",
            where=file.where,
        )
    return _open_flat(file)


def _open_episodes(file: Hdf5Group) -> _Episodes:
    version = file.array("version").scalar() if "version" in file else None
    if version != VERSION:
        raise SourceError(
            f"Expected d3rlpy's file version {VERSION} in {file.where}, came {version!r}; load and "
            f"dump it with d3rlpy 2 first.",
            where=file.where,
        )
    count = file.array("num_episodes").scalar()
    if not isinstance(count, int) or not 0 <= count <= len(file.names()):
        raise SourceError(
            f"Expected num_episodes of the episodes in {file.where}, came {count!r}.",
            where=file.where,
        )
    columns = {item.decode("utf-8", "replace") for item in file.array("columns").items()}
    if not set(_COLUMNS) <= columns:
        raise SourceError(
            f"Expected the columns {', '.join(_COLUMNS)} in {file.where}, came "
            f"{', '.join(sorted(columns))}.",
            where=file.where,
        )
    return _Episodes(file, count)


def _open_flat(file: Hdf5Group) -> _Flat:
    names = ("terminals", "episode_terminals") if "episode_terminals" in file else ("terminals",)
    arrays = {name: file.array(name) for name in (*_FLAT, *names)}
    lengths = rows_differ(arrays)
    if lengths:
        raise SourceError(
            f"Expected arrays of one length in {file.where}, came {lengths}; nothing says which "
            f"rows belong together.",
            where=file.where,
        )
    total = (arrays["observations"].shape or (0,))[0]
    found = []
    for start in range(0, total, UNIT_STEPS):
        stop = min(start + UNIT_STEPS, total)
        flags = [_flags(arrays[name].read(start, stop), arrays[name].where) for name in names]
        found.append(np.flatnonzero(np.logical_or.reduce(flags)) + start + 1)
    ends = np.concatenate(found) if found else np.zeros(0, np.int64)
    stops = bool(total and (not len(ends) or ends[-1] != total))
    ends = np.append(ends, total) if stops else ends
    return _Flat(file, ends.astype(np.int64), "episode_terminals" in file, stops)


def _flags(values: np.ndarray, where: str) -> np.ndarray:
    """Returns (N,) bool of flags (N,) or (N, 1) of 0 and 1."""
    if values.ndim > 2 or values.shape[1:] not in ((), (1,)) or not np.isin(values, (0, 1)).all():
        raise SourceError(
            f"Expected 0 and 1, one per row, in {where}, came shape {values.shape} or other "
            f"values.",
            where=where,
        )
    return values.reshape(-1).astype(bool)


def _flat(rewards: np.ndarray, name: str) -> np.ndarray:
    """Returns rewards (T,) of (T,) or (T, 1)."""
    if rewards.shape[1:] not in ((), (1,)):
        raise EpisodeError(
            f"Expected {name} with shape (T,) or (T, 1), came {rewards.shape}.",
            code="length_mismatch",
            where=name,
        )
    return rewards.reshape(-1)
