"""A policy acting in an environment, recorded as episodes with T+1 observations.

Several copies of the environment move in lockstep, so that the policy answers all of them in one
call. Every episode has its own seed, for its start and its exploration alike; the number of copies
is fixed by the arguments, so a repeated call gives the same episodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from learners.environments import DiscreteActions, actions_of, make_environment
from schemas.episode import Episode, Kind
from schemas.errors import ConfigError
from schemas.nesting import flatten, nest

SLOTS = 8
"""Copies of the environment that move together."""


class Actor(Protocol):
    """What acts: a learner, or a scripted controller."""

    def act(self, observations: Any) -> Any:
        """Maps observations (B, ...), nested like the space, to actions (B, A)."""
        ...


class Remembering(Protocol):
    """What acts by what came before: an actor's `remembering(copies)` makes one, if it has that."""

    def act(self, observations: Any) -> Any:
        """As `Actor`, one row for each copy of the environment."""
        ...

    def begin(self, place: int) -> None:
        """Tells that an episode begins in one copy."""
        ...

    def after(self, place: int, action: np.ndarray, reward: float) -> None:
        """Tells what was done there at the observation shown last, (A,), and earned."""
        ...


@dataclass(frozen=True)
class Exploration:
    """Gaussian noise on top of the actor's deterministic actions.

    Discrete ones are the best (`none`), or drawn by the policy's probabilities (`policy`).
    """

    kind: Literal["none", "gaussian", "policy"] = "none"
    """`gaussian` adds noise of one scale to all dims; `policy` samples from the learner's own
    spread, times the scale."""
    scale: float = 1.0
    """Standard deviation in the environment's units, or the factor on the learner's spread."""

    def actions(self, actor: Any, observations: Any, noise: np.ndarray) -> np.ndarray:
        """Returns what an actor does with standard normal numbers.

        Args:
            actor: what acts.
            observations: (B, ...).
            noise: (B, A); of discrete actions a number for each.

        Returns:
            (B, A) float64; of discrete actions (B,).
        """
        if self.kind != "policy":
            scale = 0.0 if self.kind == "none" else self.scale
            acted = np.asarray(actor.act(observations), np.float64)
            return acted if acted.ndim == 1 else acted + scale * noise
        if not hasattr(actor, "explore"):
            raise ConfigError("Expected an actor with a spread of its own for `policy` noise.")
        return np.asarray(actor.explore(observations, self.scale * noise), np.float64)


@dataclass(frozen=True)
class Collection:
    """How many episodes of what."""

    environment: str
    """A registered Gymnasium name."""
    episodes: int | None = None
    """Exactly so many; or else by steps:"""
    steps: int | None = None
    """Whole episodes are begun until those begun hold at least so many steps."""
    seed: int = 0
    """Episode k starts from seed `seed + k`."""
    first: int = 0
    """Number k of the first episode."""
    exploration: Exploration = Exploration()
    slots: int = SLOTS
    """Environments in lockstep."""
    rows: int | None = None
    """Observations that the actor is shown at once, the last one repeated where slots are too few;
    None shows all slots' at once."""


@dataclass(frozen=True)
class Facts:
    """What each collected episode says about itself."""

    namespace: str
    """Episode k is called `<namespace>/<k>`."""
    kind: Kind = "rollout"
    policy: str | None = None
    policy_version: str | None = None
    columns: dict[str, Any] = field(default_factory=dict)


def collect(actor: Actor, plan: Collection, facts: Facts) -> Iterator[Episode]:
    """Yields whole episodes in the order of their numbers.

    Observations keep the environment's dtypes; actions are float32, cut to the action space, as
    they were acted out, and discrete ones integers of its dtype. No episode states when it was
    collected: content depends on arguments alone, so that a repeated call yields episodes a store
    already knows.

    Raises:
        UnknownNameError: if the environment is not registered.
        ConfigError: if neither or both of `episodes` and `steps` are given, or exploration is not
            of the kind of actions.
        SpecMismatchError: if the actor does what the environment has no action for.
    """
    if (plan.episodes is None) == (plan.steps is None):
        raise ConfigError("Expected a number of episodes or a number of steps, not both.")
    count = plan.slots if plan.episodes is None else min(plan.slots, plan.episodes)
    with ExitStack() as opened:
        environments = [
            opened.enter_context(closing(make_environment(plan.environment))) for _ in range(count)
        ]
        finished: dict[int, Episode] = {}
        due = plan.first
        for recording in _play(actor, environments, plan):
            finished[recording.number] = recording.episode(plan, facts)
            while due in finished:
                yield finished.pop(due)
                due += 1


