"""`Episode`: one run from reset to its end, the unit we ingest, dedupe, score and select.

T steps of actions, rewards and end flags between **T+1** observations. Lengths are checked once,
here; everything downstream trusts them. A source that lost the last observation says so with
`final_observation="missing"` and has T rows of observations: nothing is made up.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np

from schemas.errors import EpisodeError
from schemas.nesting import flatten
from schemas.packed import Packed, Rows, Video, check, spec_of
from schemas.spec import RAW_KINDS, DatasetSpec

Kind = Literal["demonstration", "rollout", "synthetic"]
FinalObservation = Literal["present", "missing", "copied"]
Scalar = bool | int | float | str | None

KINDS: tuple[str, ...] = get_args(Kind)
FINAL_OBSERVATIONS: tuple[str, ...] = get_args(FinalObservation)
_SCALARS: tuple[type, ...] = (bool, int, float, str)
_FACTS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("episode_id", "task", "policy", "policy_version"), (str,)),
    **dict.fromkeys(("source", "source_key"), (str,)),
    "seed": (int,),
    "success": (bool,),
    "fps": (float,),
}


@dataclass(frozen=True, eq=False)
class Episode:
    """Arrays and facts of one episode.

    Raises:
        EpisodeError: with code `length_mismatch` or `bad_dtype`, naming the field, when arrays do
            not fit one another.
    """

    episode_id: str
    """`<namespace>/<native id>`, `c-<digest>-<k>`, or what a client chose; data, never a path."""
    observations: Mapping[str, Rows]
    """Named arrays, or `Packed` and `Video` rows that are still encoded; each (T+1, ...), or
    (T, ...) where the final observation is missing. A plain space is `{"observations": array}`;
    `{"state": ...}` or nested mappings and tuples become `observations/state` and so on."""
    actions: np.ndarray | Mapping[str, np.ndarray] | None = None
    """(T, ...), or a mapping `actions/<name>` of such arrays; None where unknown."""
    rewards: np.ndarray | None = None
    """(T,); None where unknown."""
    terminated: np.ndarray = False  # type: ignore[assignment]
    """(T,) bool, ended by the task; a plain bool speaks of the last step."""
    truncated: np.ndarray = False  # type: ignore[assignment]
    """(T,) bool, cut off; a plain bool speaks of the last step."""
    final_observation: FinalObservation | None = None
    """`present`, `missing` (the source dropped it) or `copied` (the source repeats the one
    before); by default told from the lengths."""

    task: str | None = None
    kind: Kind = "demonstration"
    policy: str | None = None
    policy_version: str | None = None
    seed: int | None = None
    success: bool | None = None
    collected_at: dt.datetime | None = None
    """Aware datetime; naive ones are read as UTC."""
    fps: float | None = None
    """Steps per second."""
    columns: Mapping[str, Scalar] = field(default_factory=dict)
    """Further facts as the source states them; part of the digest."""
    labels: Mapping[str, Scalar] = field(default_factory=dict)
    """What a dataset says about its episodes from outside (filter keys, splits); not digested."""
    extras: Mapping[str, Rows] = field(default_factory=dict)
    """Optional per-step arrays, T or T+1 rows, never part of a spec."""
    source: str | None = None
    """Where it came from: a dataset's name or address."""
    source_key: str | None = None
    """Source, file and position; for people and quarantine, never for identity."""

    def __post_init__(self) -> None:
        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        put("observations", _named("observations", self.observations))
        if isinstance(self.actions, Mapping | tuple):
            named = _named("actions", self.actions)
            put("actions", {name: _numbers(array, name) for name, array in named.items()})
        elif self.actions is not None:
            put("actions", _numbers(self.actions, "actions"))
        put("rewards", None if self.rewards is None else _numbers(self.rewards, "rewards"))
        put("extras", {name: _rows(array, name) for name, array in self.extras.items()})
        for name, kind in _FACTS.items():
            if getattr(self, name) is not None:
                put(name, _fact(getattr(self, name), name, kind))
        for facts in ("columns", "labels"):  # an absent fact and a null one are the same
            plain = {n: _fact(v, n, _SCALARS) for n, v in getattr(self, facts).items()}
            put(facts, {n: v for n, v in plain.items() if v is not None})
        length = self._infer_length()
        for flag in ("terminated", "truncated"):
            put(flag, _flags(getattr(self, flag), length, flag, self.episode_id))
        put("final_observation", self._check_lengths(length))
        if self.collected_at is not None:
            aware = self.collected_at
            aware = aware if aware.tzinfo else aware.replace(tzinfo=dt.UTC)
            put("collected_at", aware.astimezone(dt.UTC))
        if self.seed is not None and not -(2**63) <= self.seed < 2**63:
            raise EpisodeError(
                f"Expected a seed that fits 64 bits, came {self.seed}.",
                code="bad_dtype",
                where=self.source_key or self.episode_id,
            )
        for name, value, known in (
            ("kind", self.kind, KINDS),
            ("final_observation", self.final_observation, FINAL_OBSERVATIONS),
        ):
            if value not in known:
                raise EpisodeError(
                    f"Expected {name} to be one of {', '.join(known)}, came {value!r}.",
                    code="bad_dtype",
                    where=self.episode_id,
                )

    @property
    def length(self) -> int:
        """T, the number of steps."""
        return len(self.terminated)

    @property
    def flat_actions(self) -> dict[str, np.ndarray]:
        """The actions by full name; empty where unknown."""
        if self.actions is None:
            return {}
        named = self.actions if isinstance(self.actions, Mapping) else {"actions": self.actions}
        return dict(named)

    @property
    def arrays(self) -> dict[str, Rows]:
        """All fields by full name: observations, actions, rewards, `extras/<name>`."""
        found = {**self.observations, **self.flat_actions}
        if self.rewards is not None:
            found["rewards"] = self.rewards
        found.update({f"extras/{name}": array for name, array in self.extras.items()})
        return found

    @cached_property
    def spec(self) -> DatasetSpec:
        """The spec this episode is of; extras are not in it."""
        return DatasetSpec(
            {n: spec_of(a) for n, a in self.arrays.items() if not n.startswith("extras/")}
        )

    @property
    def episode_return(self) -> float | None:
        """Undiscounted sum of rewards in float64; None where there are no rewards."""
        return None if self.rewards is None else float(np.sum(self.rewards, dtype=np.float64))

    @property
    def is_terminated(self) -> bool:
        """True if the last step is terminated."""
        return bool(self.length and self.terminated[-1])

    @property
    def is_truncated(self) -> bool:
        """True if the last step is truncated."""
        return bool(self.length and self.truncated[-1])

    def replace(self, **changes: Any) -> Episode:
        """Returns a copy with some fields changed."""
        return replace(self, **changes)

    def _infer_length(self) -> int:
        for array in (*self.flat_actions.values(), self.rewards, self.terminated, self.truncated):
            if isinstance(array, np.ndarray | list) and np.ndim(array) > 0:
                return len(array)
        if not self.observations:
            return 0
        rows = len(next(iter(self.observations.values())))
        return rows if self.final_observation == "missing" else max(rows - 1, 0)

    def _check_lengths(self, length: int) -> FinalObservation:
        where = self.source_key or self.episode_id
        lengths = {len(array) for array in self.observations.values()}
        final = self.final_observation
        if final is None:
            final = "missing" if lengths == {length} else "present"
        expected = length + (final != "missing")
        if not self.observations or lengths != {expected}:
            came = ", ".join(f"{n} {len(a)}" for n, a in self.observations.items()) or "none"
            raise EpisodeError(
                f"Expected {expected} rows of every observation for {length} steps with a "
                f"{final} final observation, came {came}.",
                code="length_mismatch",
                where=where,
            )
        steps: dict[str, np.ndarray] = {**self.flat_actions}
        if self.rewards is not None:
            steps["rewards"] = self.rewards
        for name, array in steps.items():
            if len(array) != length or (name == "rewards" and array.ndim != 1):
                raise EpisodeError(
                    f"Expected {name} with {length} rows, came shape {array.shape}.",
                    code="length_mismatch",
                    where=where,
                )
        for name, extra in self.extras.items():
            if len(extra) not in (length, length + 1):
                raise EpisodeError(
                    f"Expected the extra {name!r} with {length} or {length + 1} rows, "
                    f"came shape {extra.shape}.",
                    code="length_mismatch",
                    where=where,
                )
        return final


