"""Batches without end: made when they are asked for or ahead, stopped, cut apart and resumed.

What a `Stream` and a `Mixture` have in common. Their order is a pure function of the step; here is
what turns it into batches one after the other, whoever iterates and wherever it began.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from pipeline.store.reader import Version
from pipeline.stream.adapters import iterable_dataset
from pipeline.stream.ahead import Ahead, Make
from pipeline.stream.batches import Batch, split_batches
from pipeline.stream.carry import carrier
from pipeline.stream.feed import Feed
from pipeline.stream.output import Output
from pipeline.stream.provenance import Decisions
from schemas.errors import ConfigError, UsageError
from schemas.stream import StreamConfig, shortened
from schemas.transforms import FieldStatistics

if TYPE_CHECKING:
    from pipeline.stream.datasets import StreamDataset

STATE_FORMAT = 1


class Endless(ABC):
    """Batches in an order that is a pure function of the step.

    Args:
        config: form and size of the batches.
        feeds: the versions of each source, step by step.
        decisions: of the run that decides for all ranks, if there is one.
        depth: gathers that a thread makes ahead.
    """

    def __init__(
        self, config: StreamConfig, feeds: list[Feed], decisions: Decisions | None, depth: int
    ) -> None:
        self.config = config
        self._feeds = feeds
        self._decisions = decisions
        self._carrier = carrier(config)
        self._ahead: Ahead[Any] = Ahead(depth)
        self._output = Output.of(config, [feed.at(0) for feed in feeds])
        self._step, self._stride = 0, 1
        self._ready: list[Batch] = []  # gathered batches, the next one last

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if not self._ready:
            gathered = self._ahead.take(self._step, self._gather, self._begin)
            self._ready = split_batches(self._received(gathered), self._carrier.split)[::-1]
        batch, step = self._ready.pop(), self._step
        self._step += self._stride
        return batch if self._output.is_plain else self._output(batch, step)

    def __copy__(self) -> Self:
        # By attributes: `__reduce__` is for other processes, and opens everything anew.
        made = type(self).__new__(type(self))
        made.__dict__.update(self.__dict__)
        return made

    @property
    def step(self) -> int:
        """Number of the next global batch."""
        return self._step

    @property
    @abstractmethod
    def members(self) -> list[tuple[Version, StreamConfig]]:
        """The versions that the next batch is drawn from, and how."""

    def every(self, stride: int = 1, first: int = 0) -> Self:
        """Returns what yields every so many of the next batches, apart from this one.

        Args:
            stride: from one batch to the one that is yielded next.
            first: how many are left out before.

        Raises:
            UsageError: where batches are drawn by priorities, which are told of each batch, and for
                numbers that are too small.
        """
        if any(config.sampler == "prioritised" for config in self._sources()):
            raise UsageError(
                "Expected samplers whose order is known ahead, came 'prioritised'; iterate the "
                "stream itself."
            )
        if stride < 1 or first < 0:
            raise UsageError(
                f"Expected a stride of at least 1 and nothing or more left out, came {stride} and "
                f"{first}."
            )
        made = self._apart(self._ahead.depth)
        made._step, made._stride = self._step + first * self._stride, self._stride * stride
        return made

    def as_iterable_dataset(self, steps: int | None = None) -> StreamDataset:
        """Returns the batches from here on as a dataset for `DataLoader(..., batch_size=None)`.

        Args:
            steps: batches of an iteration; None goes on without end.

        Raises:
            UsageError: where batches are drawn by priorities, which are told of each batch.
            MissingExtraError: if torch is not installed.
        """
        return iterable_dataset(self, steps)

    def close(self) -> None:
        """Ends the thread that makes batches ahead, if there is one; `next` begins it again."""
        self._ahead.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- state ---------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Returns where this is, as plain numbers, texts and lists."""
        return {**self._position(), **self._output.state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues where a state was taken, on any number of ranks; or stays where it is.

        Raises:
            ConfigError: if the state is of another order.
            NotFoundError: if a store no longer has a version.
        """
        _check_identity(self._identity(), state)
        before = {**self._position(), **self._output.state()}
        try:
            self._output.load(state)
            self._load_position(state)
        except Exception:
            self._output.load(before)
            self._load_position(before)
            raise

    def _moved(
        self, position: Mapping[str, Any], known: Mapping[str, FieldStatistics], stride: int
    ) -> Self:
        """Returns this, where the same stood in another process."""
        self._output.know(known)
        self._load_position(position)
        self._stride = stride
        return self

    @abstractmethod
    def _identity(self) -> dict[str, Any]:
        """What a state must have in common with this."""

    @abstractmethod
    def _position(self) -> dict[str, Any]:
        """The identity, and where this is."""

    @abstractmethod
    def _load_position(self, state: Mapping[str, Any]) -> None:
        """Inverse of `_position`."""

    # -- within --------------------------------------------------------------------------------

    @abstractmethod
    def _sources(self) -> Sequence[StreamConfig]:
        """How each source is drawn from."""

    @abstractmethod
    def _gather(self, step: int) -> tuple[int, Any]:
        """Returns the batches of some steps from one on, gathered: how many, and what."""

    @abstractmethod
    def _received(self, gathered: Any) -> Mapping[str, Any]:
        """Returns (steps, rows, ...) arrays or tensors of what was gathered, by flat name."""

    def _begin(self) -> Make[Any]:
        """What gathers in a thread: a copy, as that must neither hold this one nor move it."""
        return self._apart(0)._gather

    def _apart(self, depth: int) -> Self:
        """A copy with a position of its own."""
        made = copy.copy(self)
        made._feeds = [copy.copy(feed) for feed in self._feeds]
        made._carrier, made._ahead, made._ready = carrier(self.config), Ahead(depth), []
        return made

    def _change(self) -> None:
        """Begins anew at the next batch, which is drawn from something else."""
        self._forget()
        if self._decisions is not None:
            self._decisions.change(self._step)

    def _forget(self) -> None:
        """Drops what was gathered, as other batches are next."""
        self._ready = []
        self._ahead.drop()


def _check_identity(mine: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Refuses the state of another order.

    Raises:
        ConfigError: naming what differs or is missing.
    """
    if not isinstance(state, Mapping):
        raise ConfigError(
            f"Expected a state that state_dict() returned, came {type(state).__name__}."
        )
    # Absent from states of the time when samplers had no settings.
    still: Any = [{}] * len(mine["settings"]) if isinstance(mine["settings"], list) else {}
    state = {"settings": still, "anneal": None, **state}
    missing = [name for name in (*mine, "step", "versions") if name not in state]
    if missing:
        raise ConfigError(
            f"Expected a state that state_dict() returned, came one without {missing[0]!r}."
        )
    differing = [name for name in mine if mine[name] != state[name]]
    if differing:
        name = differing[0]
        raise ConfigError(
            f"Expected the state of a stream with {name} {mine[name]!r}, came {state[name]!r}; "
            f"make the stream with the settings that the state was saved with.",
            where=name,
        )
    step = state["step"]
    if not isinstance(step, int) or step < 0:
        raise ConfigError(
            f"Expected a state with a step from 0 on, came {shortened(step)}; load a state that "
            f"state_dict() returned."
        )
