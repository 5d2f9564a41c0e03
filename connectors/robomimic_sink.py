"""Writes robomimic files: `data/demo_<i>` with observations by name, in one HDF5 file.

`dones` are the terminated flags: robomimic's learners bootstrap where a done is 0, and only
*terminated* stops that. `next_obs` is written for an episode whose final observation is present or
copied and left out for one without: nothing is made up. Labels become filter keys: `mask_<name>`
and other boolean labels `mask/<name>`, the text label `split` one filter key per value.

robomimic expects actions within [-1, 1] and its `get_dataset_info` raises for others. They are
written as they are all the same: a clipped action is another action.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import h5py
import numpy as np

from connectors.base import Loss
from connectors.facts import stated_facts
from connectors.files import new_dataset
from schemas.episode import Episode, Scalar
from schemas.errors import UsageError
from schemas.packed import Rows, plain, spec_of

PLAIN_NAME = "flat"
"""The observation key that robomimic's own conversion of D4RL gives a single plain array."""
_COMPRESSION = {"compression": "gzip", "compression_opts": 4, "shuffle": True}
_STRUCTURAL = ("num_samples", "model_file")
_MASK = "mask_"


class RobomimicSink:
    """robomimic's HDF5 layout as a sink; of the metadata, `env_args` is used."""

    def losses(self) -> tuple[Loss, ...]:
        """Says what a robomimic file cannot hold (see `connectors.base.Sink`)."""
        return (
            Loss("ids", "robomimic numbers its demonstrations"),
            Loss(
                "names",
                f"a plain observation array is named {PLAIN_NAME}, a single named action array "
                "becomes the plain one",
            ),
            Loss(
                "terminated",
                "one that the attribute success, or a last reward of 0 among rewards of 0 and 1, "
                "denies comes back as truncated; so do earlier flags",
            ),
            Loss(
                "truncated",
                "an episode that merely stops comes back as truncated, one that is terminated and "
                "truncated as terminated alone",
            ),
            Loss("final_observation", "one that repeats the one before comes back as a copy"),
            Loss("extras", "all but states, and the last of its T+1 rows"),
            Loss(
                "labels",
                "all but booleans, which are named mask_<name>, and split, whose values are; an "
                "absent label comes back false",
            ),
            Loss("encodings", "pictures and videos are written decoded"),
            Loss("names", "several action arrays", refused=True),
            Loss("actions", "episodes without actions", refused=True),
            Loss("texts", "observations of texts", refused=True),
            Loss("ragged", "observations of ragged arrays", refused=True),
        )

    def options(self) -> Mapping[str, str]:
        """Says which metadata it uses (see `connectors.base.Sink`)."""
        return {"env_args": "the environment, as robomimic keeps it; a JSON object or its text"}

    def write(self, episodes: Iterable[Episode], where: str, metadata: Mapping[str, Any]) -> int:
        """Writes one file; see `connectors.base.Sink`."""
        masks: dict[str, list[str]] = {}
        tasks: set[str | None] = set()
        written = steps = 0
        with new_dataset(where) as draft, h5py.File(draft, "w") as file:
            data = file.create_group("data")
            for episode in episodes:
                name = f"demo_{written}"
                _write_demo(data.create_group(name), episode)
                for mask in _masks(episode):
                    masks.setdefault(mask, []).append(name)
                tasks.add(episode.task)
                written += 1
                steps += episode.length
            data.attrs["total"] = steps
            data.attrs["env_args"] = _env_args(metadata, tasks)
            for mask, members in masks.items():
                file[f"mask/{mask}"] = np.array([member.encode() for member in members])
        return written


def _write_demo(demo: Any, episode: Episode) -> None:
    arrays: dict[str, np.ndarray] = {"actions": _single_actions(episode)}
    arrays["dones"] = np.asarray(episode.terminated).astype(np.int64)
    if episode.rewards is not None:
        arrays["rewards"] = episode.rewards
    if "states" in episode.extras and spec_of(episode.extras["states"]).is_regular:
        arrays["states"] = plain(episode.extras["states"][: episode.length])
    for name, rows in episode.observations.items():
        key = _observation_key(name, rows, episode)
        seen = plain(rows)
        arrays[f"obs/{key}"] = seen[: episode.length]
        if episode.final_observation != "missing":
            arrays[f"next_obs/{key}"] = seen[1:]
    for path, array in arrays.items():
        options = _COMPRESSION if array.size else {}
        demo.create_dataset(path, data=array, **options)
    for name, value in _attributes(episode).items():
        try:
            demo.attrs[name] = value
        except (ValueError, RuntimeError, OSError, OverflowError) as error:
            raise _refused(episode, f"facts that an HDF5 attribute can hold, {name} is none") from (
                error
            )
    demo.attrs["num_samples"] = episode.length


def _single_actions(episode: Episode) -> np.ndarray:
    actions = episode.flat_actions
    if len(actions) != 1 or not episode.length:
        came = "no steps" if not episode.length else ", ".join(actions) or "none"
        raise _refused(episode, f"steps and one array of actions, came {came}")
    return next(iter(actions.values()))


def _observation_key(name: str, rows: Rows, episode: Episode) -> str:
    key = PLAIN_NAME if name == "observations" else name.removeprefix("observations/")
    if not spec_of(rows).is_regular:
        raise _refused(episode, f"observations of numbers, {name} is {spec_of(rows)}")
    if re.search(r"(^|/)\.?(/|$)|\0", key):
        raise _refused(episode, f"names that HDF5 can hold, came {name!r}")
    return key


def _attributes(episode: Episode) -> dict[str, Scalar]:
    stated = stated_facts(episode).items()
    return {name: value for name, value in stated if value is not None and name not in _STRUCTURAL}


def _masks(episode: Episode) -> list[str]:
    """Returns the filter keys that an episode's labels put it under."""
    found = [name.removeprefix(_MASK) for name, value in episode.labels.items() if value is True]
    split = episode.labels.get("split")
    if isinstance(split, str):
        found.append(split)
    for name in found:
        if not name.isprintable() or re.search(r"(^|/)\.?(/|$)", name):
            raise _refused(episode, f"labels that HDF5 can name, came {name!r}")
    return sorted(set(found))


def _env_args(metadata: Mapping[str, Any], tasks: set[str | None]) -> str:
    """Returns the environment as stated, else the one task of all episodes as its name."""
    stated = metadata.get("env_args")
    if isinstance(stated, Mapping):
        return json.dumps(stated)
    if isinstance(stated, str):
        return stated
    name = next(iter(tasks)) if len(tasks) == 1 else None
    return json.dumps({"env_name": name, "type": 2, "env_kwargs": {}})


def _refused(episode: Episode, expected: str) -> UsageError:
    return UsageError(
        f"Expected {expected} in {episode.episode_id!r}; robomimic cannot hold it.",
        where=episode.episode_id,
    )
