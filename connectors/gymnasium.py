"""Collects episodes live from a Gymnasium environment, with any policy.

Every episode is reset with a seed of its own (`seed`, `seed + 1`, ...) that is recorded, and the
policy draws from a generator seeded with the same number, so any single episode can be made again.
All T+1 observations are kept, the final one included, in the dtype the environment gives them.

As a source, `gymnasium:<environment>?episodes=10&seed=0` collects with uniformly random actions:
the only policy that a name can say, and the reference that normalised scores need.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import parse_qsl

import gymnasium
import numpy as np

from connectors.base import Found, Listing, Unit
from connectors.units import plan_units
from schemas.episode import Episode, Kind
from schemas.errors import UnknownNameError, UsageError, missing_extra, suggest
from schemas.nesting import flatten

EnvironmentFactory = Callable[[], Any]
"""Returns a new `gymnasium.Env`."""


class Policy(Protocol):
    """What chooses actions."""

    def __call__(self, observation: Any, rng: np.random.Generator) -> Any:
        """Returns the action for one observation, both as the environment's spaces have them."""
        ...


@dataclass(frozen=True)
class Origin:
    """What the collected episodes say of where they came from."""

    kind: Kind = "rollout"
    policy: str | None = None
    policy_version: str | None = None
    task: str | None = None
    """By default the environment's id."""
    run: str | None = None
    """Ids are `<run>/<seed>`; by default a new random run, so that ids never meet."""


def make_environment(name: str) -> Any:
    """Makes an environment from the installed registry, and from nothing else.

    Raises:
        UnknownNameError: if no such environment is registered, naming the nearest.
        MissingExtraError: if the environment needs a package that is not installed.
    """
    known = gymnasium.registry.keys()
    # "module:Name" would import any module; an environment may be named by data.
    if name not in known:
        raise UnknownNameError(
            f"Expected a registered environment, came {name!r}; {suggest(name, known)}", where=name
        )
    try:
        return gymnasium.make(name)
    except (gymnasium.error.DependencyNotInstalled, ModuleNotFoundError) as error:
        package = getattr(error, "name", None) or "mujoco"
        raise missing_extra("sim", package) from error


def collect(
    environment: str | EnvironmentFactory,
    policy: Policy,
    episodes: int,
    *,
    seed: int = 0,
    origin: Origin | None = None,
) -> Iterator[Episode]:
    """Runs a policy and yields its episodes, one by one.

    Args:
        environment: registered name, or what makes one.
        policy: chooses actions.
        episodes: how many to collect.
        seed: of the first episode; the k-th has `seed + k`.
        origin: what the episodes say of themselves.

    Raises:
        UnknownNameError: if the environment is not registered.
    """
    env = make_environment(environment) if isinstance(environment, str) else environment()
    origin = origin or Origin()
    run = origin.run or uuid.uuid4().hex
    task = origin.task or (env.spec.id if env.spec else None)
    try:
        for number in range(seed, seed + episodes):
            arrays = _roll(env, policy, number)
            yield Episode(
                episode_id=f"{run}/{number}",
                **arrays,
                final_observation="present",
                task=task,
                kind=origin.kind,
                policy=origin.policy,
                policy_version=origin.policy_version,
                seed=number,
                fps=_rate(env),
                source=f"gymnasium:{task}",
                source_key=f"seed {number}",
            )
    finally:
        env.close()


def random_policy(space: Any) -> Policy:
    """Returns the policy that samples an action space uniformly."""

    def act(observation: Any, rng: np.random.Generator) -> Any:
        space.seed(int(rng.integers(2**31)))
        return space.sample()

    return act


_STEPS = "steps are the most that the episodes can have"


class GymnasiumSource:
    """A registered environment under random actions, as a source."""

    def guesses(self) -> tuple[str, ...]:
        """Says what may be guessed (see `connectors.base.Source`)."""
        return (_STEPS,)

    def discover(self, where: str) -> Listing:
        """Checks the environment; nothing is simulated yet (see `connectors.base.Source`)."""
        name, count, seed = _parse(where)
        env = make_environment(name)
        longest = (env.spec.max_episode_steps if env.spec else None) or 1
        env.close()
        units = tuple(
            Unit(format="gymnasium", where=where, start=start, stop=stop, steps=steps)
            for start, stop, steps in plan_units([longest] * count)
        )
        return Listing(
            format="gymnasium",
            where=where,
            identity=f"gymnasium/{name}/random",
            units=units,
            episodes=count,
            steps=longest * count,
            fingerprint=f"{name}-{count}-{seed}-gymnasium-{gymnasium.__version__}",
            metadata={"environment": name, "seed": seed, "gymnasium": gymnasium.__version__},
            guesses=self.guesses(),
        )

    def read(self, unit: Unit) -> Iterator[Found]:
        """Simulates the episodes of one unit."""
        name, _, seed = _parse(unit.where)
        space = make_environment(name).action_space
        first = seed + unit.start
        origin = Origin(policy="random", run="")
        collected = collect(
            name, random_policy(space), unit.stop - unit.start, seed=first, origin=origin
        )
        for position, episode in enumerate(collected, unit.start):
            key = f"seed_{episode.seed}"
            yield Found(key, position, key, episode.replace(episode_id=""))


def _roll(env: Any, policy: Policy, seed: int) -> dict[str, Any]:
    """Runs one episode; returns its arrays and flags, and `success` where the end states it."""
    rng = np.random.default_rng(seed)
    observation, info = env.reset(seed=seed)
    observations, actions, rewards = [_copied("observations", observation)], [], []
    terminated = truncated = False
    while not (terminated or truncated):
        action = policy(observation, rng)
        actions.append(_copied("actions", action, env.action_space))
        observation, reward, terminated, truncated, info = env.step(action)
        observations.append(_copied("observations", observation))
        rewards.append(float(reward))
    stacked = _stack(actions)
    return {
        "observations": _stack(observations),
        "actions": stacked.get("actions", stacked),
        "rewards": np.array(rewards),
        "terminated": np.bool_(terminated),
        "truncated": np.bool_(truncated),
        "success": _success(info),
    }


def _copied(root: str, value: Any, space: Any = None) -> dict[str, np.ndarray]:
    """Flat copies of one observation or action (environments may reuse their buffers)."""
    dtype = space.dtype if isinstance(space, gymnasium.spaces.Box) else None
    return {name: np.array(array, dtype) for name, array in flatten(root, value).items()}


def _stack(rows: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _success(info: Mapping[str, Any]) -> bool | None:
    for name in ("is_success", "success"):
        if name in info:
            return bool(info[name])
    return None


def _rate(env: Any) -> float | None:
    """Steps per second: the simulator's own step where it has one, else the rendering rate."""
    step = getattr(env.unwrapped, "dt", None)
    if isinstance(step, int | float) and math.isfinite(step) and step > 0:
        return 1.0 / step
    rate = env.metadata.get("render_fps")
    return float(rate) if isinstance(rate, int | float) and rate > 0 else None


def _parse(where: str) -> tuple[str, int, int]:
    """Splits `<environment>?episodes=10&seed=0`."""
    name, _, query = where.partition("?")
    options = {"episodes": "10", "seed": "0"}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key not in options or not value.isascii() or not value.isdigit():
            raise UsageError(
                f"Expected {name}?episodes=N&seed=S with whole numbers, came {key}={value!r}.",
                where=where,
            )
        options[key] = value
    return name, int(options["episodes"]), int(options["seed"])
