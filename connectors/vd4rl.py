"""Reads V-D4RL: a folder of npz files, one episode each, as DreamerV2's replay writes them.

A file holds T+1 rows of every array, and row t's `action` and `reward` are those that *led to* its
observation: row 0 is the reset, its action zero. So an episode has T+1 observations, the actions
and rewards of rows 1 to T, and its true final observation.

* `is_terminal` of the last row tells termination, in older files a `discount` of 0 does; a last row
  that is not terminal was cut off. `is_first` belongs on the first row and `is_last` on the last.
* `image` and every further array but `log_*` are observations; `discount` becomes an extra.
* A first row whose action is not zero contradicts the layout, and nobody knows which action led
  where: such an episode is refused.

Files come in the order of their names, which begin with a time. Nothing names an episode but its
file, so episodes are named by content.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from connectors.base import Found, Listing, Unit
from connectors.files import fingerprint
from connectors.npz import NpzArray, open_npz
from connectors.units import check_count, plan_units
from schemas.episode import Episode
from schemas.errors import EpisodeError, NotFoundError, SourceError

_FLAGS = ("is_first", "is_last", "is_terminal")
_STEPS = ("action", "reward", "discount", *_FLAGS)
_NEEDED = ("action", "reward")
MOST_BYTES = 2**31
"""What the arrays of one episode may come to (a V-D4RL episode is 6 MB)."""


class Vd4rlSource:
    """V-D4RL's npz layout as a source."""

    def guesses(self) -> tuple[str, ...]:
        """Says what may be guessed (see `connectors.base.Source`)."""
        return _GUESSES

    def discover(self, where: str) -> Listing:
        """Reads the headers of all files (see `connectors.base.Source`)."""
        files = _files(where)
        lengths, step_bytes = [], 0
        for file in files:
            steps, row_bytes = _size(file)
            lengths.append(steps)
            step_bytes = max(step_bytes, row_bytes)
        units = tuple(
            Unit(format="vd4rl", where=where, start=start, stop=stop, steps=steps)
            for start, stop, steps in plan_units(lengths, step_bytes)
        )
        return Listing(
            format="vd4rl",
            where=where,
            identity=None,
            units=units,
            episodes=len(files),
            steps=sum(lengths),
            fingerprint=fingerprint(files[0].parent, files),
            guesses=_GUESSES,
        )

    def read(self, unit: Unit) -> Iterator[Found]:
        """Reads one file per episode; a damaged one comes back as a fault."""
        files = _files(unit.where)
        check_count(unit, len(files))
        for position in range(unit.start, unit.stop):
            key = files[position].name
            try:
                yield Found(key, position, None, _episode(files[position], unit.where))
            except EpisodeError as fault:
                yield Found(key, position, None, None, fault)
            except SourceError as error:
                damage = EpisodeError(error.message, code="unreadable", where=key)
                yield Found(key, position, None, None, damage)


_GUESSES = (
    "actions and rewards are those that led to an observation; the first row's, of the reset, are "
    "left out",
    "an episode that did not terminate was cut off",
)


def _files(where: str) -> list[Path]:
    path = Path(where)
    if not path.exists():
        raise NotFoundError(
            f"Expected V-D4RL's npz files, there is nothing at {where}.", where=where
        )
    if path.is_file():
        return [path]
    found = sorted(p for p in path.glob("*.npz") if p.is_file() and not p.is_symlink())
    if not found:
        raise SourceError(f"Expected npz files in {where}, there are none.", where=where)
    return found


def _size(file: Path) -> tuple[int, int]:
    """Steps of an episode and bytes of one; 0 where it cannot be read, which reading reports."""
    try:
        arrays = open_npz(file)
    except SourceError:
        return 0, 0
    rows = arrays["action"].shape[:1] if "action" in arrays else ()
    size = sum(array.row_bytes for array in arrays.values() if array.shape)
    return max(0, rows[0] - 1) if rows else 0, size


def _episode(file: Path, where: str) -> Episode:
    arrays = {name: a for name, a in open_npz(file).items() if not name.startswith("log_")}
    _check(arrays, file.name)
    flags = _flags(arrays, file.name)
    observed = {name: array.read() for name, array in arrays.items() if name not in _STEPS}
    actions = arrays["action"].read()
    if actions[0].any():
        raise EpisodeError(
            f"Expected a zero action in the first row of {file.name}, of the reset, came "
            f"{actions[0].ravel()[:4].tolist()}: rows may be aligned otherwise.",
            code="flags_inconsistent",
            where=file.name,
        )
    is_last = np.arange(1, len(actions)) == len(actions) - 1
    discount = {"discount": arrays["discount"].read()[1:]} if "discount" in arrays else {}
    return Episode(
        episode_id="",
        observations={f"observations/{name}": array for name, array in observed.items()},
        actions=actions[1:],
        rewards=arrays["reward"].read()[1:].reshape(-1),
        terminated=is_last & flags["is_terminal"][-1],
        truncated=is_last & ~flags["is_terminal"][-1],
        final_observation="present",
        extras=discount,
        source=where,
        source_key=file.name,
    )


def _check(arrays: Mapping[str, NpzArray], name: str) -> None:
    absent = [needed for needed in _NEEDED if needed not in arrays]
    if absent or not set(arrays) - set(_STEPS):
        raise EpisodeError(
            f"Expected image, action and reward in {name}, there is {', '.join(sorted(arrays))}.",
            code="unreadable",
            where=name,
        )
    rows = {key: (array.shape or (0,))[0] for key, array in arrays.items()}
    if len(set(rows.values())) != 1 or not rows["action"]:
        said = ", ".join(f"{key} {count}" for key, count in rows.items())
        raise EpisodeError(
            f"Expected arrays of one length in {name}, came {said}.",
            code="length_mismatch",
            where=name,
        )
    size = sum(math.prod(array.shape) * array.dtype.itemsize for array in arrays.values())
    if size > MOST_BYTES:
        raise EpisodeError(
            f"Expected at most {MOST_BYTES:,} bytes in {name}, came {size:,}.",
            code="unreadable",
            where=name,
        )


def _flags(arrays: Mapping[str, NpzArray], name: str) -> dict[str, np.ndarray]:
    """Returns the flags, each (T+1,) bool, where they belong."""
    rows = arrays["action"].shape[0]
    flags = {key: arrays[key].read().reshape(-1) for key in _FLAGS if key in arrays}
    if "is_terminal" not in flags and "discount" in arrays:
        flags["is_terminal"] = arrays["discount"].read().reshape(-1) == 0
    flags.setdefault("is_terminal", np.zeros(rows, bool))
    row = np.arange(rows)
    for key in flags:
        values = flags[key].astype(bool)
        elsewhere = row > 0 if key == "is_first" else row < rows - 1
        if values[elsewhere].any():
            raise EpisodeError(
                f"Expected {key} on no row of {name} but the "
                f"{'first' if key == 'is_first' else 'last'}, row "
                f"{int(np.flatnonzero(values & elsewhere)[0])} has it.",
                code="flags_inconsistent",
                where=name,
            )
        flags[key] = values
    return flags
