"""Writes Minari datasets in all three storages (HDF5, Arrow, Parquet), without Minari itself.

A dataset holds T+1 observations of every episode and has no word for a final observation that is
missing. A terminated episode without one gets a copy of its last observation, which nothing reads,
and a note that our reader understands. Any other such episode loses its last step instead: its
last observation becomes the final one, so that every transition in the file is a real one.

Spaces are taken from the metadata where they fit the arrays, else written as unbounded boxes.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from connectors import minari_arrow, minari_hdf5
from connectors.base import Loss
from connectors.facts import stated_facts
from connectors.files import new_dataset
from connectors.minari_layout import METADATA_FILE, STORAGES, Record
from connectors.minari_spaces import box_json, fits, parse_space
from schemas.episode import Episode, Scalar
from schemas.errors import PenstockError, UsageError
from schemas.nesting import Nested, nest
from schemas.packed import plain, spec_of
from schemas.spec import DatasetSpec

MINARI_VERSION = "0.5.3"
"""The version whose format this is: the first with `jpeg_encoding`."""
_TEXTS = ("env_spec", "eval_env_spec", "algorithm_name", "code_permalink", "description")
_LISTS = ("author", "author_email", "requirements")
_SCORES = ("ref_min_score", "ref_max_score", "num_episodes_average_score")


class MinariSink:
    """Minari datasets as a sink; `metadata["data_format"]` chooses the storage."""

    def losses(self) -> tuple[Loss, ...]:
        """Says what a Minari dataset cannot hold (see `connectors.base.Sink`)."""
        return (
            Loss("ids", "Minari numbers its episodes"),
            Loss("encodings", "pictures and videos are written decoded"),
            Loss("extras", "texts and ragged rows"),
            Loss("labels", "Minari has no filter keys"),
            Loss("truncated", "an episode that loses its last step is truncated there"),
            Loss("columns", "the columns id, total_steps and rewards_*, which Minari fills"),
            Loss(
                "final_observation",
                "an episode without one that is not terminated loses its last step; that of a "
                "terminated one becomes a copy of the last",
            ),
            Loss("texts", "text observations", refused=True),
            Loss("ragged", "ragged observations", refused=True),
            Loss("rewards", "episodes without rewards", refused=True),
            Loss("actions", "episodes without actions", refused=True),
            Loss("final_observation", "episodes of one step without a final one", refused=True),
            Loss("specs", "episodes of different fields", refused=True),
        )

    def options(self) -> Mapping[str, str]:
        """Says which metadata it uses (see `connectors.base.Sink`)."""
        return {
            "data_format": "storage: hdf5 (the default), arrow or parquet",
            "dataset_id": "the dataset's id; by default its place says it",
            "observation_space": "where it fits the observations; else an unbounded box",
            "action_space": "where it fits the actions; else an unbounded box",
            **dict.fromkeys((*_TEXTS, *_LISTS, *_SCORES), "Minari's own description, as stated"),
        }

    def write(self, episodes: Iterable[Episode], where: str, metadata: Mapping[str, Any]) -> int:
        """Writes one dataset folder; see `connectors.base.Sink`.

        Of the metadata, `dataset_id` names the dataset (by default its place does), and
        `data_format`, `observation_space`, `action_space`, `env_spec` and Minari's descriptive
        keys are used; all others are left out.
        """
        storage = metadata.get("data_format", "hdf5")
        if storage not in STORAGES:
            raise UsageError(
                f"Expected data_format {', '.join(STORAGES)}, came {storage!r}.", where=where
            )
        with new_dataset(where) as draft:
            folder = draft / "data"
            folder.mkdir(parents=True)
            written = _write_episodes(folder, storage, episodes)
            if written.spec is None:
                raise UsageError("Expected at least one episode to write, came none.", where=where)
            document = {
                "total_episodes": written.episodes,
                "total_steps": written.steps,
                "data_format": storage,
                "jpeg_encoding": False,
                **_spaces(written.first, metadata),
                "dataset_id": metadata.get("dataset_id") or _id_of_place(where),
                "minari_version": MINARI_VERSION,
                "dataset_size": _megabytes(folder),
                **_described(metadata),
            }
            (folder / METADATA_FILE).write_text(json.dumps(document), "utf-8")
            return written.episodes


@dataclass
class _Written:
    """Counts while writing."""

    episodes: int = 0
    steps: int = 0
    spec: DatasetSpec | None = None
    first: dict[str, np.ndarray] = field(default_factory=dict)
    """The arrays of the first episode, without their rows; they stand for the spaces."""


def _write_episodes(folder: Path, storage: str, episodes: Iterable[Episode]) -> _Written:
    written = _Written()
    with ExitStack() as stack:
        file = stack.enter_context(minari_hdf5.create(folder)) if storage == "hdf5" else None
        for episode in episodes:
            if written.spec is None:
                written.spec = episode.spec
                written.first = {n: plain(a[:0]) for n, a in episode.arrays.items()}
            _check(episode, written.spec, storage)
            record = _record(episode)
            if file is not None:
                minari_hdf5.write_record(file, written.episodes, record)
            else:
                minari_arrow.write_record(folder, written.episodes, storage, record)
            written.episodes += 1
            written.steps += len(record.rewards)
    return written


def _check(episode: Episode, spec: DatasetSpec, storage: str) -> None:
    def refuse(what: str) -> UsageError:
        where = episode.episode_id
        return UsageError(f"{what} in {where!r}; Minari cannot hold it.", where=where)

    if episode.actions is None or episode.rewards is None:
        raise refuse("Expected actions and rewards, one is missing")
    if episode.spec != spec:
        raise refuse(f"Expected the spec of the first episode, [{spec}], came [{episode.spec}]")
    if not all(field.is_regular for field in episode.spec.fields.values()):
        raise refuse(f"Expected numbers and pictures of one size, came [{episode.spec}]")
    if not _kept_steps(episode):
        raise refuse("Expected at least one step with an observation after it, came none")
    if storage != "hdf5":
        return
    for name in (*episode.spec.fields, *episode.extras):
        if re.search(r"~[13]|(^|/)\.?(/|$)", name):
            raise refuse(f"Expected names that HDF5 can hold, came {name!r}")


def _kept_steps(episode: Episode) -> int:
    is_cut = episode.final_observation == "missing" and not episode.is_terminated
    return max(0, episode.length - is_cut)


def _record(episode: Episode) -> Record:
    """Returns what is written of one episode: its arrays with T+1 observations."""
    steps = _kept_steps(episode)
    observations = {name: plain(rows) for name, rows in episode.observations.items()}
    if steps == episode.length and episode.final_observation == "missing":
        observations = {n: np.concatenate([a, a[-1:]]) for n, a in observations.items()}
    truncated = np.array(episode.truncated[:steps])
    truncated[-1] |= steps < episode.length
    attributes = _attributes(episode)
    attributes["total_steps"] = steps
    if episode.final_observation != "present" and steps == episode.length:
        attributes["final_observation"] = "copied"
    rewards = episode.rewards if episode.rewards is not None else np.zeros(0)
    return Record(
        observations=nest("observations", observations),
        actions=_cut(nest("actions", episode.flat_actions), steps),
        rewards=rewards[:steps],
        terminations=np.asarray(episode.terminated)[:steps],
        truncations=truncated,
        infos={
            name: _cut_extra(plain(rows), episode.length, steps)
            for name, rows in episode.extras.items()
            if spec_of(rows).is_regular
        },
        attributes=attributes,
    )


def _attributes(episode: Episode) -> dict[str, Scalar]:
    taken = ("id", "total_steps", "final_observation")
    stated = stated_facts(episode).items()
    return {name: value for name, value in stated if value is not None and name not in taken}


def _cut(value: Nested, steps: int) -> Nested:
    if isinstance(value, Mapping):
        return {key: _cut(child, steps) for key, child in value.items()}
    if isinstance(value, tuple):
        return tuple(_cut(child, steps) for child in value)
    return value[:steps]


def _cut_extra(array: np.ndarray, length: int, steps: int) -> np.ndarray:
    """Keeps an extra at T or T+1 rows of the steps that are written."""
    return array[: len(array) - (length - steps)]


def _spaces(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> dict[str, str]:
    spaces = {}
    for name, root in (("observation_space", "observations"), ("action_space", "actions")):
        group = {n: a for n, a in arrays.items() if n == root or n.startswith(f"{root}/")}
        stated = metadata.get(name)
        try:
            is_usable = stated is not None and fits(parse_space(stated, name), root, group)
        except PenstockError:
            is_usable = False
        spaces[name] = str(stated) if is_usable else json.dumps(box_json(nest(root, group)))
    return spaces


def _described(metadata: Mapping[str, Any]) -> dict[str, Any]:
    kinds: dict[str, tuple[type, ...]] = {
        **dict.fromkeys(_TEXTS, (str,)),
        **dict.fromkeys(_LISTS, (list, tuple)),
        **dict.fromkeys(_SCORES, (int, float)),
    }
    return {
        name: metadata[name] for name, kind in kinds.items() if isinstance(metadata.get(name), kind)
    }


def _id_of_place(where: str) -> str:
    """Returns the id that Minari expects of a dataset in this place."""
    path = Path(where).absolute()
    root = Path(os.environ.get("MINARI_DATASETS_PATH") or Path.home() / ".minari" / "datasets")
    inside = path.is_relative_to(root.absolute())
    name = path.relative_to(root.absolute()).as_posix() if inside else path.name
    name = re.sub(r"[^-\w/]", "-", name)
    return name if re.search(r"-v\d+$", name) else f"{name}-v0"


def _megabytes(folder: Path) -> float:
    total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return round(total / 1e6, 1)
