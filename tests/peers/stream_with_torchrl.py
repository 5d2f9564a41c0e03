"""TorchRL's replay buffers, in memory and over their own memory maps."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torchrl
from stream_source import BATCH, CLIPS, FRAMES, SIDE, WINDOW, WINDOWS, arrays
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, SliceSampler, TensorDictReplayBuffer, TensorStorage
from torchrl.data.replay_buffers import SamplerWithoutReplacement
from with_torchrl import dump, steps_of

VERSION = f"TorchRL {torchrl.__version__}"
MANY = 64


def prepare_numbers(place: Path) -> None:
    dump(steps_of(arrays(place)), str(place / "torchrl"))


def prepare_pictures(place: Path) -> None:
    d = arrays(place)
    done = torch.from_numpy(d["terminals"] | d["timeouts"])[:, None]
    steps = {"pixels": torch.from_numpy(d["observations"]), "next": {"done": done}}
    dump(TensorDict(steps, [len(done)]), str(place / "torchrl"))


def l1(place: Path) -> Callable[[], Any]:
    """TensorDictReplayBuffer, LazyTensorStorage, no prefetch."""
    buffer = in_memory(place, batch_size=BATCH)
    return lambda: transition(buffer.sample())


def l1_many(place: Path) -> Callable[[], Any]:
    """The same, 64 batches drawn at once and split."""
    buffer = in_memory(place, batch_size=MANY * BATCH)
    ready: list[TensorDict] = []

    def batch() -> Any:
        if not ready:
            ready.extend(buffer.sample().split(BATCH))
        return transition(ready.pop())

    return batch


def l2(place: Path) -> Callable[[], Any]:
    """SliceSampler in memory, episode ends cached, full windows only."""
    buffer = in_memory(place, batch_size=WINDOWS * WINDOW, sampler=slices(WINDOW))

    def batch() -> Any:
        drawn = buffer.sample().reshape(WINDOWS, WINDOW)
        return drawn["observation"], drawn["action"], drawn["next", "reward"]

    return batch


def l3(place: Path) -> Iterator[Any]:
    """Memory maps, SamplerWithoutReplacement."""
    buffer = mapped(place, sampler=SamplerWithoutReplacement(), batch_size=BATCH)
    for drawn in buffer:
        yield transition(drawn)


def l4(place: Path) -> Callable[[], Any]:
    """SliceSampler over memory maps, episode ends cached."""
    return clips(mapped(place, sampler=slices(FRAMES), batch_size=CLIPS * FRAMES))


def l4_memory(place: Path) -> Callable[[], Any]:
    """The same in memory."""
    return clips(in_memory(place, sampler=slices(FRAMES), batch_size=CLIPS * FRAMES))


def clips(buffer: TensorDictReplayBuffer) -> Callable[[], Any]:
    return lambda: [buffer.sample()["pixels"].view(CLIPS, FRAMES, SIDE, SIDE, 3)]


def slices(length: int) -> SliceSampler:
    end = ("next", "done")
    return SliceSampler(slice_len=length, end_key=end, cache_values=True, strict_length=True)


def mapped(place: Path, **options: Any) -> TensorDictReplayBuffer:
    # As TorchRL's own datasets do; loads() refuses another sampler or batch size.
    held = TensorDict.load_memmap(place / "torchrl" / "storage")
    return TensorDictReplayBuffer(storage=TensorStorage(held), **options)


def in_memory(place: Path, **options: Any) -> TensorDictReplayBuffer:
    held = TensorDict.load_memmap(place / "torchrl" / "storage").contiguous().clone()
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(len(held)), **options)
    buffer.extend(held)
    return buffer


def transition(drawn: TensorDict) -> Any:
    following = drawn["next"]
    return (
        drawn["observation"],
        drawn["action"],
        following["reward"],
        following["observation"],
        following["terminated"],
    )
