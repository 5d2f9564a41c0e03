"""A version as TorchRL's replay buffer: memory-mapped steps in its own layout (TED).

The buffer is what TorchRL makes of its own offline datasets: a `TensorDictReplayBuffer` over a
memory-mapped `TensorDict`, read-only, filled once per version and machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.store.reader import Version
from pipeline.stream.views.episodes import Kept, as_dtype, kept, learnable, missing, transitions
from pipeline.stream.views.folders import made_once
from schemas.errors import UsageError
from schemas.nesting import unescape
from schemas.spec import DatasetSpec

try:
    import torch
    from tensordict import TensorDict
    from torchrl.data import ImmutableDatasetWriter, TensorDictReplayBuffer, TensorStorage
except ImportError as error:
    raise missing("torchrl", error) from error

_ROOTS = {"observations": "observation", "actions": "action", "rewards": "reward"}
_FLAGS = ("done", "terminated", "truncated")
Key = tuple[str, ...]


def view(
    version: Version, *, batch_size: int, dtype: str | None, cache_dir: str | None
) -> TensorDictReplayBuffer:
    """Returns a replay buffer of all transitions; see `Version.as_torchrl`."""
    spec, shown = learnable(version), kept(version).with_transitions()
    rows = _rows(spec, dtype)
    total = int(shown.ends[-1])
    folder = made_once(
        "torchrl",
        shown,
        {"dtype": dtype},
        lambda draft: _write(shown, rows, dtype, draft),
        cache_dir=cache_dir,
        size=total * sum(row.itemsize for row in rows.values()),
    )
    return TensorDictReplayBuffer(
        storage=TensorStorage(TensorDict.load_memmap(folder)),
        writer=ImmutableDatasetWriter(),
        batch_size=batch_size,
    )


def _key(name: str) -> Key:
    """`observations/arm/state` is `("observation", "arm", "state")`."""
    root, *parts = name.split("/")
    return (_ROOTS[root], *(unescape(part) for part in parts))


def _rows(spec: DatasetSpec, dtype: str | None) -> dict[Key, np.dtype[Any]]:
    """What a row of each tensor is: its dtype, with its shape."""
    rows: dict[Key, np.dtype[Any]] = {}
    for name, field in spec.fields.items():
        kind = as_dtype(np.empty(0, field.numpy_dtype), dtype).dtype
        key = _key(name)
        if key[0] != "reward":
            rows[key] = np.dtype((kind, field.shape))
        if key[0] != "action":
            rows["next", *key] = np.dtype((kind, field.shape or (1,)))
        if key[0] == "observation":
            rows["next", *key] = rows[key]
    flag = np.dtype((np.bool_, (1,)))
    rows |= {(*place, name): flag for name in _FLAGS for place in ((), ("next",))}
    return {**rows, ("collector", "traj_ids"): np.dtype(np.int64)}


def _write(shown: Kept, rows: dict[Key, np.dtype[Any]], dtype: str | None, folder: Path) -> None:
    total = int(shown.ends[-1])
    one = TensorDict({key: _tensor(np.zeros((), row)) for key, row in rows.items()})
    steps = one.expand(total).memmap_like(folder)
    for number, episode in enumerate(shown.read()):
        found = transitions(episode)
        count, end = len(found.rewards), int(shown.ends[number])
        values: dict[Key, np.ndarray] = {("next", "reward"): found.rewards}
        for name, array in found.observations.items():
            values |= {_key(name): array[:-1], ("next", *_key(name)): array[1:]}
        values |= {_key(name): array for name, array in found.actions.items()}
        values |= {("next", "terminated"): found.terminated, ("next", "truncated"): found.truncated}
        values |= {("next", "done"): found.terminated | found.truncated}
        values |= {(name,): np.zeros(count, bool) for name in _FLAGS}
        values |= {("collector", "traj_ids"): np.full(count, number)}
        if count != shown.usable[number]:
            raise UsageError(
                f"Expected {shown.usable[number]} transitions in {episode.episode_id!r}, came "
                f"{count}."
            )
        for key, array in values.items():
            target = steps.get(key)[end - count : end]
            target.copy_(_tensor(as_dtype(array, dtype)).reshape(target.shape))


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(array))
