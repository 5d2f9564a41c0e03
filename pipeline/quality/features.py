"""An episode as rows of state, action and next state, ready for the estimators.

By default the state is every float observation field of at most 256 dims, side by side: cameras
are left out. Where fields repeat one another (an `observations/flat` beside its parts), name the
wanted ones in `FeatureSpec.observations`: a repeated dim has no noise of its own, which the
transition entropy would take for determinism. Named fields may have any dtype and size. Angles,
grippers and embeddings are told apart only where named: see `columns.py`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.quality.columns import (
    COSINE,
    EMBEDDING,
    SINE,
    Split,
    check_names,
    split,
    turned,
    wrapped,
)
from schemas.episode import Episode, has_transition
from schemas.errors import UnknownNameError, UsageError, suggest
from schemas.metrics import FeatureSpec
from schemas.packed import Rows, plain, spec_of

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

    def scored_discrete(self, *, relative: bool) -> np.ndarray:
        """(A',) bool, the same of what is scored: a difference of angles is one column."""
        if not relative:
            return self.discrete
        kept = [(n, d) for name, n, d in self.actions if not name.startswith(SINE)]
        return np.repeat([d for _, d in kept], [n for n, _ in kept])


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
    changes: np.ndarray  # (T, D) float64, next state minus this one; NaN where there is none
    actions: np.ndarray  # (T, A) float64, as recorded
    targets: np.ndarray  # (T, A') float64, what is scored: actions, or their differences
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
        UnknownNameError: if the spec names a field that the episode has not.
        UsageError: if it names one of texts or of rows that vary in size, or a dim beyond its size.
    """
    observations = {name: plain(rows) for name, rows in _state_rows(episode, spec).items()}
    actions = dict(sorted(episode.flat_actions.items()))
    steps = episode.length
    if not observations or not actions or not steps:
        return None
    seen = {name: _dims(array) for name, array in observations.items()}
    done = {name: _dims(array) for name, array in actions.items()}
    check_names((*spec.angles, *spec.grippers), seen | done, episode.episode_id)
    state_split = split(list(seen.items()), spec.angles)
    action_split = split(list(done.items()), spec.angles, spec.grippers)
    layout = Layout(
        episode.task,
        _state_layout(state_split),
        _action_layout(action_split, {n: a.dtype.kind != "f" for n, a in actions.items()}),
    )
    observed, recorded = _columns(observations.values()), _columns(actions.values())
    states = _encoded(observed[:steps], state_split)
    changes = _changes(observed, steps, state_split)
    controls = _encoded(recorded, action_split)
    targets, defined = _targets(recorded, controls, layout, action_split, spec)
    finite = np.isfinite(states).all(1) & np.isfinite(controls).all(1)
    acting = finite & defined & np.isfinite(np.where(defined[:, None], targets, 0.0)).all(1)
    reaching = _reaching(episode)
    moving = finite & reaching & np.isfinite(changes).all(1)
    return Features(
        layout,
        states,
        changes,
        controls,
        targets,
        acting,
        moving,
        faulty_actions=int((defined & ~acting).sum()),
        faulty_transitions=int((reaching & ~moving).sum()),
        fingerprint=_fingerprint(observed, recorded, reaching),
    )


def _state_rows(episode: Episode, spec: FeatureSpec) -> dict[str, Rows]:
    """The arrays that count as state, the embedding last and under a name that says so."""
    found = {name: episode.observations[name] for name in _state_fields(episode, spec)}
    if spec.embedding is None:
        return found
    rows = {**episode.arrays, **episode.extras}.get(spec.embedding)
    if rows is None or not spec_of(rows).is_regular:
        raise UnknownNameError(
            f"Expected an observation field or extra {spec.embedding!r} of numbers to score, came "
            f"none; {suggest(spec.embedding, {**episode.observations, **episode.extras})}",
            where=episode.episode_id,
        )
    found.pop(spec.embedding, None)
    return {**found, EMBEDDING + spec.embedding: rows}


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


def _columns(arrays: Iterable[np.ndarray]) -> np.ndarray:
    """Fields side by side, (N, ...) float64; those of T rows beside T + 1 end in a row of NaN."""
    flat = [a.reshape(len(a), -1).astype(np.float64) for a in arrays]
    rows = max(map(len, flat))
    if any(len(a) < rows for a in flat):
        flat = [np.pad(a, ((0, rows - len(a)), (0, 0)), constant_values=np.nan) for a in flat]
    return np.concatenate(flat, axis=1)


def _state_layout(columns: Split) -> tuple[tuple[str, int], ...]:
    angles = [(kind + columns.label(at), 1) for at in columns.angles for kind in (COSINE, SINE)]
    return (*columns.plain_fields, *angles)


def _action_layout(
    columns: Split, is_discrete: Mapping[str, bool]
) -> tuple[tuple[str, int, bool], ...]:
    return (
        *((name, dims, is_discrete[name]) for name, dims in columns.plain_fields),
        *((columns.label(at), 1, True) for at in columns.grippers),
        *((kind + columns.label(at), 1, False) for at in columns.angles for kind in (COSINE, SINE)),
    )


def _encoded(rows: np.ndarray, columns: Split) -> np.ndarray:
    """Raw columns in a layout's order: plain ones, grippers, then cosine and sine of angles."""
    if not columns.special:
        return rows
    parts = [rows[:, columns.plain]]
    parts.append(np.rint(rows[:, list(columns.grippers)]))
    parts.append(turned(rows[:, list(columns.angles)]))
    return np.concatenate(parts, axis=1)


def _changes(observed: np.ndarray, steps: int, columns: Split) -> np.ndarray:
    """(T, D) next state minus this one, angles last; an embedding's is left out."""
    widths = np.repeat(
        [not name.startswith(EMBEDDING) for name, _ in columns.fields],
        [dims for _, dims in columns.fields],
    )
    scored = [at for at in columns.plain if widths[at]]
    order = [*scored, *columns.angles]
    rows = observed if order == list(range(observed.shape[1])) else observed[:, order]
    changes = np.full((steps, len(order)), np.nan)
    with np.errstate(invalid="ignore"):  # Inf - Inf is a faulty row, counted by the caller
        changes[: len(rows) - 1] = np.diff(rows, axis=0)[:steps]
    if columns.angles:
        changes[:, len(scored) :] = wrapped(changes[:, len(scored) :])
    return changes


def _targets(
    recorded: np.ndarray,
    controls: np.ndarray,
    layout: Layout,
    columns: Split,
    spec: FeatureSpec,
) -> tuple[np.ndarray, np.ndarray]:
    """The scored actions (T, A') and where they are defined (T,); classes have no differences."""
    defined = np.ones(len(recorded), bool)
    if not spec.relative_actions:
        return controls, defined
    defined[0] = False
    plain_width = controls.shape[1] - 2 * len(columns.angles)
    before = controls[:, :plain_width]
    with np.errstate(invalid="ignore"):  # Inf - Inf is a faulty row, counted by the caller
        steps = np.diff(before, axis=0, prepend=np.nan)
        turns = np.diff(recorded[:, list(columns.angles)], axis=0, prepend=np.nan)
    steps = np.where(layout.discrete[:plain_width], before, steps)
    return np.concatenate([steps, wrapped(turns)], axis=1), defined


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
