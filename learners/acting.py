"""An actor: plays episodes by the newest policy of a run, and pushes them to a service.

Before each round of episodes it asks for a newer policy; what it plays is stamped with the policy's
name and `run:step`. It goes on through restarts of the service, which keeps what was acknowledged,
and waits where the service tells it to. Told to stop, it drops the episodes under way, waits until
those that ended are acknowledged, and ends.
"""

from __future__ import annotations

import datetime as dt
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as OutOfTime
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from pydantic import Field

from learners.base import Learner
from learners.checkpoint import last_checkpoint, load_checkpoint, restore
from learners.layout import laid_out
from learners.policy import decode_policy
from learners.rollout import Actor, Collection, Exploration, Facts, collect
from learners.run import threads
from learners.scripted import ENVIRONMENT, PoleBalancer
from learners.settings import Settings
from pipeline.service.client.client import RolloutClient
from pipeline.service.client.control import ControlClient
from pipeline.service.client.settings import ClientSettings
from schemas.episode import Episode
from schemas.errors import ConfigError, NotFoundError, OutOfTimeError, TransientError
from schemas.spec import DatasetSpec

logger = logging.getLogger(__name__)
SCRIPTED = "scripted"
SEED_STEP = 1_000_000
"""Seeds of an actor's episodes begin so far from those of the next one."""
AHEAD = 1
"""Rounds of episodes that may wait for their acknowledgement while the next one is played."""
_LOOK_SECONDS = 0.2
T = TypeVar("T")


class ActingConfig(Settings):
    """One actor."""

    environment: str
    """A registered Gymnasium name."""
    policy: str
    """Name of a run that publishes policies, folder of a run, or `scripted`."""
    service: str
    """Address of either port of a service."""
    episodes: int | None = Field(default=None, gt=0)
    """To push; None and no `steps` goes on until it is told to stop."""
    steps: int | None = Field(default=None, gt=0)
    """To push; the last episode is played to its end."""
    seed: int | None = Field(default=None, ge=0)
    """Of starts and exploration, unlike that of any other actor; by default a random one."""
    exploration: Literal["none", "gaussian", "policy"] = "policy"
    """Noise on actions: none, of one scale, or the policy's own spread."""
    noise: float = Field(default=1.0, ge=0)
    """Standard deviation in the environment's units, or the factor on the policy's spread."""
    slots: int = Field(default=4, gt=0)
    """Copies of the environment that move together; a round is as many episodes."""
    wait_seconds: float = Field(default=300.0, gt=0)
    """How long to wait for the first policy, and for each acknowledgement."""
    producer: str | None = None
    """Name that it pushes under; by default one of this machine and chance."""


@dataclass(frozen=True)
class ActingResult:
    """What an actor did."""

    episodes: int
    """Pushed and acknowledged."""
    steps: int
    mean_return: float | None
    policy_version: str | None
    """That it acted by last."""


class StoppedError(Exception):
    """Somebody told the actor to stop, in the middle of an episode."""


@dataclass(frozen=True)
class Policy:
    """What acts, and what its episodes say of it."""

    actor: Actor
    name: str
    version: str | None
    spec: DatasetSpec | None = None
    """Of the data that it learned from, which its rollouts follow."""


class Policies(Protocol):
    """Where an actor's policies come from."""

    def newest(self) -> Policy | None:
        """Returns a policy that is newer than the last one; None if there is none."""
        ...


class Fixed:
    """One policy for ever."""

    def __init__(self, policy: Policy) -> None:
        self._policy: Policy | None = policy

    def newest(self) -> Policy | None:
        """See `Policies.newest`."""
        found, self._policy = self._policy, None
        return found


