"""Reads D4RL files: flat arrays over N steps, episodes one after the other, in one HDF5 file.

`observations`, `actions`, `rewards` and `terminals` must be there; `timeouts`,
`next_observations`, `infos/<name>` and `metadata/<name>` may be. How rows become episodes:

* An episode ends where `terminals` or `timeouts` is set: terminated, truncated.
* The observation after an episode's last step is in `next_observations` alone. Without it the final
  observation is missing: D4RL drops it, and a truncated last step is then no transition. Where it
  repeats the last observation bit for bit it counts as copied.
* Rows after the last end are an episode that merely stops: neither terminated nor truncated.
* Files without `timeouts` do not say where episodes were cut off. With `next_observations` a cut is
  where a row's next observation is not the row after (a truncation). Without either, episodes end
  at `terminals` only, and `guesses` says that cut-off episodes run into the next one there.
* A row whose `next_observations` contradicts the row after it, inside an episode, is a gap.

The file has no identity of its own, so its episodes are named by content.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from connectors.base import UNIT_STEPS, Found, Listing, Unit
from connectors.files import fingerprint
from connectors.hdf5 import Hdf5Array, Hdf5Group, open_hdf5, rows_differ
from connectors.next_rows import breaks, differing_rows, with_finals
from connectors.units import plan_units
from schemas.episode import Episode, FinalObservation
from schemas.errors import EpisodeError, SourceError

_GUESSES = {
    "jumps": "no timeouts: an episode is cut off where next_observations is not the row after",
    "no_timeouts": "no timeouts: episodes end at terminals only; one that was cut off runs into "
    "the next",
    "stops": "the rows after the last end are kept as an episode that merely stops",
    "no_final": "no next_observations: final observations are missing",
    "left_out": "infos that are not numbers are left out: {names}",
}
REQUIRED = ("observations", "actions", "rewards", "terminals")
OPTIONAL = ("timeouts", "next_observations")


class D4rlSource:
    """D4RL's HDF5 layout as a source."""

    def guesses(self) -> tuple[str, ...]:
        """Says what may be guessed (see `connectors.base.Source`)."""
        return tuple(_GUESSES.values())

    def discover(self, where: str) -> Listing:
        """Finds the episodes from the end flags alone (see `connectors.base.Source`)."""
        path = Path(where)
        with open_hdf5(path) as file:
            table = _open_table(file)
            ends = _episode_ends(table)
            guesses = _guesses(table, ends)
            metadata = _metadata(file)
        starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)
        units = tuple(
            Unit(
                format="d4rl",
                where=where,
                start=start,
                stop=stop,
                steps=steps,
                options={"rows": [int(starts[start]), int(ends[stop - 1])]},
            )
            for start, stop, steps in plan_units(ends - starts, table.row_bytes)
        )
        return Listing(
            format="d4rl",
            where=where,
            identity=None,
            units=units,
            episodes=len(ends),
            steps=table.steps,
            fingerprint=fingerprint(path.parent, [path]),
            metadata=metadata,
            guesses=guesses,
        )

    def read(self, unit: Unit) -> Iterator[Found]:
        """Reads the unit's rows once, then cuts them into episodes."""
        start, stop = unit.options["rows"]
        with open_hdf5(unit.where) as file:
            table = _open_table(file)
            if stop > table.steps:
                raise _changed(unit)
            block = _read_block(table, start, stop)
        if len(block.ends) != unit.stop - unit.start:
            raise _changed(unit)
        first = 0
        for index, end in enumerate(block.ends.tolist()):
            key = f"rows {start + first}:{start + end}"
            yield _found(block, index, first, end, (key, unit))
            first = end


@dataclass(frozen=True)
class _Table:
    """The arrays of one file, checked to be of one length."""

    steps: int
    arrays: Mapping[str, Hdf5Array]
    infos: Mapping[str, Hdf5Array]
    left_out: tuple[str, ...]
    """Infos that are not numbers."""

    @property
    def row_bytes(self) -> int:
        return sum(array.row_bytes for array in (*self.arrays.values(), *self.infos.values()))