def has_transition(terminated: bool, final_observation: str) -> bool:
    """True if an episode's *last* step is a transition; every earlier step always is.

    A terminated last step always is one: its discount is 0 and nothing reads its next
    observation. Any other needs the true final observation; one that the source dropped or
    copied makes none.
    """
    return terminated or final_observation == "present"


def _named(root: str, value: object) -> dict[str, Rows]:
    """Full names for a field group; names that already start with the root are kept."""
    if (
        isinstance(value, Mapping)
        and value
        and all(str(name) == root or str(name).startswith(f"{root}/") for name in value)
    ):
        return {str(name): _rows(array, str(name)) for name, array in value.items()}
    return {name: _rows(array, name) for name, array in flatten(root, value).items()}


def _rows(value: object, name: str) -> Rows:
    """Rows of a kind we hold: numbers, texts, or what is encoded already."""
    if isinstance(value, Packed | Video):
        check(value, name)
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind == "U" and value.ndim == 1:
        return Packed.texts(value.tolist())
    return _numbers(value, name)


def _numbers(value: object, name: str) -> np.ndarray:
    """An array of a dtype we hold, in this machine's byte order, with a time axis."""
    try:
        array = np.empty(0, object) if isinstance(value, Packed | Video) else np.asarray(value)
    except ValueError:  # rows of different lengths
        array = np.empty(0, object)
    if array.dtype.kind not in RAW_KINDS or array.dtype.itemsize > 8:
        came = "encoded rows" if isinstance(value, Packed | Video) else f"{array.dtype}"
        raise EpisodeError(
            f"Expected {name} as an array of bool, integers or floats of at most 8 bytes, "
            f"came {came}.",
            code="bad_dtype",
            where=name,
        )
    if array.ndim == 0:
        raise EpisodeError(
            f"Expected {name} as an array with a time axis, came a scalar.",
            code="length_mismatch",
            where=name,
        )
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _fact(value: object, name: str, kinds: tuple[type, ...]) -> Any:
    """A fact as a plain Python value that is stored and read back as it is."""
    if isinstance(value, np.generic):
        value = value.item()
    if kinds == (bool,) and value in (0, 1):
        value = bool(value)
    if kinds == (float,) and isinstance(value, int):
        value = float(value)
    fits = isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
    if value is not None and not fits:
        said = " or ".join(kind.__name__ for kind in kinds)
        raise EpisodeError(
            f"Expected {name} as {said}, came {value!r}.", code="bad_dtype", where=name
        )
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise EpisodeError(
                f"Expected {name} as Unicode text, came {value!r}.", code="bad_dtype", where=name
            ) from None
    return value


def _flags(value: object, length: int, name: str, where: str) -> np.ndarray:
    if np.ndim(value) == 0:  # type: ignore[arg-type]
        flags = np.zeros(length, bool)
        if length:
            flags[-1] = bool(value)
        return flags
    flags = np.asarray(value)
    if flags.shape != (length,) or flags.dtype.kind not in "biuf":
        raise EpisodeError(
            f"Expected {name} as {length} booleans, came shape {flags.shape} of {flags.dtype}.",
            code="length_mismatch",
            where=where,
        )
    if flags.dtype.kind != "b" and not np.isin(flags, (0, 1)).all():
        raise EpisodeError(
            f"Expected {name} of 0 and 1 only, came other values.", code="bad_dtype", where=where
        )
    return flags.astype(bool)
