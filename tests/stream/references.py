"""Streams by plain loops over episodes, to hold the real ones against."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.stream.loader import Stream
from schemas.episode import Episode


def stream(data: Any, **settings: Any) -> Stream:
    """A stream of NumPy batches."""
    return Stream(data, **{"framework": "numpy", **settings})


def take(batches: Any, count: int) -> list[dict[str, Any]]:
    """The next batches."""
    return list(itertools.islice(batches, count))


@dataclass(frozen=True)
class Place:
    """One step of one episode."""

    episode: int
    t: int


class Reference:
    """Episodes as they are drawn from.

    Args:
        episodes: in version order.
        keep: (start, stop) by number of the episode, where only some steps are kept.
    """

    def __init__(
        self, episodes: Sequence[Episode], keep: dict[int, tuple[int, int]] | None = None
    ) -> None:
        self.episodes, self.keep = list(episodes), keep or {}
        self.first = [0, *itertools.accumulate(e.length + 1 for e in self.episodes)]

    def steps(self, episode: int) -> tuple[int, int]:
        """First step that is a transition and is kept, and one past the last."""
        it = self.episodes[episode]
        count = it.length
        if not it.is_terminated and it.final_observation != "present":
            count -= 1
        start, stop = self.keep.get(episode, (0, count))
        return min(start, count), max(min(stop, count), min(start, count))

    def places(self) -> list[Place]:
        """All transitions in order."""
        return [Place(k, t) for k in range(len(self.episodes)) for t in range(*self.steps(k))]

    def position(self, place: Place) -> int:
        """In the version's T+1-row layout."""
        return self.first[place.episode] + place.t

    def place(self, position: int) -> Place:
        """Inverse of `position`."""
        episode = next(k for k in range(len(self.episodes)) if position < self.first[k + 1])
        return Place(episode, position - self.first[episode])

    def observation(self, place: Place) -> np.ndarray:
        """What is seen there; the last one seen, where a terminated end was not."""
        rows = np.asarray(self.episodes[place.episode].observations["observations"])
        it = self.episodes[place.episode]
        is_there = place.t < it.length or it.final_observation == "present"
        found: np.ndarray = rows[place.t if is_there else it.length - 1].astype(np.float32)
        return found


def sha_of_rows(ranks: list[Any], steps: int, names: Sequence[str] = ("indices",)) -> str:
    """Digest of what the ranks' shares of each batch hold, put together."""
    sha = hashlib.sha256()
    for _ in range(steps):
        batches = [next(rank) for rank in ranks]
        for name in names:
            sha.update(np.concatenate([batch[name] for batch in batches]).tobytes())
    return sha.hexdigest()