class Published:
    """The policies that a run publishes through a service.

    Args:
        control: the service's.
        run: its name.
    """

    def __init__(self, control: ControlClient, run: str) -> None:
        self._control, self._run = control, run
        self._step = -1

    def newest(self) -> Policy | None:
        """See `Policies.newest`.

        Raises:
            TransientError: if the service is away.
            NotFoundError: if the run has published none yet.
            UntrustedError: if what it published is no policy.
        """
        found = self._control.policy(self._run, after=self._step)
        if found is None:
            return None
        learner, step = decode_policy(found.data, self._run)
        self._step = found.step
        return _policy(learner, f"{self._run}:{step}")


class Stoppable:
    """An actor that ends the episodes under way when it is told to."""

    def __init__(self, actor: Any, stop: threading.Event) -> None:
        self._actor, self._stop = actor, stop
        if hasattr(actor, "explore"):
            self.explore = self._explore
        if hasattr(actor, "remembering"):
            self.remembering = self._remembering

    def act(self, observations: Any) -> Any:
        """See `Actor.act`."""
        self._check()
        return self._actor.act(observations)

    def _explore(self, observations: Any, noise: Any) -> Any:
        self._check()
        return self._actor.explore(observations, noise)

    def _remembering(self, copies: int) -> Any:
        memory = self._actor.remembering(copies)
        made: Any = Stoppable(memory, self._stop)
        made.begin, made.after = memory.begin, memory.after
        return made

    def _check(self) -> None:
        if self._stop.is_set():
            raise StoppedError


def act(
    config: ActingConfig,
    token: str | None = None,
    stop: threading.Event | None = None,
    report: Callable[[int, int], None] = lambda episodes, steps: None,
) -> ActingResult:
    """Plays and pushes until there is enough, or until it is told to stop.

    Args:
        config: what and where.
        token: of the service, with the scope `push`; by default the environment's.
        stop: tells it to stop.
        report: told the episodes and steps that are acknowledged.

    Raises:
        ConfigError: if both `episodes` and `steps` are given, or the policy does not explore so.
        UnknownNameError: if the environment is not registered.
        NotFoundError: if the run never published a policy.
        OutOfTimeError: if the service is away for longer than `wait_seconds`.
    """
    if config.episodes is not None and config.steps is not None:
        raise ConfigError("Expected a number of episodes or a number of steps, came both.")
    stop = stop or threading.Event()
    control = ControlClient(config.service, token)
    with threads(1):
        policies = policies_for(config, control)
        policy = _first(policies, config, stop)
        if policy is None:
            return ActingResult(0, 0, None, None)
        data = patiently(lambda: control.addresses().data, config.wait_seconds, stop)
        if data is None:
            return ActingResult(0, 0, None, policy.version)
        settings = ClientSettings(producer=config.producer, retry_seconds=config.wait_seconds)
        with RolloutClient(data, token, settings) as client:
            return _Acting(config, client, stop, report).run(policies, policy)


def _policy(learner: Learner, version: str) -> Policy:
    return Policy(learner, learner.name, version, learner.normaliser.spec)


def policies_for(config: ActingConfig, control: ControlClient) -> Policies:
    """Returns where an actor's policies come from.

    Raises:
        ConfigError: if there is no scripted controller for the environment.
    """
    if config.policy == SCRIPTED:
        if config.environment != ENVIRONMENT:
            raise ConfigError(
                f"Expected {ENVIRONMENT}, which there is a scripted controller for, came "
                f"{config.environment!r}; name a run."
            )
        return Fixed(Policy(PoleBalancer(), SCRIPTED, None))
    folder = Path(config.policy)
    if folder.is_file() or (folder.is_dir() and last_checkpoint(folder) is not None):
        checkpoint = load_checkpoint(folder)
        run = str(checkpoint.document.get("run", "unnamed"))[:32]
        return Fixed(_policy(restore(checkpoint), f"{run}:{checkpoint.step}"))
    return Published(control, config.policy)


