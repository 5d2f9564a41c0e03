"""A version as Minari's dataset, live: a storage of Minari's own kind that reads from the store.

Nothing is copied; episodes are read when Minari asks for them, and cannot be written.

Environments that a source states are made from the installed registry only: Minari would load
whatever class the data name. What is not registered here, or was made with more than numbers, is
left out, and `recover_environment` says that it cannot be recovered.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from pipeline.store.reader import Version
from pipeline.stream.views.episodes import Kept, kept, learnable, missing, transitions
from schemas.episode import Episode
from schemas.errors import UsageError
from schemas.nesting import Nested, nest
from schemas.packed import plain, spec_of
from schemas.spec import DatasetSpec

try:
    import gymnasium
    import minari
    from gymnasium import spaces
    from minari import MinariDataset
    from minari.dataset.minari_storage import MinariStorage
    from minari.serialization import deserialize_space
except ImportError as error:
    raise missing("minari", error) from error


def view(version: Version) -> MinariDataset:
    """Returns Minari's dataset of all episodes; see `Version.as_minari`."""
    spec = learnable(version)
    return MinariDataset(StoreStorage(kept(version).with_transitions(), spec))


class StoreStorage(MinariStorage):  # type: ignore[misc]  # Minari has no types
    """Episodes of a version as Minari's storage; read-only."""

    FORMAT = "penstock"

    def __init__(self, shown: Kept, spec: DatasetSpec) -> None:
        stated = _stated(shown.version)
        super().__init__(
            Path(shown.version.store.url),
            _space(spec, "observations", stated.get("observation_space")),
            _space(spec, "actions", stated.get("action_space")),
            jpeg_encoding=False,
        )
        self._shown = shown
        version = shown.version
        self._metadata = {
            "dataset_id": f"penstock/{version.branch}-v{version.number}",
            "minari_version": minari.__version__,
            "total_episodes": len(shown.positions),
            "total_steps": int(shown.ends[-1]),
            "data_format": self.FORMAT,
            "observation_space": self.observation_space,
            "action_space": self.action_space,
        }
        for name in ("env_spec", "eval_env_spec"):
            text = registered(stated.get(name))
            if text is not None:
                self._metadata[name] = text

    @property
    def metadata(self) -> dict[str, Any]:
        """Minari's metadata."""
        return dict(self._metadata)

    def get_episodes(self, episode_indices: Iterable[int]) -> Iterator[dict[str, Any]]:
        """Yields episodes as Minari's dictionaries, each read when it is asked for."""
        wanted = np.fromiter(episode_indices, np.int64)
        for number, episode in zip(wanted, self._shown.read(wanted), strict=True):
            yield _episode(int(number), episode)

    def get_episode_metadata(self, episode_indices: Iterable[int]) -> Iterator[dict[str, Any]]:
        """Yields the number, steps and store id of episodes."""
        for number in episode_indices:
            yield {
                "id": int(number),
                "total_steps": int(self._shown.usable[number]),
                "episode_id": self._shown.ids[number],
            }

    def get_size(self) -> float:
        """Returns the megabytes of the version's files."""
        return round(self._shown.version.commit.totals.bytes / 1e6, 1)

    def update_metadata(self, metadata: object) -> NoReturn:
        """Refuses: versions never change."""
        raise _read_only()

    def update_episode_metadata(
        self, metadatas: object, episode_indices: object = None
    ) -> NoReturn:
        """Refuses: versions never change."""
        raise _read_only()

    def update_episodes(self, episodes: object) -> NoReturn:
        """Refuses: versions never change."""
        raise _read_only()

    @classmethod
    def _create(cls, *args: object, **settings: object) -> NoReturn:
        raise _read_only()


def registered(stated: object) -> str | None:
    """Returns the JSON of an installed environment that a source states; None if there is none.

    Of what is stated, only its id, its limit of steps and numbers among its arguments are used.
    """
    try:
        said = json.loads(stated) if isinstance(stated, str) else {}
        known = gymnasium.registry.get(said.get("id"))
        found = None if known is None else json.loads(known.to_json())
        arguments, limit = said.get("kwargs") or {}, said.get("max_episode_steps")
        wrappers = said.get("additional_wrappers")
    except (ValueError, AttributeError, TypeError, RecursionError):
        return None
    is_limit = limit is None or (isinstance(limit, int) and limit > 0)
    is_plain = isinstance(arguments, dict) and _are_numbers(arguments)
    if found is None or wrappers or not is_limit or not is_plain:
        return None
    found["kwargs"] |= arguments
    found["max_episode_steps"] = limit
    return json.dumps(found)


def _are_numbers(value: object) -> bool:
    """True for JSON without texts, which might name files or code; names of arguments may be."""
    if isinstance(value, dict):
        return all(map(_are_numbers, value.values()))
    if isinstance(value, list):
        return all(map(_are_numbers, value))
    return value is None or isinstance(value, bool | int | float)


def _stated(version: Version) -> dict[str, Any]:
    """Returns what all of a version's sources state alike."""
    every = [source.metadata for source in version.state.sources.values()]
    first = every[0] if every else {}
    return {n: v for n, v in first.items() if all(other.get(n) == v for other in every)}


def _space(spec: DatasetSpec, root: str, stated: object) -> spaces.Space:
    """Returns the space that a source states, if the fields are of it; else unbounded boxes."""
    rows = {
        name: np.empty((0, *field.shape), field.numpy_dtype)
        for name, field in spec.fields.items()
        if name == root or name.startswith(f"{root}/")
    }
    boxes = _boxes(nest(root, rows))
    try:
        found = deserialize_space(stated) if isinstance(stated, str) else None
    except (ValueError, KeyError, TypeError, AssertionError, AttributeError, RecursionError):
        found = None
    return found if found is not None and _leaves(found) == _leaves(boxes) else boxes


def _boxes(value: Nested) -> spaces.Space:
    if isinstance(value, dict):
        return spaces.Dict({name: _boxes(child) for name, child in value.items()})
    if isinstance(value, tuple):
        return spaces.Tuple([_boxes(child) for child in value])
    assert isinstance(value, np.ndarray)
    kind = value.dtype
    if kind.kind == "f":
        return spaces.Box(-np.inf, np.inf, value.shape[1:], kind.type)
    if kind.kind == "b":
        return spaces.Box(0, 1, value.shape[1:], np.bool_)
    limits = np.iinfo(kind)
    return spaces.Box(limits.min, limits.max, value.shape[1:], kind.type)


def _leaves(space: spaces.Space) -> object:
    """The nesting, dtypes and shapes of a space."""
    if isinstance(space, spaces.Dict):
        return {name: _leaves(child) for name, child in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_leaves(child) for child in space.spaces)
    return space.dtype, space.shape


def _episode(number: int, episode: Episode) -> dict[str, Any]:
    found = transitions(episode)
    steps = len(found.rewards)
    return {
        "id": number,
        "observations": nest("observations", dict(found.observations)),
        "actions": nest("actions", dict(found.actions)),
        "rewards": found.rewards,
        "terminations": found.terminated,
        "truncations": found.truncated,
        "infos": {
            name: plain(rows)[: steps + 1]
            for name, rows in episode.extras.items()
            if spec_of(rows).is_regular
        },
    }


def _read_only() -> UsageError:
    return UsageError(
        "Expected a storage that can be written, came a view of a version, which never changes; "
        "append to the store instead."
    )