@dataclass(frozen=True)
class _Block:
    """Consecutive whole episodes, rows `0:N`."""

    ends: np.ndarray  # (E,) int64, exclusive end row of each episode
    observations: np.ndarray  # (N, O), or (N + E, O) with each final observation in its place
    actions: np.ndarray  # (N, A)
    rewards: np.ndarray  # (N,)
    terminated: np.ndarray  # (N,) bool
    truncated: np.ndarray  # (N,) bool
    infos: Mapping[str, np.ndarray]  # (N, ...)
    finals: list[FinalObservation]
    gaps: Mapping[int, int]  # episode -> first row whose next observation is not the row after


def _open_table(file: Hdf5Group) -> _Table:
    absent = [name for name in REQUIRED if name not in file]
    if absent:
        there = ", ".join(file.names()[:12]) or "nothing"
        raise SourceError(
            f"Expected the D4RL arrays {', '.join(REQUIRED)} in {file.where}, "
            f"{', '.join(absent)} missing; there is {there}.",
            where=file.where,
        )
    arrays = {name: file.array(name) for name in (*REQUIRED, *OPTIONAL) if name in file}
    leaves = file.group("infos").leaves() if "infos" in file else {}
    rows = {name: array for name, array in leaves.items() if array.shape}
    infos = {name: array for name, array in rows.items() if array.is_numeric}
    lengths = rows_differ({**arrays, **{f"infos/{name}": info for name, info in infos.items()}})
    if lengths or not arrays["observations"].shape:
        raise SourceError(
            f"Expected arrays of one length in {file.where}, came {lengths or 'a scalar'}; "
            f"nothing says which rows belong together.",
            where=file.where,
        )
    for name, array in arrays.items():
        if not array.is_numeric:
            raise SourceError(
                f"Expected numbers in {array.where}, came {array.dtype}.", where=file.where
            )
        if name in ("rewards", "terminals", "timeouts") and array.shape[1:] not in ((), (1,)):
            raise SourceError(
                f"Expected {array.where} with shape (N,) or (N, 1), came {array.shape}.",
                where=file.where,
            )
    left_out = tuple(sorted(rows.keys() - infos.keys()))
    return _Table(arrays["observations"].shape[0], arrays, infos, left_out)


def _read_flat(table: _Table, name: str, start: int, stop: int) -> np.ndarray:
    return table.arrays[name].read(start, stop).reshape(-1)


