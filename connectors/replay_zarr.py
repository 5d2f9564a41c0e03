"""Reads replay buffers of diffusion policy and UMI: Zarr v2 or v3, a folder or a zip file.

`data/<key>` are flat arrays over N steps, `meta/episode_ends` the exclusive end of each episode.

* `data/action` are the actions and `data/reward` the rewards, where they are there; everything else
  in `data` is an observation of its name. Raw images stay raw.
* A buffer has one observation per step: final observations are missing.
* It says where an episode ends, not why: neither terminated nor truncated is claimed. The last step
  is no transition either way, because the observation after it is not there.
* A missing chunk makes the episodes that need it unreadable. Zarr would read zeros.

The buffer has no identity of its own, so its episodes are named by content.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from connectors.base import Found, Listing, Unit
from connectors.files import fingerprint
from connectors.replay_zarr_store import UnreadableError, ZarrArray, open_zarr
from connectors.units import RUN_BYTES, plan_units
from schemas.episode import Episode
from schemas.errors import EpisodeError, SourceError

ENDS = "meta/episode_ends"
_ENDS_BYTES = 64 * 2**20
_CHUNKS_PER_RUN = 8
"""At least: chunks at the borders of runs are decoded twice."""
_REWARDS = ("reward", "rewards")
_GUESSES = (
    "episode ends do not say why: no step is terminated or truncated",
    "one observation per step: final observations are missing",
)
_NO_REWARDS = "no rewards: they are unknown"


class ReplayZarrSource:
    """A replay buffer in Zarr as a source."""

    def guesses(self) -> tuple[str, ...]:
        """Says what may be guessed (see `connectors.base.Source`)."""
        return (*_GUESSES, _NO_REWARDS)

    def discover(self, where: str) -> Listing:
        """Finds the episodes from `meta/episode_ends` (see `connectors.base.Source`)."""
        with open_zarr(where) as arrays:
            ends = _episode_ends(arrays, where)
            data = _data(arrays, int(ends[-1]) if len(ends) else 0, where)
            path = Path(where)
            files = next(iter(arrays.values())).files
            changed = fingerprint(path.parent if files.is_zip else path, files.paths())
        starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)
        row_bytes = sum(array.row_bytes for array in data.values())
        units = tuple(
            Unit(
                format="replay_zarr",
                where=where,
                start=start,
                stop=stop,
                steps=steps,
                options={"ends": [int(starts[start]), *ends[start:stop].tolist()]},
            )
            for start, stop, steps in plan_units(ends - starts, row_bytes)
        )
        absent = () if any(key in data for key in _REWARDS) else (_NO_REWARDS,)
        return Listing(
            format="replay_zarr",
            where=where,
            identity=None,
            units=units,
            episodes=len(ends),
            steps=int(ends[-1]) if len(ends) else 0,
            fingerprint=changed,
            metadata={"zarr_format": next(iter(arrays.values())).zarr_format},
            guesses=(*_GUESSES, *absent),
        )

    def read(self, unit: Unit) -> Iterator[Found]:
        """Reads runs of episodes at once; episode by episode where that fails."""
        ends = unit.options["ends"]
        with open_zarr(unit.where) as arrays:
            now = _episode_ends(arrays, unit.where)
            if now[unit.start : unit.stop].tolist() != ends[1:]:
                raise SourceError(
                    f"Expected {unit.stop - unit.start} episodes up to row {ends[-1]} of "
                    f"{unit.where}, it holds others now: it changed while it was read.",
                    where=unit.where,
                )
            data = _data(arrays, int(now[-1]), unit.where)
            wide = {
                key: array
                for key, array in data.items()
                if array.row_bytes * (ends[-1] - ends[0]) > RUN_BYTES
            }
            try:
                kept = _read({k: a for k, a in data.items() if k not in wide}, ends[0], ends[-1])
            except UnreadableError:
                wide, kept = {}, None
            position = unit.start
            for run in _runs(wide, ends):
                try:
                    block = None if kept is None else _read(wide, run[0], run[-1])
                except UnreadableError:
                    block = None
                for start, stop in pairwise(run):
                    place = (f"rows {start}:{stop}", position, unit.where)
                    position += 1
                    if block is None or kept is None:
                        yield _read_alone(data, start, stop, place)
                        continue
                    rows = {k: a[start - ends[0] : stop - ends[0]] for k, a in kept.items()}
                    rows |= {k: a[start - run[0] : stop - run[0]] for k, a in block.items()}
                    yield _found(rows, place)


def _runs(wide: Mapping[str, ZarrArray], ends: Sequence[int]) -> Iterator[Sequence[int]]:
    """Cuts the episodes between some ends into runs to read the wide arrays in.

    Yields:
        The ends of each run, the last of the one before it first.
    """
    if not wide:
        yield ends
        return
    row_bytes = sum(array.row_bytes for array in wide.values())
    longest = max(array.chunks[0] for array in wide.values())
    most = max(RUN_BYTES // row_bytes, _CHUNKS_PER_RUN * longest)
    run = [ends[0]]
    for end in ends[1:]:
        if len(run) > 1 and end - run[0] > most:
            yield run
            run = run[-1:]
        run.append(end)
    yield run


def _episode_ends(arrays: Mapping[str, ZarrArray], where: str) -> np.ndarray:
    """Returns the exclusive end of every episode, (E,) int64."""
    if ENDS not in arrays:
        raise SourceError(
            f"Expected the array {ENDS} in {where}, there is "
            f"{', '.join(sorted(arrays)[:12]) or 'no array'}.",
            where=where,
        )
    array = arrays[ENDS]
    if len(array.shape) != 1 or array.dtype.kind not in "iu" or (array.shape[0] * 8 > _ENDS_BYTES):
        raise SourceError(
            f"Expected {array.where} as integers of shape (E,), came {array.dtype} of "
            f"{array.shape}.",
            where=where,
        )
    stated = array.read(0, array.shape[0])
    ends = stated.astype(np.int64)
    if (np.diff(ends, prepend=0) <= 0).any() or (stated > 2**62).any():
        raise SourceError(
            f"Expected ascending ends in {array.where}, each episode with steps, came "
            f"{ends[:6].tolist()}{'...' if len(ends) > 6 else ''}.",
            where=where,
        )
    return ends


def _data(arrays: Mapping[str, ZarrArray], steps: int, where: str) -> dict[str, ZarrArray]:
    """Returns the arrays of the steps by key, checked to be of one length."""
    data = {p.removeprefix("data/"): a for p, a in arrays.items() if p.startswith("data/")}
    lengths = {key: array.shape[0] if array.shape else None for key, array in data.items()}
    if set(lengths.values()) != {steps}:
        said = ", ".join(f"{key} {length}" for key, length in sorted(lengths.items())) or "none"
        raise SourceError(
            f"Expected arrays of {steps} rows in data of {where}, as the last episode end says, "
            f"came {said}.",
            where=where,
        )
    rewards = [data[key] for key in _REWARDS if key in data]
    if len(rewards) > 1 or any(array.shape[1:] not in ((), (1,)) for array in rewards):
        raise SourceError(
            f"Expected at most one array of rewards in {where}, of shape (N,) or (N, 1), came "
            f"{', '.join(str(array.shape) for array in rewards)}.",
            where=where,
        )
    if not data.keys() - {"action", *_REWARDS}:
        raise SourceError(
            f"Expected observations in data of {where}, there is {', '.join(data)}.", where=where
        )
    return data


def _read(data: Mapping[str, ZarrArray], start: int, stop: int) -> dict[str, np.ndarray]:
    return {key: array.read(start, stop) for key, array in data.items()}


def _read_alone(
    data: Mapping[str, ZarrArray], start: int, stop: int, place: tuple[str, int, str]
) -> Found:
    try:
        return _found(_read(data, start, stop), place)
    except UnreadableError as error:
        key, position, _ = place
        damage = EpisodeError(error.message, code="unreadable", where=error.where)
        return Found(key, position, None, None, damage)


def _found(rows: Mapping[str, np.ndarray], place: tuple[str, int, str]) -> Found:
    key, position, where = place
    rewards = next((rows[name].reshape(-1) for name in _REWARDS if name in rows), None)
    observed = {name: array for name, array in rows.items() if name not in ("action", *_REWARDS)}
    try:
        episode = Episode(
            episode_id="",
            observations={f"observations/{name}": array for name, array in observed.items()},
            actions=rows.get("action"),
            rewards=rewards,
            terminated=np.zeros(len(next(iter(observed.values()))), bool),
            truncated=np.zeros(len(next(iter(observed.values()))), bool),
            final_observation="missing",
            source=where,
            source_key=key,
        )
    except EpisodeError as fault:
        return Found(key, position, None, None, fault)
    return Found(key, position, None, episode)
