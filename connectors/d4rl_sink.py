"""Writes D4RL files: flat arrays over all steps, one HDF5 file.

The format has room for one array of observations, so nested spaces do not fit. Final observations
go to `next_observations`, which is only written where every episode either has one or is
terminated (there it repeats the last observation: nothing reads it, and our reader calls it
copied); a single truncated episode without one would otherwise force an invented transition.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import h5py
import numpy as np

from connectors.base import ABOUT, UNIT_STEPS, Loss
from connectors.files import new_dataset
from schemas.episode import Episode
from schemas.errors import UsageError
from schemas.nesting import nest
from schemas.packed import Rows, plain, spec_of

_COMPRESSION = {"compression": "gzip", "compression_opts": 4, "shuffle": True}


class D4rlSink:
    """D4RL's HDF5 layout as a sink."""

    def losses(self) -> tuple[Loss, ...]:
        """Says what a D4RL file cannot hold (see `connectors.base.Sink`)."""
        return (
            Loss("ids", "D4RL rows have no ids"),
            *(Loss(fact, "D4RL files say nothing about single episodes") for fact in ABOUT),
            Loss("names", "a single named observation or action array becomes the plain one"),
            Loss("truncated", "an episode that merely stops is written as truncated"),
            Loss(
                "final_observation",
                "kept only where every episode has one or is terminated; that of a terminated "
                "episode without one becomes a copy of the last",
            ),
            Loss(
                "extras",
                "the last of T+1 rows, texts, ragged rows, and extras that not all episodes have "
                "alike",
            ),
            Loss("encodings", "pictures and videos are written decoded"),
            Loss("names", "several observation or action arrays", refused=True),
            Loss("rewards", "episodes without rewards", refused=True),
            Loss("actions", "episodes without actions", refused=True),
            Loss("specs", "episodes of different fields", refused=True),
        )

    def options(self) -> Mapping[str, str]:
        """Says which metadata it uses (see `connectors.base.Sink`)."""
        return {"*": "kept as `metadata/<name>`: numbers and texts"}

    def write(self, episodes: Iterable[Episode], where: str, metadata: Mapping[str, Any]) -> int:
        """Writes one file; see `connectors.base.Sink`."""
        with new_dataset(where) as draft, h5py.File(draft, "w") as file:
            writer = _Writer(file)
            for episode in episodes:
                writer.add(episode)
            writer.close()
            for name, value in metadata.items():
                if isinstance(value, bool | int | float | str) and name.strip("/"):
                    file[f"metadata/{name.strip('/')}"] = value
            return writer.episodes


class _Writer:
    """Gathers about `UNIT_STEPS` steps, then appends them to resizable datasets."""

    def __init__(self, file: Any) -> None:
        self.episodes = 0
        self._file = file
        self._pending: list[dict[str, np.ndarray]] = []
        self._pending_steps = 0
        self._like: dict[str, np.ndarray] = {}
        self._dropped: set[str] = set()

    def add(self, episode: Episode) -> None:
        arrays = _step_arrays(episode)
        if not self._like:
            self._like = {name: array[:0] for name, array in arrays.items()}
        self._drop_unlike(arrays, episode)
        self._pending.append(arrays)
        self._pending_steps += episode.length
        self.episodes += 1
        if self._pending_steps >= UNIT_STEPS:
            self._flush()

    def close(self) -> None:
        self._flush()
        for name in self._dropped & self._like.keys():
            if name in self._file:
                del self._file[name]

    def _drop_unlike(self, arrays: Mapping[str, np.ndarray], episode: Episode) -> None:
        """Optional arrays that one episode lacks go for all; any other difference is refused."""
        for name in self._like.keys() | arrays.keys():
            mine, first = arrays.get(name), self._like.get(name)
            if mine is not None and first is not None and _row(mine) == _row(first):
                continue
            if name == "next_observations" or name.startswith("infos/"):
                self._dropped.add(name)
                continue
            raise UsageError(
                f"Expected every episode with {name} like the first, {_row(first)}, came "
                f"{_row(mine)} in {episode.episode_id!r}; D4RL files hold one spec.",
                where=episode.episode_id,
            )

    def _flush(self) -> None:
        for name in self._like.keys() - self._dropped:
            rows = np.concatenate([self._like[name], *(block[name] for block in self._pending)])
            if name in self._file:
                dataset = self._file[name]
                dataset.resize(len(dataset) + len(rows), axis=0)
                dataset[len(dataset) - len(rows) :] = rows
            else:
                limits = (None, *rows.shape[1:])
                self._file.create_dataset(name, data=rows, maxshape=limits, **_COMPRESSION)
        self._pending, self._pending_steps = [], 0


def _row(array: np.ndarray | None) -> str:
    return "absent" if array is None else f"{array.dtype}{list(array.shape[1:])}"


def _step_arrays(episode: Episode) -> dict[str, np.ndarray]:
    """Returns the rows of one episode by D4RL name, each (T, ...)."""
    observations = _single("observations", episode.observations, episode)
    actions = _single("actions", episode.flat_actions, episode)
    rewards = episode.rewards
    if rewards is None or not episode.length:
        lacks = "rewards" if rewards is None else "steps"
        raise UsageError(
            f"Expected {lacks} in every episode, {episode.episode_id!r} has none; "
            f"D4RL cannot hold it.",
            where=episode.episode_id,
        )
    if (episode.terminated | episode.truncated)[:-1].any():
        raise UsageError(
            f"Expected end flags on the last step only, {episode.episode_id!r} has earlier ones; "
            f"D4RL would end the episode there.",
            where=episode.episode_id,
        )
    timeouts = np.array(episode.truncated)
    timeouts[-1] |= not episode.is_terminated
    rows = {
        "observations": observations[: episode.length],
        "actions": actions,
        "rewards": rewards,
        "terminals": np.asarray(episode.terminated),
        "timeouts": timeouts,
    }
    if episode.final_observation != "missing":
        rows["next_observations"] = observations[1:]
    elif episode.is_terminated:
        rows["next_observations"] = np.concatenate([observations[1:], observations[-1:]])
    for name, array in episode.extras.items():
        if spec_of(array).is_regular:
            rows[f"infos/{name}"] = plain(array[: episode.length])
    return rows


def _single(root: str, arrays: Mapping[str, Rows], episode: Episode) -> np.ndarray:
    if len(arrays) != 1 or not all(spec_of(array).is_regular for array in arrays.values()):
        raise UsageError(
            f"Expected one array of {root} in {episode.episode_id!r}, came "
            f"{', '.join(arrays) or 'none'}; D4RL holds flat arrays only.",
            where=episode.episode_id,
        )
    value = nest(root, arrays)
    while isinstance(value, Mapping | tuple):
        value = next(iter(value.values())) if isinstance(value, Mapping) else value[0]
    return plain(value)