class _Recording:
    """One episode under way in one slot."""

    def __init__(self, environment: Any, number: int, plan: Collection) -> None:
        self.environment = environment
        self.number = number
        self.seed = plan.seed + number
        self.noise = np.random.default_rng((self.seed, 1))
        self.latest, _ = environment.reset(seed=self.seed)
        self.observations = [_copied(self.latest)]
        self.actions: list[np.ndarray] = []
        self.rewards: list[float] = []
        self.terminated = self.truncated = False
        self.success: bool | None = None

    @property
    def is_over(self) -> bool:
        return self.terminated or self.truncated

    def drawn(self, dims: int) -> np.ndarray:
        """Returns the next standard normal numbers of the episode; 0 after its end."""
        return np.zeros(dims) if self.is_over else self.noise.standard_normal(dims)

    def step(self, action: np.ndarray) -> bool:
        """Acts once; True if that ended the episode."""
        self.latest, reward, terminated, truncated, info = self.environment.step(action)
        self.observations.append(_copied(self.latest))
        self.actions.append(action)
        self.rewards.append(float(reward))
        self.terminated, self.truncated = bool(terminated), bool(truncated)
        said = info.get("success", info.get("is_success"))
        if said is not None:
            self.success = bool(self.success) or bool(said)
        return self.is_over

    def episode(self, plan: Collection, facts: Facts) -> Episode:
        names = self.observations[0]
        return Episode(
            episode_id=f"{facts.namespace}/{self.number}",
            observations={n: np.stack([row[n] for row in self.observations]) for n in names},
            actions=np.stack(self.actions),
            rewards=np.array(self.rewards, np.float64),
            terminated=_only_last(len(self.rewards), self.terminated),
            truncated=_only_last(len(self.rewards), self.truncated),
            task=plan.environment,
            kind=facts.kind,
            policy=facts.policy,
            policy_version=facts.policy_version,
            seed=self.seed,
            success=self.success,
            columns=facts.columns,
            source=facts.namespace,
        )


def _play(actor: Actor, environments: list[Any], plan: Collection) -> Iterator[_Recording]:
    """Moves all slots at once; a slot without work stands still, so that shapes never change."""
    actions = actions_of(environments[0])
    if isinstance(actions, DiscreteActions) and plan.exploration.kind == "gaussian":
        raise ConfigError(
            f"Expected exploration `none` or `policy` among {actions.space}, came `gaussian`, "
            f"which is noise on numbers.",
            where="exploration",
        )
    slots = [_Recording(e, plan.first + k, plan) for k, e in enumerate(environments)]
    asked = _Asked(actor, len(slots), plan)
    begun, past = len(slots), 0
    while not all(slot.is_over for slot in slots):
        noise = np.stack([slot.drawn(actions.dims) for slot in slots])
        acted = asked.actions([slot.latest for slot in slots], noise)
        for place, slot in enumerate(slots):
            if slot.is_over:
                continue
            taken = actions.taken(acted[place])
            is_over = slot.step(taken)
            asked.after(place, taken.reshape(-1), slot.rewards[-1])
            if not is_over:
                continue
            yield slot
            past += len(slot.rewards)
            if _wants_more(plan, slots, past, begun):
                slots[place] = _Recording(slot.environment, plan.first + begun, plan)
                asked.begin(place)
                begun += 1


class _Asked:
    """An actor that answers all slots, in parts of a fixed number of rows."""

    def __init__(self, actor: Actor, slots: int, plan: Collection) -> None:
        self._rows = plan.rows or slots
        self._exploration = plan.exploration
        parts = -(-slots // self._rows)
        self._memories: list[Remembering] | None = None
        self._actors: list[Any] = [actor] * parts
        if hasattr(actor, "remembering"):
            self._memories = [actor.remembering(self._rows) for _ in range(parts)]
            self._actors = list(self._memories)

    def actions(self, observations: list[Any], noise: np.ndarray) -> np.ndarray:
        """Returns the actions of all slots, (B, A) float64."""
        found = []
        for part, actor in enumerate(self._actors):
            start = part * self._rows
            seen = observations[start : start + self._rows]
            drawn = noise[start : start + self._rows]
            spare = self._rows - len(seen)
            shown = _stack([*seen, *[seen[-1]] * spare])
            padded = np.concatenate([drawn, np.zeros((spare, drawn.shape[1]))])
            found.append(self._exploration.actions(actor, shown, padded)[: len(seen)])
        return np.concatenate(found)

    def after(self, place: int, action: np.ndarray, reward: float) -> None:
        """Tells an actor with a memory what was done in one slot, and earned."""
        if self._memories is not None:
            self._memories[place // self._rows].after(place % self._rows, action, reward)

    def begin(self, place: int) -> None:
        """Tells an actor with a memory that an episode begins in one slot."""
        if self._memories is not None:
            self._memories[place // self._rows].begin(place % self._rows)


def _wants_more(plan: Collection, slots: list[_Recording], past: int, begun: int) -> bool:
    if plan.steps is None:
        return begun < (plan.episodes or 0)
    running = sum(len(slot.rewards) for slot in slots if not slot.is_over)
    return past + running < plan.steps


def _copied(observation: Any) -> dict[str, np.ndarray]:
    # Some environments hand out one buffer again and again.
    return {name: np.array(a) for name, a in flatten("observations", observation).items()}


def _only_last(length: int, flag: bool) -> np.ndarray:
    flags = np.zeros(length, bool)
    flags[-1] = flag
    return flags


def _stack(observations: list[Any]) -> Any:
    flat = [flatten("observations", one) for one in observations]
    return nest("observations", {name: np.stack([one[name] for one in flat]) for name in flat[0]})
