"""Episodes that grow step by step: rows go out as they fill a put, before the episode ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from pipeline.service.client.outbox import Offset
from schemas.episode import Episode
from schemas.errors import EpisodeError, UsageError, suggest
from schemas.rollouts import EpisodeFacts, check_episode_id
from schemas.rows import RowLayout
from schemas.sending import batch_of
from schemas.spec import RAW_KINDS


class Send(Protocol):
    """Takes rows of an episode; with `facts_of`, the last ones."""

    def __call__(self, rows: pa.RecordBatch, facts_of: Episode | None) -> None:
        """Sends them."""
        ...


class EpisodeStream:
    """One episode being recorded; made by `RolloutClient.episode`.

    Without `end` an episode is never part of a version: leaving the context drops it.
    """

    def __init__(
        self,
        facts: Mapping[str, Any],
        put_bytes: int,
        send: Send,
        drop: Callable[[], None],
        future: Future[Offset],
    ) -> None:
        _check_facts({name for name in facts if name != "episode_id"})
        self._facts = dict(facts)
        self._put_bytes = put_bytes
        self._send = send
        self._drop = drop
        self._future = future
        self._layout: RowLayout | None = None
        self._steps: list[dict[str, Any]] = []
        self._is_over = False

    def __enter__(self) -> EpisodeStream:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        if not self._is_over:
            self._is_over = True
            self._drop()

    def add(
        self,
        observation: Any,
        action: Any = None,
        reward: float | None = None,
        **extras: Any,
    ) -> None:
        """Adds one step: what was seen, what was done then, what came of it.

        Args:
            observation: array, or a mapping or tuple of arrays, without a leading axis; of the
                same shapes and dtypes in every step. What is added is copied, so that buffers may
                be used again.
            action: likewise; None in every step if unknown.
            reward: a number, kept as float64; None in every step if unknown.
            extras: further values of this step, by name.

        Raises:
            EpisodeError: if it is not like the steps before.
            BusyError: if the client's buffer is full.
        """
        if self._is_over:
            raise UsageError("Expected an episode that goes on, this one has ended.")
        said = {"observation": observation, "action": action, "reward": reward, "extras": extras}
        step = {name: _kept(value) for name, value in said.items()}
        if self._steps and self._filled() >= self._put_bytes:
            self._flush(observation)
        self._steps.append(step)

    def end(
        self,
        observation: Any = None,
        *,
        terminated: bool = False,
        truncated: bool = False,
        **facts: Any,
    ) -> Future[Offset]:
        """Ends the episode.

        Args:
            observation: the final one; None if it is not known.
            terminated: the task ended it.
            truncated: it was cut off.
            facts: `success`, `columns`, `labels` and others that are known only now.

        Returns:
            What tells the durable offset.

        Raises:
            UsageError: if there was no step, or a fact is none; then it goes on.
            EpisodeError: if the last steps are not like those before.
            BusyError: if the client's buffer is full.
        """
        if self._is_over or not self._steps:
            raise UsageError("Expected an episode with steps that goes on, came none; add steps.")
        _check_facts(facts)
        self._is_over = True
        try:
            last = self._chunk(observation, terminated, truncated, facts)
            self._send(self._rows(last, len(self._steps) + 1), last)
        except BaseException:
            self._drop()
            raise
        return self._future

    # -- within --------------------------------------------------------------------------------

    def _filled(self) -> int:
        width = self._layout.plain_bytes if self._layout else _bytes_of(self._steps[0])
        return max(width, 1) * len(self._steps)

    def _flush(self, following: Any) -> None:
        """Sends the steps so far; the observation after them is that of the next step."""
        chunk = self._chunk(following, False, False, {})
        self._send(self._rows(chunk, len(self._steps)), None)
        self._steps = []

    def _chunk(
        self, following: Any, terminated: bool, truncated: bool, facts: Mapping[str, Any]
    ) -> Episode:
        steps = self._steps
        seen = [step["observation"] for step in steps]
        names = steps[0]["extras"].keys()
        if any(step["extras"].keys() != names for step in steps):
            raise EpisodeError(
                "Expected the same extras in every step, came others.", code="length_mismatch"
            )
        return Episode(
            observations=stacked(seen if following is None else [*seen, following]),
            actions=stacked([step["action"] for step in steps]),
            rewards=_numbers(stacked([step["reward"] for step in steps])),
            terminated=terminated,  # type: ignore[arg-type]
            truncated=truncated,  # type: ignore[arg-type]
            extras={name: stacked([s["extras"][name] for s in steps]) for name in names},
            **{**self._facts, **facts},
        )

    def _rows(self, chunk: Episode, count: int) -> pa.RecordBatch:
        batch, layout = batch_of(chunk)
        if self._layout is not None and layout != self._layout:
            raise EpisodeError(
                f"Expected steps as the episode began with ({self._layout.spec}), came "
                f"{layout.spec}; keep shapes and dtypes the same.",
                code="bad_dtype",
                where=chunk.episode_id,
            )
        self._layout = layout
        return batch.slice(0, count)


def stacked(values: list[Any]) -> Any:
    """Returns values of steps as arrays with a leading axis, nested as they are; None of Nones.

    Raises:
        EpisodeError: if they are not alike.
    """
    first = values[0]
    if first is None:
        if any(value is not None for value in values):
            raise EpisodeError("Expected a value in every step, came None.", code="length_mismatch")
        return None
    if isinstance(first, Mapping):
        return {key: stacked([value[key] for value in values]) for key in first}
    if isinstance(first, tuple):
        return tuple(stacked([value[at] for value in values]) for at in range(len(first)))
    arrays = [np.asarray(value) for value in values]
    if any(one.shape != arrays[0].shape for one in arrays):
        raise EpisodeError(
            f"Expected values of shape {arrays[0].shape} in every step, came others.",
            code="length_mismatch",
        )
    return np.stack(arrays)


def check_pushed(episode: object) -> None:
    """Makes sure that something is an episode that may be sent.

    Raises:
        UsageError: if it is none.
        PutError: if its id may not be sent.
    """
    if not isinstance(episode, Episode):
        raise UsageError(
            f"Expected a penstock.Episode to push, came {type(episode).__name__}; make one of it."
        )
    check_episode_id(episode.episode_id)


def _check_facts(names: Iterable[str]) -> None:
    known = EpisodeFacts.model_fields
    for name in names:
        if name not in known:
            raise UsageError(
                f"Expected facts of an episode, came {name!r}: {suggest(name, known)}; facts of "
                f"your own go into columns={{...}}."
            )


def _numbers(rewards: np.ndarray | None) -> np.ndarray | None:
    """Returns rewards in the one dtype that they have, whatever numbers were given."""
    is_number = rewards is not None and rewards.dtype.kind in RAW_KINDS
    return rewards.astype(np.float64) if rewards is not None and is_number else rewards


def _kept(value: Any) -> Any:
    """Returns a value as arrays that stay as they are when its own are written to."""
    if isinstance(value, Mapping):
        return {key: _kept(one) for key, one in value.items()}
    if isinstance(value, tuple):
        return tuple(map(_kept, value))
    return None if value is None else np.array(value)


def _bytes_of(value: Any) -> int:
    if isinstance(value, Mapping):
        return sum(map(_bytes_of, value.values()))
    if isinstance(value, tuple):
        return sum(map(_bytes_of, value))
    return 0 if value is None else int(np.asarray(value).nbytes)
