"""Streams as `torch.utils.data` datasets, for training programs that have a `DataLoader`.

`StreamDataset` yields a stream's batches in their order with any number of worker processes;
`TransitionDataset` answers with transitions by number, for a `DataLoader`'s own samplers. A worker
that is forked reads what its parent has opened; one that is spawned maps the cache itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from schemas.errors import UsageError

if TYPE_CHECKING:
    from pipeline.stream.endless import Endless
    from pipeline.stream.loader import Stream

_OFFSET, _LOADS = 0, 1
_BY_NUMBER = ("transition", "length_proportional", "window")


class StreamDataset(IterableDataset[Any]):
    """The batches of a stream from where it is, for `DataLoader(..., batch_size=None)`.

    Worker w of W makes the batches w, w + W, ... and the loader takes them in turns: the order is
    the stream's own, for any W. Every iteration begins at the dataset's position; the stream keeps
    its own.

    Args:
        stream: or a mixture.
        steps: batches of an iteration; None goes on without end.

    Raises:
        UsageError: for the sampler `prioritised`, which is told of each batch.
    """

    def __init__(self, stream: Endless, steps: int | None = None) -> None:
        super().__init__()
        if steps is not None and steps < 1:
            raise UsageError(f"Expected at least 1 step per iteration, came {steps}.")
        self._stream = stream.every()
        self._stream.state_dict()  # what it has to read once is read before there are workers
        self._steps = steps
        # Shared, so that workers that outlive an iteration see it move.
        self._place: torch.Tensor = torch.zeros(2, dtype=torch.int64)
        self._place.share_memory_()  # type: ignore[no-untyped-call]
        self._loads = 0

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        if worker is None:
            yield from self._batches(0, 1)
            return
        if self._stream.config.device != "cpu":
            raise UsageError(
                f"Expected a stream with device='cpu' in a worker process, came "
                f"{self._stream.config.device!r}; use num_workers=0, or bring batches there after "
                f"the loader."
            )
        if self._loads != int(self._place[_LOADS]):
            raise UsageError(
                "Expected workers that were started after the state was loaded, came older ones; "
                "make a new DataLoader, or leave out persistent_workers."
            )
        for batch in self._batches(worker.id, worker.num_workers):
            yield _mapped(batch, _own)

    def __len__(self) -> int:
        if self._steps is None:
            raise TypeError("a stream without steps= has no length")
        return self._steps

    def set_epoch(self, epoch: int) -> None:
        """Begins the next iterations `epoch` times `steps` batches after the position.

        Args:
            epoch: counted from 0 where the dataset was made or a state was loaded.

        Raises:
            UsageError: if the dataset has no `steps`.
        """
        if self._steps is None or epoch < 0:
            raise UsageError(
                f"Expected an epoch from 0 on of a dataset with steps=, came {epoch} of "
                f"{'an endless one' if self._steps is None else self._steps}."
            )
        self._place[_OFFSET] = epoch * self._steps

    def state_dict(self, taken: int) -> dict[str, Any]:
        """Returns the state of the stream after some batches, as `Stream.state_dict` does.

        Workers make batches ahead, so only who takes them knows how many there were.

        Args:
            taken: batches that came of the loader in this iteration.

        Raises:
            UsageError: for a negative number.
        """
        if taken < 0:
            raise UsageError(f"Expected a number of batches from 0 on, came {taken}.")
        return self._stream.every(1, int(self._place[_OFFSET]) + taken).state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Begins the next iterations where a state was taken, on any number of workers and ranks.

        Raises:
            ConfigError: if the state is of a stream with another order.
            NotFoundError: if the store no longer has a version.
        """
        self._stream.load_state_dict(state)
        self._loads += 1
        self._place[_OFFSET], self._place[_LOADS] = 0, self._loads

    def _batches(self, first: int, stride: int) -> Iterator[Any]:
        stream = self._stream.every(1, int(self._place[_OFFSET]) + first).every(stride)
        count = None if self._steps is None else len(range(first, self._steps, stride))
        return itertools.islice(stream, count)


class TransitionDataset(Dataset[Any]):
    """All that a stream draws from, by number: transitions, or windows by their anchors.

    `dataset[i]` is one row as the stream's batches hold it, a list of numbers gives a batch. The
    order is the `DataLoader`'s: none of the promises of a stream's order hold.

    Args:
        stream: whose sampler is `transition` or `window`, without goals and random images, which
            are drawn for batches.

    Raises:
        UsageError: for another stream.
    """

    def __init__(self, stream: Stream) -> None:
        config = stream.config
        if config.sampler not in _BY_NUMBER:
            raise UsageError(
                f"Expected a stream whose rows have numbers, came one with sampler="
                f"{config.sampler!r}; use 'transition' or 'window', or as_iterable_dataset()."
            )
        drawn = [name for name, image in config.images.items() if image.is_random]
        drawn += ["goals"] * (config.goals is not None)
        if drawn:
            raise UsageError(
                f"Expected a stream of which nothing is drawn for each batch, came one with random "
                f"{', '.join(drawn)}; use as_iterable_dataset()."
            )
        stream.state_dict()  # as for `StreamDataset`
        self._stream = stream

    def __len__(self) -> int:
        return self._stream.transitions

    def __getitem__(self, number: int | Sequence[int] | np.ndarray | torch.Tensor) -> Any:
        numbers = np.asarray(number, np.int64)
        if numbers.ndim > 1:
            raise UsageError(f"Expected a number or a list of them, came {numbers.ndim} axes.")
        count = len(self)
        if numbers.size and not (-count <= numbers.min() and numbers.max() < count):
            raise IndexError(f"Expected numbers below {count}, came {numbers.max()}.")
        batch = self._stream.rows(np.atleast_1d(numbers) % count)
        return batch if numbers.ndim else _mapped(batch, lambda array: array[0])

    def __getitems__(self, numbers: list[int]) -> list[Any]:
        """Returns the rows of some numbers, gathered together."""
        batch = self[numbers]
        return [_row(batch, at) for at in range(len(numbers))]


def as_is(batch: Any) -> Any:
    """Returns what it is given: the `collate_fn` for TensorDicts, which torch's own cannot take."""
    return batch


def _row(batch: Any, at: int) -> Any:
    return _mapped(batch, lambda array: array[at])


def _own(array: Any) -> Any:
    """A copy, as a view into many batches would take them all along to another process."""
    return array.copy() if isinstance(array, np.ndarray) else array.clone()


def _mapped(tree: Any, change: Any) -> Any:
    """Returns a nested batch with each array changed; texts have rows, too."""
    if isinstance(tree, dict):
        return {name: _mapped(child, change) for name, child in tree.items()}
    if isinstance(tree, tuple):
        return tuple(_mapped(child, change) for child in tree)
    return change(tree)
