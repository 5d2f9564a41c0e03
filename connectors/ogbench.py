"""Reads OGBench files: flat arrays over N rows, trajectories one after the other, in one .npz.

`observations`, `actions` and `terminals` must be there; `qpos`, `qvel`, `button_states` and further
arrays of N rows may be. A trajectory has one row per observation: `terminals` is 1 in its *last*
row, which holds the final observation and an action that leads nowhere. So a trajectory of L rows
is an episode of L - 1 steps:

* OGBench's `terminals` say where a trajectory ends, not why; its trajectories end by a time limit.
  The last step is therefore truncated and nothing stops bootstrapping.
* The last row's action is left out, as `ogbench.utils.load_dataset` does. The other arrays keep all
  L rows as extras.
* There are no rewards: OGBench's come from a goal or task at load time. Here they are unknown.
* Rows after the last end are an episode that merely stops. A trajectory of one row has no step and
  is a fault.

The file has no identity of its own, so its episodes are named by content.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from connectors.base import UNIT_STEPS, Found, Listing, Unit
from connectors.files import fingerprint
from connectors.npz import NpzArray, open_npz
from connectors.units import plan_units
from schemas.episode import Episode
from schemas.errors import EpisodeError, SourceError

REQUIRED = ("observations", "actions", "terminals")
_GUESSES = (
    "terminals do not say why a trajectory ends: its last step is truncated",
    "the action in a trajectory's last row leads nowhere; it is left out",
    "no rewards: OGBench makes them from a goal when it loads a file",
)


class OgbenchSource:
    """OGBench's .npz layout as a source."""

    def guesses(self) -> tuple[str, ...]:
        """Says what may be guessed (see `connectors.base.Source`)."""
        return _GUESSES

    def discover(self, where: str) -> Listing:
        """Finds the trajectories from `terminals` alone (see `connectors.base.Source`)."""
        arrays = _open(where)
        ends = _ends(arrays["terminals"])
        rows = np.diff(ends, prepend=0)
        starts = ends - rows
        row_bytes = sum(array.row_bytes for array in arrays.values())
        units = tuple(
            Unit(
                format="ogbench",
                where=where,
                start=start,
                stop=stop,
                steps=steps - (stop - start),
                options={"rows": [int(starts[start]), int(ends[stop - 1])]},
            )
            for start, stop, steps in plan_units(rows, row_bytes)
        )
        path = Path(where)
        return Listing(
            format="ogbench",
            where=where,
            identity=None,
            units=units,
            episodes=len(ends),
            steps=int(rows.sum()) - len(ends),
            fingerprint=fingerprint(path.parent, [path]),
            guesses=_GUESSES,
        )

    def read(self, unit: Unit) -> Iterator[Found]:
        """Reads the unit's rows once, then cuts them into episodes."""
        start, stop = unit.options["rows"]
        arrays = _open(unit.where)
        if stop > len_of(arrays):
            raise _changed(unit)
        block = {name: array.read(start, stop) for name, array in arrays.items()}
        terminals = block.pop("terminals").reshape(-1).astype(bool)
        ends = np.flatnonzero(terminals) + 1
        if not len(ends) or ends[-1] != stop - start:
            ends = np.append(ends, stop - start)
        if len(ends) != unit.stop - unit.start:
            raise _changed(unit)
        for index, end in enumerate(ends.tolist()):
            first = int(ends[index - 1]) if index else 0
            key = f"rows {start + first}:{start + end}"
            rows = {name: array[first:end] for name, array in block.items()}
            yield _found(rows, bool(terminals[end - 1]), unit.start + index, (key, unit.where))


def len_of(arrays: Mapping[str, NpzArray]) -> int:
    """Returns the number of rows that all arrays have."""
    return arrays["terminals"].shape[0]


def _open(where: str) -> dict[str, NpzArray]:
    arrays = open_npz(where)
    absent = [name for name in REQUIRED if name not in arrays]
    if absent:
        raise SourceError(
            f"Expected the OGBench arrays {', '.join(REQUIRED)} in {where}, {', '.join(absent)} "
            f"missing; there is {', '.join(list(arrays)[:12])}.",
            where=where,
        )
    lengths = {name: (array.shape or (0,))[0] for name, array in arrays.items()}
    terminals = arrays["terminals"]
    if len(set(lengths.values())) > 1 or terminals.shape[1:] not in ((), (1,)):
        said = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise SourceError(
            f"Expected arrays of one length and terminals of shape (N,) in {where}, came {said}; "
            f"nothing says which rows belong together.",
            where=where,
        )
    return arrays


def _ends(terminals: NpzArray) -> np.ndarray:
    """Returns the exclusive end row of every trajectory, (E,) int64."""
    rows = terminals.shape[0]
    found = []
    for start in range(0, rows, 64 * UNIT_STEPS):
        values = terminals.read(start, start + 64 * UNIT_STEPS).reshape(-1)
        if not np.isin(values, (0, 1)).all():
            raise SourceError(
                f"Expected 0 and 1 in {terminals.where}, came other values.", where=terminals.where
            )
        found.append(np.flatnonzero(values) + start + 1)
    ends = np.concatenate(found) if found else np.zeros(0, np.int64)
    if rows and (not len(ends) or ends[-1] != rows):
        ends = np.append(ends, rows)
    return ends.astype(np.int64)


def _found(
    rows: Mapping[str, np.ndarray], is_cut: bool, position: int, place: tuple[str, str]
) -> Found:
    key, where = place
    if len(rows["observations"]) < 2:
        fault = EpisodeError(
            f"Expected at least two rows in a trajectory, {key} is a single observation: no step.",
            code="length_mismatch",
            where=key,
        )
        return Found(key, position, None, None, fault)
    try:
        episode = Episode(
            episode_id="",
            observations={"observations": rows["observations"]},
            actions=rows["actions"][:-1],
            truncated=np.arange(1, len(rows["actions"])) == (len(rows["actions"]) - 1) * is_cut,
            final_observation="present",
            extras={name: array for name, array in rows.items() if name not in REQUIRED},
            source=where,
            source_key=key,
        )
    except EpisodeError as fault:
        return Found(key, position, None, None, fault)
    return Found(key, position, None, episode)


def _changed(unit: Unit) -> SourceError:
    return SourceError(
        f"Expected {unit.stop - unit.start} trajectories in rows {unit.options['rows']} of "
        f"{unit.where}, the file holds others now: it changed while it was read.",
        where=unit.where,
    )