def _read_flags(table: _Table, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns terminated and truncated of rows `start:stop`, each (N,) bool."""
    flags = []
    for name in ("terminals", "timeouts"):
        if name not in table.arrays:
            flags.append(np.zeros(stop - start, bool))
            continue
        values = _read_flat(table, name, start, stop)
        if values.dtype.kind != "b" and not np.isin(values, (0, 1)).all():
            raise SourceError(
                f"Expected 0 and 1 in {table.arrays[name].where}, came other values.",
                where=table.arrays[name].where,
            )
        flags.append(values.astype(bool))
    terminated, truncated = flags
    if "timeouts" not in table.arrays and "next_observations" in table.arrays:
        rows = min(stop + 1, table.steps)  # the row after decides about the last one
        found = breaks(
            table.arrays["observations"].read(start, rows),
            _read_following(table, start, rows),
        )
        truncated = found[: stop - start] & ~terminated
    return terminated, truncated


def _episode_ends(table: _Table) -> np.ndarray:
    """Returns the exclusive end row of every episode, (E,) int64."""
    found = []
    for start in range(0, table.steps, UNIT_STEPS):
        terminated, truncated = _read_flags(table, start, min(start + UNIT_STEPS, table.steps))
        found.append(np.flatnonzero(terminated | truncated) + start + 1)
    ends = np.concatenate(found) if found else np.zeros(0, np.int64)
    if table.steps and (not len(ends) or ends[-1] != table.steps):
        ends = np.append(ends, table.steps)
    return ends.astype(np.int64)


def _guesses(table: _Table, ends: np.ndarray) -> tuple[str, ...]:
    said = []
    if "timeouts" not in table.arrays:
        said.append(_GUESSES["jumps" if "next_observations" in table.arrays else "no_timeouts"])
    if len(ends):
        last = slice(int(ends[-1]) - 1, int(ends[-1]))
        if not any(flag.any() for flag in _read_flags(table, last.start, last.stop)):
            said.append(_GUESSES["stops"])
    if "next_observations" not in table.arrays:
        said.append(_GUESSES["no_final"])
    if table.left_out:
        said.append(_GUESSES["left_out"].format(names=", ".join(table.left_out)))
    return tuple(said)


def _metadata(file: Hdf5Group) -> dict[str, Any]:
    """Scalars of `metadata/` and the file's attributes; arrays (policy weights) stay behind."""
    found = file.attributes()
    if "metadata" in file:
        for name, array in file.group("metadata").leaves().items():
            value = array.scalar()
            if value is not None:
                found[name] = value
    return found


def _read_following(table: _Table, start: int, stop: int) -> np.ndarray:
    """Returns `next_observations` of rows `start:stop` in the shape and dtype of observations."""
    like, array = table.arrays["observations"], table.arrays["next_observations"]
    if array.shape != like.shape:
        raise SourceError(
            f"Expected {array.where} with the shape of observations, {like.shape}, "
            f"came {array.shape}.",
            where=array.where,
        )
    return array.read(start, stop).astype(like.dtype, copy=False)


def _read_block(table: _Table, start: int, stop: int) -> _Block:
    terminated, truncated = _read_flags(table, start, stop)
    ends = np.flatnonzero(terminated | truncated) + 1
    if not len(ends) or ends[-1] != stop - start:
        ends = np.append(ends, stop - start)
    observations = table.arrays["observations"].read(start, stop)
    finals: list[FinalObservation] = ["missing"] * len(ends)
    gaps: dict[int, int] = {}
    if "next_observations" in table.arrays:
        following = _read_following(table, start, stop)
        finals, gaps = _finals_and_gaps(observations, following, ends)
        observations = with_finals(observations, following, ends)
    return _Block(
        ends=ends,
        observations=observations,
        actions=table.arrays["actions"].read(start, stop),
        rewards=_read_flat(table, "rewards", start, stop),
        terminated=terminated,
        truncated=truncated,
        infos={name: array.read(start, stop) for name, array in table.infos.items()},
        finals=finals,
        gaps=gaps,
    )


def _finals_and_gaps(
    observations: np.ndarray, following: np.ndarray, ends: np.ndarray
) -> tuple[list[FinalObservation], dict[int, int]]:
    moved = differing_rows(observations[ends - 1], following[ends - 1])
    finals: list[FinalObservation] = ["present" if m else "copied" for m in moved.tolist()]
    broken = breaks(observations, following)
    broken[ends - 1] = False
    rows = np.flatnonzero(broken)
    episodes = np.searchsorted(ends, rows, side="right")
    gaps = dict(zip(episodes[::-1].tolist(), rows[::-1].tolist(), strict=True))
    return finals, gaps


def _found(block: _Block, index: int, first: int, end: int, place: tuple[str, Unit]) -> Found:
    key, unit = place
    position = unit.start + index
    if index in block.gaps:
        row = unit.options["rows"][0] + block.gaps[index]
        fault = EpisodeError(
            f"Expected next_observations of row {row} to be the observations of row {row + 1}, "
            f"they differ: steps are missing between them.",
            code="gap",
            where=key,
        )
        return Found(key, position, None, None, fault)
    final = block.finals[index]
    rows = slice(first, end)
    if final == "missing":
        observations = block.observations[rows]
    else:
        observations = block.observations[first + index : end + index + 1]
    try:
        episode = Episode(
            episode_id="",
            observations={"observations": observations},
            actions=block.actions[rows],
            rewards=block.rewards[rows],
            terminated=block.terminated[rows],
            truncated=block.truncated[rows],
            final_observation=final,
            extras={name: array[rows] for name, array in block.infos.items()},
            source=unit.where,
            source_key=key,
        )
    except EpisodeError as fault:
        return Found(key, position, None, None, fault)
    return Found(key, position, None, episode)


def _changed(unit: Unit) -> SourceError:
    return SourceError(
        f"Expected {unit.stop - unit.start} episodes in rows {unit.options['rows']} of "
        f"{unit.where}, the file holds others now: it changed while it was read.",
        where=unit.where,
    )
