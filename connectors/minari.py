"""Reads Minari datasets in all three storages (HDF5, Arrow, Parquet), without Minari itself.

Episodes keep T+1 observations in the dtype they have, nested as their space is; the dataset's id is
the namespace of their ids, `episode_<i>` the id of each. Infos become extras (numbers of T or T+1
rows; others are left out), seed and options columns, the statistics that Minari adds to each
episode (`rewards_sum` and the like) are left out because rewards say them. The task is the id of
the environment, unless the episode states another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from connectors import minari_arrow, minari_hdf5
from connectors.base import Found, Listing, Unit
from connectors.facts import episode_facts
from connectors.files import fingerprint
from connectors.minari_layout import Dataset, Record, open_dataset
from connectors.minari_spaces import Space, leaves
from connectors.units import plan_units
from schemas.episode import Episode, FinalObservation
from schemas.errors import EpisodeError
from schemas.nesting import Nested, flatten
from schemas.packed import plain

_STRUCTURAL = (
    "id",
    "total_steps",
    "final_observation",
    "rewards_sum",
    "rewards_mean",
    "rewards_std",
    "rewards_max",
    "rewards_min",
)
_JPEG = "images were stored as JPEG: they have lost detail"
_COUNTS = ("total_episodes", "total_steps", "dataset_size", "dataset_id")


class MinariSource:
    """Minari datasets as a source."""

    def guesses(self) -> tuple[str, ...]:
        """Says what may be guessed (see `connectors.base.Source`)."""
        return (_JPEG,)

    def discover(self, where: str) -> Listing:
        """Reads the metadata and the lengths of episodes (see `connectors.base.Source`)."""
        dataset = open_dataset(where)
        lengths = _storage(dataset).episode_lengths(dataset)
        units = tuple(
            Unit(format="minari", where=where, start=start, stop=stop, steps=steps)
            for start, stop, steps in plan_units(lengths, _step_bytes(dataset))
        )
        return Listing(
            format="minari",
            where=where,
            identity=dataset.dataset_id,
            units=units,
            episodes=dataset.episodes,
            steps=sum(lengths),
            fingerprint=fingerprint(dataset.folder, dataset.files),
            metadata={k: v for k, v in dataset.metadata.items() if k not in _COUNTS},
            guesses=_guesses(dataset),
        )

    def read(self, unit: Unit) -> Iterator[Found]:
        """Reads episodes; one that cannot be read comes back as a fault."""
        dataset = open_dataset(unit.where)
        records = _storage(dataset).read_records(dataset, unit.start, unit.stop)
        for position, record in enumerate(records, unit.start):
            key = f"episode_{position}"
            if isinstance(record, EpisodeError):
                yield Found(key, position, key, None, record)
                continue
            try:
                yield Found(key, position, key, _episode(record, dataset, key))
            except EpisodeError as fault:
                yield Found(key, position, key, None, fault)


def _storage(dataset: Dataset) -> Any:
    return minari_hdf5 if dataset.storage == "hdf5" else minari_arrow


def _episode(record: Record, dataset: Dataset, key: str) -> Episode:
    steps = len(record.rewards)
    stated = record.attributes.get("total_steps", steps)
    if stated != steps:
        raise EpisodeError(
            f"Expected {stated} steps in {key} of {dataset.dataset_id}, came {steps} rewards.",
            code="length_mismatch",
            where=key,
        )
    facts = episode_facts({k: v for k, v in record.attributes.items() if k not in _STRUCTURAL})
    return Episode(
        episode_id="",
        observations=flatten("observations", record.observations),
        actions=_actions(record.actions),
        rewards=record.rewards,
        terminated=record.terminations,
        truncated=record.truncations,
        final_observation=_final(record.attributes),
        extras={n: a for n, a in record.infos.items() if len(a) in (steps, steps + 1)},
        source=dataset.dataset_id,
        source_key=key,
        **{"task": dataset.environment, **facts},
    )


def _actions(value: Nested) -> np.ndarray | Mapping[str, np.ndarray]:
    if isinstance(value, np.ndarray):
        return value
    return {name: plain(rows) for name, rows in flatten("actions", value).items()}


def _final(attributes: Mapping[str, Any]) -> FinalObservation:
    """`present`, unless our own writer noted that it is a copy."""
    return "copied" if attributes.get("final_observation") == "copied" else "present"


def _guesses(dataset: Dataset) -> tuple[str, ...]:
    said = []
    spaces = (dataset.observation_space, dataset.action_space)
    if dataset.is_jpeg and any(leaf.is_image for s in spaces if s for _, leaf in leaves(s, "")):
        said.append(_JPEG)
    return tuple(said)


def _step_bytes(dataset: Dataset) -> int:
    def size(space: Space | None) -> int:
        found = leaves(space, "") if space else ()
        return sum(leaf.size * np.dtype(leaf.dtype).itemsize for _, leaf in found)

    return size(dataset.observation_space) + size(dataset.action_space)