class _Acting:
    """What is known while an actor plays."""

    def __init__(
        self,
        config: ActingConfig,
        client: RolloutClient,
        stop: threading.Event,
        report: Callable[[int, int], None],
    ) -> None:
        self._config, self._client, self._stop, self._report = config, client, stop, report
        seed = secrets.randbelow(1 << 20) if config.seed is None else config.seed
        self._seed = (seed + 3) * SEED_STEP
        self._waiting: deque[tuple[Future[Any], Episode]] = deque()
        self._begun = 0
        self._pushed = self._played_steps = 0
        self._steps = 0
        self._returns: list[float] = []

    def run(self, policies: Policies, policy: Policy) -> ActingResult:
        """Plays round after round."""
        while not self._stop.is_set() and self._wants_more():
            try:
                policy = policies.newest() or policy
            except TransientError as error:  # what is known goes on until the service is back
                logger.info("no newer policy: %s", error)
            try:
                for episode in self._round(policy):
                    self._push(episode)
            except StoppedError:
                break
        while self._waiting:
            self._settle()
        returns = self._returns
        mean = sum(returns) / len(returns) if returns else None
        return ActingResult(self._pushed, self._steps, mean, policy.version)

    def _wants_more(self) -> bool:
        config = self._config
        if config.episodes is not None:
            return self._begun < config.episodes
        return config.steps is None or self._played_steps < config.steps

    def _round(self, policy: Policy) -> Iterator[Episode]:
        config = self._config
        count = config.slots
        if config.episodes is not None:
            count = min(count, config.episodes - self._begun)
        plan = Collection(
            environment=config.environment,
            episodes=count,
            seed=self._seed,
            first=self._begun,
            exploration=Exploration(config.exploration, config.noise),
            slots=config.slots,
        )
        namespace = f"{config.policy.rpartition('/')[2]}/{self._client.producer}"
        facts = Facts(namespace, policy=policy.name, policy_version=policy.version)
        self._begun += count
        for episode in collect(Stoppable(policy.actor, self._stop), plan, facts):
            yield episode if policy.spec is None else laid_out(episode, policy.spec)

    def _push(self, episode: Episode) -> None:
        episode = episode.replace(collected_at=dt.datetime.now(dt.UTC))
        self._played_steps += episode.length
        timeout = self._config.wait_seconds
        self._waiting.append((self._client.push_async(episode, timeout), episode))
        while len(self._waiting) > AHEAD * self._config.slots or (
            self._waiting and self._waiting[0][0].done()
        ):
            self._settle()

    def _settle(self) -> None:
        """Waits for the oldest acknowledgement."""
        future, episode = self._waiting.popleft()
        try:
            future.result(self._config.wait_seconds)
        except OutOfTime:
            raise OutOfTimeError(
                f"Expected the episode {episode.episode_id!r} to be acknowledged within "
                f"{self._config.wait_seconds:g} s, it was not; look whether the service runs."
            ) from None
        self._pushed += 1
        self._steps += episode.length
        if episode.episode_return is not None:
            self._returns.append(float(episode.episode_return))
        self._report(self._pushed, self._steps)


def _first(policies: Policies, config: ActingConfig, stop: threading.Event) -> Policy | None:
    """Waits for the first policy; None if told to stop."""

    def ask() -> Policy | None:
        try:
            return policies.newest()
        except NotFoundError as error:
            raise TransientError(error.message, where=error.where) from None

    return patiently(ask, config.wait_seconds, stop)


def patiently(ask: Callable[[], T], seconds: float, stop: threading.Event) -> T | None:
    """Asks until there is an answer; None if told to stop.

    Raises:
        OutOfTimeError: if there is none in time, with what stood in the way.
    """
    until = time.monotonic() + seconds
    while not stop.is_set():
        try:
            return ask()
        except TransientError as error:
            if time.monotonic() >= until:
                raise OutOfTimeError(
                    f"{error.message.rstrip('.')}; it stayed so for {seconds:g} s.",
                    where=error.where,
                ) from None
            stop.wait(_LOOK_SECONDS)
    return None
