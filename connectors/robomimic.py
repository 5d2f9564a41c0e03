"""Reads robomimic files: `data/demo_<i>` with observations by name, in one HDF5 file.

* Demonstrations come in the order of their numbers; the file has no identity of its own, so they
  are named by content and the number is only said in `source_key`.
* `obs/<name>` are the observations. The final one is the last row of `next_obs`; where that repeats
  the last row of `obs` bit for bit it is a copy (robomimic's converters make them), and without
  `next_obs` it is missing.
* `dones` may mean success, the end of the file's trajectory, or both (robomimic's `done_mode` 0, 1,
  2), and the file does not say which. A demonstration ends with its last row whatever `dones` says.
  It counts as *terminated* if its last `done` is set and it succeeded: by its attribute `success`,
  else by its last reward where all rewards are 0 or 1 (robosuite's sparse reward), else it is taken
  as a success. In every other case it is *truncated*. Earlier dones are not ends.
* Attributes of a demonstration become facts or columns (`connectors.facts`), filter keys
  `mask/<name>` boolean labels `mask_<name>`; `states` become an extra. The simulator's XML
  (`model_file`), which can be a megabyte per demonstration, is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from connectors.base import Found, Listing, Unit
from connectors.facts import episode_facts, json_or_text
from connectors.files import fingerprint
from connectors.hdf5 import Hdf5Array, Hdf5Group, UnreadableError, open_hdf5, rows_differ
from connectors.next_rows import breaks, differing_rows
from connectors.units import check_count, plan_units
from schemas.episode import Episode, FinalObservation
from schemas.errors import EpisodeError, SourceError

_DEMO = re.compile(r"demo_(\d+)")
_STRUCTURAL = ("num_samples", "model_file")
_CHECKED_VALUES = 256
"""next_obs is compared row by row for arrays of at most this many values; never for images."""


class RobomimicSource:
    """robomimic's HDF5 layout as a source."""

    def guesses(self) -> tuple[str, ...]:
        """Says what may be guessed (see `connectors.base.Source`)."""
        return _GUESSES

    def discover(self, where: str) -> Listing:
        """Lists the demonstrations and their lengths (see `connectors.base.Source`)."""
        path = Path(where)
        with open_hdf5(path) as file:
            data = _data(file)
            names = _demo_names(data)
            lengths = [_stated_length(data.group(name)) for name in names]
            first = data.group(names[0]) if names else None
            step_bytes = _step_bytes(first) if first else 0
            metadata = {k: _json_value(v) for k, v in data.attributes().items() if k != "total"}
            masks = _masks(file)
        units = tuple(
            Unit(format="robomimic", where=where, start=start, stop=stop, steps=steps)
            for start, stop, steps in plan_units(lengths, step_bytes)
        )
        return Listing(
            format="robomimic",
            where=where,
            identity=None,
            units=units,
            episodes=len(names),
            steps=sum(lengths),
            fingerprint=fingerprint(path.parent, [path]),
            metadata={**metadata, "masks": sorted(masks)},
            guesses=_GUESSES,
        )

    def read(self, unit: Unit) -> Iterator[Found]:
        """Reads demonstrations; one that cannot be read comes back as a fault."""
        with open_hdf5(unit.where) as file:
            data = _data(file)
            masks = _masks(file)
            task = _environment(data)
            names = _demo_names(data)
            check_count(unit, len(names))
            for position in range(unit.start, unit.stop):
                name = names[position]
                labels = {f"mask_{mask}": name in members for mask, members in masks.items()}
                facts = {"task": task, "labels": labels, "source": unit.where}
                yield _found(data, name, position, facts)


_GUESSES = (
    "dones do not say what ended a demonstration: it is terminated if its last done is set and its "
    "attribute success, or its last reward where all are 0 or 1, does not deny it; else truncated",
    "earlier dones are not ends; they are left out",
    "model_file is left out",
)


@dataclass(frozen=True)
class _Observations:
    """What a demonstration observed."""

    arrays: Mapping[str, np.ndarray]  # (N, ...), or (N+1, ...) with the final observation
    final: FinalObservation


def _data(file: Hdf5Group) -> Hdf5Group:
    if "data" not in file:
        there = ", ".join(file.names()[:12]) or "nothing"
        raise SourceError(
            f"Expected robomimic's group 'data' in {file.where}, there is {there}.",
            where=file.where,
        )
    return file.group("data")


def _demo_names(data: Hdf5Group) -> list[str]:
    names = [name for name in data.names() if _DEMO.fullmatch(name)]
    return sorted(names, key=lambda name: (int(name[5:]), name))


def _stated_length(demo: Hdf5Group) -> int:
    """Rows of the actions; 0 where there are none, which reading reports."""
    try:
        return (demo.array("actions").shape or (0,))[0]
    except UnreadableError:
        return 0


def _step_bytes(demo: Hdf5Group) -> int:
    leaves = demo.group("obs").leaves().values() if "obs" in demo else ()
    return sum(array.row_bytes for array in leaves)


def _json_value(value: Any) -> Any:
    return json_or_text(value) if isinstance(value, str) else value


