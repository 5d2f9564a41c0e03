"""What views show of a version: its kept steps, and of these the transitions a learner may use.

A view shows what a stream draws from: the steps that `keep_start` and `keep_stop` keep, and no
transition whose next observation nobody knows (`schemas.episode.has_transition`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pipeline.store.reader import Version
from schemas.episode import Episode, has_transition
from schemas.errors import MissingExtraError, UsageError
from schemas.packed import plain
from schemas.spec import DatasetSpec


@dataclass(frozen=True)
class Kept:
    """Which steps of which episodes a view shows; aligned arrays, one entry per episode."""

    version: Version
    positions: np.ndarray  # (E,) int64, in `version.episodes()`
    ids: np.ndarray  # (E,) object
    start: np.ndarray  # (E,) int64, the first step
    stop: np.ndarray  # (E,) int64, one past the last
    usable: np.ndarray  # (E,) int64, steps from `start` on that are transitions

    def with_transitions(self) -> Kept:
        """Returns the episodes that have a transition.

        Raises:
            UsageError: if none has.
        """
        return self.pick(np.flatnonzero(self.usable))

    def with_steps(self) -> Kept:
        """Returns the episodes that have a step; errors are those of `with_transitions`."""
        return self.pick(np.flatnonzero(self.stop - self.start))

    def pick(self, which: np.ndarray) -> Kept:
        """Returns some of the episodes."""
        if len(which) == 0:
            raise UsageError(
                f"Expected episodes with steps to look at in {self.version!r}, came none; see "
                f"`penstock episodes` for lengths and final observations."
            )
        return Kept(
            self.version,
            positions=self.positions[which],
            ids=self.ids[which],
            start=self.start[which],
            stop=self.stop[which],
            usable=self.usable[which],
        )

    @cached_property
    def ends(self) -> np.ndarray:
        """(E,) int64, transitions up to and including each episode's."""
        found: np.ndarray = np.cumsum(self.usable)
        return found

    def read(self, which: np.ndarray | None = None) -> Iterator[Episode]:
        """Yields episodes, cut to the steps that are kept, in the order of `which`."""
        chosen = np.arange(len(self.positions)) if which is None else which
        episodes = self.version.episodes_at(self.positions[chosen])
        for at, episode in zip(chosen, episodes, strict=True):
            yield cut(episode, int(self.start[at]), int(self.stop[at]))


def kept(version: Version) -> Kept:
    """Returns the steps that a version keeps."""
    index = version.index()
    count = len(index.length)
    start, stop = np.zeros(count, np.int64), index.length.astype(np.int64)
    if index.keep is not None:
        start, stop = index.keep[:, 0], index.keep[:, 1]
    is_whole = index.terminated | index.final_present | (stop < index.length)
    usable = np.maximum(stop - start - ~is_whole, 0)
    return Kept(version, np.arange(count), index.episode_ids, start, stop, usable)


def cut(episode: Episode, start: int, stop: int) -> Episode:
    """Returns some steps of an episode; the observation after the last of them comes along."""
    if start == 0 and stop == episode.length:
        return episode
    steps, rows = slice(start, stop), slice(start, stop + 1)
    is_inner = stop < episode.length
    return episode.replace(
        observations={name: array[rows] for name, array in episode.observations.items()},
        actions={name: array[steps] for name, array in episode.flat_actions.items()} or None,
        rewards=None if episode.rewards is None else episode.rewards[steps],
        terminated=episode.terminated[steps],
        truncated=episode.truncated[steps],
        final_observation="present" if is_inner else episode.final_observation,
        extras={name: array[steps] for name, array in episode.extras.items()},
    )


@dataclass(frozen=True)
class Transitions:
    """An episode's usable steps, decoded: n transitions between n+1 observations."""

    observations: dict[str, np.ndarray]  # (n+1, ...) each
    actions: dict[str, np.ndarray]  # (n, ...) each
    rewards: np.ndarray  # (n,)
    terminated: np.ndarray  # (n,) bool
    truncated: np.ndarray  # (n,) bool, True at the last unless that is terminated


def transitions(episode: Episode) -> Transitions:
    """Returns what may be learned from an episode.

    A last step without a true next observation is left out. One that is terminated stays: where
    its next observation is not known the last one stands in its place, and nothing reads it.

    Errors are those of `acted`.
    """
    actions, rewards = acted(episode)
    is_usable = has_transition(episode.is_terminated, episode.final_observation or "missing")
    steps = episode.length - (not is_usable)
    observations = {name: plain(rows) for name, rows in episode.observations.items()}
    if is_usable and episode.final_observation == "missing":
        observations = {n: np.concatenate([a, a[-1:]]) for n, a in observations.items()}
    truncated = np.array(episode.truncated[:steps])
    truncated[-1:] |= ~episode.terminated[:steps][-1:]
    return Transitions(
        observations={name: array[: steps + 1] for name, array in observations.items()},
        actions={name: array[:steps] for name, array in actions.items()},
        rewards=rewards[:steps],
        terminated=episode.terminated[:steps],
        truncated=truncated,
    )


def acted(episode: Episode) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Returns an episode's actions by full name, (T, ...) each, and its rewards, (T,).

    Raises:
        UsageError: if it has no actions or no rewards.
    """
    rewards, actions = episode.rewards, episode.flat_actions
    if rewards is None or not actions:
        lacking = "rewards" if actions else "actions"
        raise UsageError(
            f"Expected {lacking} in every episode, {episode.episode_id!r} has none; select the "
            f"others, or annotate them first.",
            where=episode.episode_id,
        )
    return actions, rewards


def one_spec(version: Version) -> DatasetSpec:
    """Returns the spec that all of a version's episodes share.

    Raises:
        UsageError: if they are of several.
    """
    specs = version.specs
    if len(specs) != 1:
        first = min(specs)
        raise UsageError(
            f"Expected episodes of one spec, came {' and '.join(sorted(specs))}; choose one: "
            f"version.where(\"spec == '{first}'\").commit({first!r})."
        )
    return next(iter(specs.values()))


def learnable(version: Version) -> DatasetSpec:
    """Returns the spec of a version whose episodes are numbers, with actions and rewards.

    Raises:
        UsageError: if there are several specs, texts, rows that vary, or no actions or rewards.
    """
    spec = one_spec(version)
    for name, field in spec.fields.items():
        if not field.is_regular:
            raise UsageError(
                f"Expected arrays of one shape, came {name} as {field}; use a Stream, which draws "
                f"the fields it is told."
            )
    for root in ("actions", "rewards"):
        if not any(name == root or name.startswith(f"{root}/") for name in spec.fields):
            raise UsageError(f"Expected {root} in the spec, came [{spec}].")
    return spec


def as_dtype(array: np.ndarray, dtype: str | None) -> np.ndarray:
    """Returns floats as another dtype, everything else as it is; None keeps floats too."""
    return array.astype(dtype) if dtype is not None and array.dtype.kind == "f" else array


def missing(package: str, error: ImportError) -> MissingExtraError:
    """Returns the error that says how to install the library of a view.

    These libraries pin what they need, and not always what we need, so they are no extras of ours.
    """
    return MissingExtraError(
        f"This view needs the package {package!r}, which cannot be imported ({error}); install it "
        f"with: pip install {package}."
    )
