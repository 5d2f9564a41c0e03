"""A Gymnasium environment whose episodes are pushed to a service as they end.

Observations are T+1, the one after the last step included; an episode that is left before it ends
(`reset`, `close`) is pushed as truncated, unless it has no step.
"""

from __future__ import annotations

import copy
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np

from pipeline.service.client.client import RolloutClient
from pipeline.service.client.outbox import Offset
from pipeline.service.client.steps import stacked
from schemas.episode import Episode


class PushEpisodes(gym.Wrapper[Any, Any, Any, Any]):  # type: ignore[misc]
    """Records an environment, and pushes each episode when it is over."""

    def __init__(
        self,
        env: gym.Env[Any, Any],
        client: RolloutClient,
        *,
        task: str | None = None,
        policy: str | None = None,
        policy_version: str | Callable[[], str | None] | None = None,
        success_key: str | None = "is_success",
    ) -> None:
        """Wraps an environment.

        Args:
            env: one environment, not a vector of them.
            client: where episodes go; it stays open when the environment is closed.
            task: of its episodes; by default the environment's id.
            policy: who acts.
            policy_version: of the policy that acts; a function is asked when an episode begins.
            success_key: of the last step's `info`, which says whether the episode was one.
        """
        super().__init__(env)
        self._client = client
        self._task = task or (env.spec.id if env.spec is not None else None)
        self._policy = policy
        self._policy_version = policy_version
        self._success_key = success_key
        self._success: bool | None = None
        self._seed: int | None = None
        self._version: str | None = None
        self._forget()
        self.pushed: Future[Offset] | None = None
        """Of the newest episode that ended: tells its durable offset, or why it was refused."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begins an episode; the one before is pushed if it has steps."""
        self._end(is_truncated=True)
        observation, info = self.env.reset(seed=seed, options=options)
        version = self._policy_version
        self._version = version() if callable(version) else version
        self._seed = seed
        self._observations.append(copy.deepcopy(observation))
        return observation, info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Steps, records, and pushes the episode if it is over."""
        asked = copy.deepcopy(action)  # environments clip what they are given, or use it again
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._actions.append(asked)
        self._rewards.append(float(reward))
        self._observations.append(copy.deepcopy(observation))
        if self._success_key is not None and self._success_key in info:
            self._success = bool(info[self._success_key])
        if terminated or truncated:
            self._end(is_terminated=bool(terminated), is_truncated=bool(truncated))
        return observation, reward, terminated, truncated, info

    def close(self) -> None:
        """Pushes what was begun, and closes the environment."""
        self._end(is_truncated=True)
        self.env.close()

    # -- within --------------------------------------------------------------------------------

    def _forget(self) -> None:
        self._observations: list[Any] = []
        self._actions: list[Any] = []
        self._rewards: list[float] = []
        self._success = self._seed = self._version = None
        self._episode_id = f"{time.time_ns():020d}-{uuid.uuid4().hex[:12]}"

    def _end(self, *, is_terminated: bool = False, is_truncated: bool = False) -> None:
        if not self._actions:
            self._forget()  # the first observation, too: another reset may follow
            return
        episode = Episode(
            episode_id=self._episode_id,
            observations=stacked(self._observations),
            actions=stacked(self._actions),
            rewards=np.asarray(self._rewards, np.float64),
            terminated=is_terminated,  # type: ignore[arg-type]
            truncated=is_truncated,  # type: ignore[arg-type]
            task=self._task,
            kind="rollout",
            policy=self._policy,
            policy_version=self._version,
            seed=self._seed,
            success=self._success,
        )
        self._forget()
        self.pushed = self._client.push_async(episode)