def _environment(data: Hdf5Group) -> str | None:
    stated = _json_value(data.attributes().get("env_args"))
    name = stated.get("env_name") if isinstance(stated, dict) else None
    return name if isinstance(name, str) else None


def _masks(file: Hdf5Group) -> dict[str, frozenset[str]]:
    """Returns the filter keys: name -> demonstrations that have it."""
    if "mask" not in file:
        return {}
    leaves = file.group("mask").leaves().items()
    return {
        name: frozenset(item.decode("utf-8", "replace") for item in array.items())
        for name, array in leaves
    }


def _found(data: Hdf5Group, name: str, position: int, facts: Mapping[str, Any]) -> Found:
    try:
        episode = _episode(data.group(name), name, facts)
    except EpisodeError as fault:
        return Found(name, position, None, None, fault)
    except UnreadableError as error:
        damage = EpisodeError(error.message, code="unreadable", where=error.where)
        return Found(name, position, None, None, damage)
    return Found(name, position, None, episode)


def _episode(demo: Hdf5Group, name: str, facts: Mapping[str, Any]) -> Episode:
    steps = {key: demo.array(key) for key in ("actions", "rewards", "dones") if key in demo}
    observed = demo.group("obs").leaves() if "obs" in demo else {}
    if not observed or "actions" not in steps:
        raise EpisodeError(
            f"Expected obs and actions in {name}, there is {', '.join(demo.names()) or 'nothing'}; "
            f"robomimic's dataset_states_to_obs.py extracts observations.",
            code="unreadable",
            where=name,
        )
    states = {"states": demo.array("states")} if "states" in demo else {}
    lengths = rows_differ({**steps, **{f"obs/{k}": a for k, a in observed.items()}, **states})
    if lengths:
        raise EpisodeError(
            f"Expected arrays of one length in {name}, came {lengths}.",
            code="length_mismatch",
            where=name,
        )
    rewards = steps["rewards"].read().reshape(-1) if "rewards" in steps else None
    attributes = demo.attributes(skip=_STRUCTURAL)
    observations = _read_observations(demo, observed, name)
    actions = steps["actions"].read()
    is_last = np.arange(len(actions)) == len(actions) - 1
    is_terminated = _is_terminated(steps.get("dones"), rewards, attributes)
    return Episode(
        episode_id="",
        observations={f"observations/{key}": a for key, a in observations.arrays.items()},
        actions=actions,
        rewards=rewards,
        terminated=is_last & is_terminated,
        truncated=is_last & (not is_terminated),
        final_observation=observations.final,
        extras={key: array.read() for key, array in states.items()},
        source_key=name,
        **{**facts, **episode_facts(attributes)},
    )


def _is_terminated(
    dones: Hdf5Array | None, rewards: np.ndarray | None, attributes: Mapping[str, Any]
) -> bool:
    """Guesses what ended a demonstration; the module's docstring states the rule."""
    last = dones.read().reshape(-1)[-1:] if dones is not None else np.zeros(0)
    if not last.size or not last[0]:
        return False
    success = attributes.get("success")
    if isinstance(success, bool | int | float):
        return bool(success)
    if rewards is not None and rewards.size and np.isin(rewards, (0, 1)).all():
        return bool(rewards[-1])
    return True


def _read_observations(
    demo: Hdf5Group, observed: Mapping[str, Hdf5Array], name: str
) -> _Observations:
    arrays = {key: array.read() for key, array in observed.items()}
    rows = len(next(iter(arrays.values())))
    following = demo.group("next_obs").leaves() if "next_obs" in demo and rows else {}
    if following.keys() != observed.keys():
        return _Observations(arrays, "missing")
    lengths = rows_differ({**observed, **{f"next_obs/{k}": a for k, a in following.items()}})
    if lengths:
        raise EpisodeError(
            f"Expected next_obs as long as obs in {name}, came {lengths}.",
            code="length_mismatch",
            where=name,
        )
    is_moved = False
    for key, array in following.items():
        last = array.read(rows - 1, rows).astype(arrays[key].dtype, copy=False)
        if last.shape[1:] != arrays[key].shape[1:]:
            raise EpisodeError(
                f"Expected next_obs/{key} of {name} with rows of shape {arrays[key].shape[1:]}, "
                f"came {last.shape[1:]}.",
                code="length_mismatch",
                where=name,
            )
        is_moved = is_moved or bool(differing_rows(arrays[key][-1:], last)[0])
        _refuse_gap(arrays[key], array, f"{name}: next_obs/{key}")
        arrays[key] = np.concatenate([arrays[key], last])
    return _Observations(arrays, "present" if is_moved else "copied")


def _refuse_gap(observations: np.ndarray, following: Hdf5Array, where: str) -> None:
    if observations[:1].size > _CHECKED_VALUES:
        return
    gaps = np.flatnonzero(breaks(observations, following.read().astype(observations.dtype)))
    if len(gaps):
        raise EpisodeError(
            f"Expected row {gaps[0]} of {where} to be row {gaps[0] + 1} of obs, they differ: steps "
            f"are missing between them.",
            code="gap",
            where=where,
        )
