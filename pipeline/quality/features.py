"""An episode as rows of state, action and next state, ready for the estimators.

By default the state is every float observation field of at most 256 dims, side by side: cameras
are left out. Where fields repeat one another (an `observations/flat` beside its parts), name the
wanted ones in `FeatureSpec.observations`: a repeated dim has no noise of its own, which the
transition entropy would take for determinism. Named fields may have any dtype and size.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import numpy as np

from schemas.episode import Episode, has_transition
from schemas.errors import UnknownNameError, UsageError, suggest
from schemas.metrics import FeatureSpec
from schemas.packed import plain, spec_of

MAX_STATE_DIMS = 256
"""A float field of more dims is an image or an embedding, and only scored on request."""


@dataclass(frozen=True)
class Layout:
    """Which task and which columns some rows have; estimators never mix two layouts."""

    task: str | None
    states: tuple[tuple[str, int], ...]
    """Name and dims of each state field."""
    actions: tuple[tuple[str, int, bool], ...]
    """Name, dims, and whether whole numbers (discrete), of each action field."""
    spec: str | None = None
    """Of the episodes; None for the spec `default`, or where it does not matter."""

    @property
    def key(self) -> str:
        """A text that is equal for equal layouts."""
        named = [self.task, self.states, self.actions]
        return json.dumps([*named, self.spec] if self.spec else named, ensure_ascii=False)

    @property
    def state_dims(self) -> int:
        """Columns of the state."""
        return sum(dims for _, dims in self.states)

    @property
    def action_dims(self) -> int:
        """Columns of the action."""
        return sum(dims for _, dims, _ in self.actions)

    @property
    def discrete(self) -> np.ndarray:
        """(A,) bool, columns of whole numbers."""
        return np.repeat([d for *_, d in self.actions], [n for _, n, _ in self.actions])


def layout_from_key(key: str) -> Layout:
    """Returns the layout that has this key."""
    task, states, actions, *spec = json.loads(key)
    return Layout(
        task,
        tuple((n, d) for n, d in states),
        tuple((n, d, k) for n, d, k in actions),
        *spec,
    )


@dataclass(frozen=True)
class Features:
    """One episode's rows; every array has T rows."""

    layout: Layout
    states: np.ndarray  # (T, S) float64, raw units
    next_states: np.ndarray  # (T, S) float64; NaN where there is none
    actions: np.ndarray  # (T, A) float64, as recorded
    targets: np.ndarray  # (T, A) float64, what is scored: actions, or their differences
    acting: np.ndarray  # (T,) bool, rows on which the action can be scored
    moving: np.ndarray  # (T,) bool, rows on which the transition can be scored
    faulty_actions: int
    """Rows that NaN or Inf keeps from being scored for their action."""
    faulty_transitions: int
    """The same for their transition."""
    fingerprint: int
    """64-bit hash of these rows: equal rows are the same evidence, whatever their id."""


def extract(episode: Episode, spec: FeatureSpec) -> Features | None:
    """Returns an episode's features; None where it has no steps, states or actions.

    Raises:
        UnknownNameError: if the spec names an observation field that the episode has not.
        UsageError: if it names one of texts or of rows that vary in size.
    """
    names = _state_fields(episode, spec)
    actions = episode.flat_actions
    steps = episode.length
    if not names or not actions or not steps:
        return None
    observations = {name: plain(episode.observations[name]) for name in names}
    layout = Layout(
        episode.task,
        tuple((name, _dims(array)) for name, array in observations.items()),
        tuple((name, _dims(a), a.dtype.kind != "f") for name, a in sorted(actions.items())),
    )
    observed = _columns(list(observations.values()))
    recorded = _columns([actions[name] for name, *_ in layout.actions])
    states = observed[:steps]
    next_states = np.full_like(states, np.nan)
    next_states[: len(observed) - 1] = observed[1:]
    targets, defined = _targets(recorded, layout.discrete, spec.relative_actions)
    finite = np.isfinite(states).all(1) & np.isfinite(recorded).all(1)
    acting = finite & defined & np.isfinite(np.where(defined[:, None], targets, 0.0)).all(1)
    reaching = _reaching(episode)
    moving = finite & reaching & np.isfinite(next_states).all(1)
    return Features(
        layout,
        states,
        next_states,
        recorded,
        targets,
        acting,
        moving,
        faulty_actions=int((defined & ~acting).sum()),
        faulty_transitions=int((reaching & ~moving).sum()),
        fingerprint=_fingerprint(observed, recorded, reaching),
    )


def _state_fields(episode: Episode, spec: FeatureSpec) -> list[str]:
    if spec.observations is None:
        return sorted(
            name
            for name, array in episode.observations.items()
            if isinstance(array, np.ndarray)
            and array.dtype.kind == "f"
            and _dims(array) <= MAX_STATE_DIMS
        )
    for name in spec.observations:
        if name in episode.observations and not spec_of(episode.observations[name]).is_regular:
            raise UsageError(
                f"Expected observation fields of numbers to score, came {name!r} of "
                f"{spec_of(episode.observations[name])}; leave it out.",
                where=episode.episode_id,
            )
        if name not in episode.observations:
            raise UnknownNameError(
                f"Expected the observation fields {', '.join(spec.observations)} to score, "
                f"came an episode without {name!r}; {suggest(name, episode.observations)}",
                where=episode.episode_id,
            )
    return list(spec.observations)


def _dims(array: np.ndarray) -> int:
    return int(np.prod(array.shape[1:], dtype=np.int64))


def _columns(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([a.reshape(len(a), -1).astype(np.float64) for a in arrays], axis=1)


def _targets(
    recorded: np.ndarray, discrete: np.ndarray, relative: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The scored actions (T, A) and where they are defined (T,); classes have no differences."""
    defined = np.ones(len(recorded), bool)
    if not relative:
        return recorded, defined
    defined[0] = False
    with np.errstate(invalid="ignore"):  # Inf - Inf is a faulty row, counted by the caller
        steps = np.diff(recorded, axis=0, prepend=np.nan)
    return np.where(discrete, recorded, steps), defined


def _reaching(episode: Episode) -> np.ndarray:
    """(T,) bool, steps whose next observation is real; a terminated step's is never read."""
    reaching = ~np.asarray(episode.terminated)
    last = has_transition(terminated=False, final_observation=str(episode.final_observation))
    reaching[-1] &= last
    return reaching


def _fingerprint(*arrays: np.ndarray) -> int:
    hashed = hashlib.blake2b(digest_size=8)
    for array in arrays:
        hashed.update(np.ascontiguousarray(array).tobytes())
    return int.from_bytes(hashed.digest(), "little")
