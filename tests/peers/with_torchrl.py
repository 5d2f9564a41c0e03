"""A D4RL file as TorchRL's raw memory maps: a replay buffer filled in blocks, then dumped."""

import shutil
from collections.abc import Mapping

import h5py
import numpy as np
import torch
from tensordict import TensorDict
from torchrl.data import LazyMemmapStorage, TensorDictReplayBuffer

BLOCK = 10_000
torch.set_num_threads(1)


def convert(source: str, target: str) -> None:
    with h5py.File(source) as file:
        dump(steps_of({key: file[key][:] for key in file}), target)


def steps_of(d: Mapping[str, np.ndarray]) -> TensorDict:
    """Flat arrays by D4RL's names, as TorchRL names them."""
    done = torch.from_numpy(d["terminals"] | d["timeouts"])
    following = {
        "observation": torch.from_numpy(d["next_observations"]),
        "reward": torch.from_numpy(d["rewards"])[:, None],
        "terminated": torch.from_numpy(d["terminals"])[:, None],
        "truncated": torch.from_numpy(d["timeouts"])[:, None],
        "done": done[:, None],
    }
    return TensorDict(
        {
            "observation": torch.from_numpy(d["observations"]),
            "action": torch.from_numpy(d["actions"]),
            "episode": torch.from_numpy(np.cumsum(np.r_[0, done.numpy()[:-1]])),
            "next": following,
        },
        [len(done)],
    )


def dump(steps: TensorDict, target: str) -> None:
    storage = LazyMemmapStorage(len(steps), scratch_dir=f"{target}-scratch")
    buffer = TensorDictReplayBuffer(storage=storage, batch_size=256)
    for start in range(0, len(steps), BLOCK):
        buffer.extend(steps[start : start + BLOCK])
    buffer.dumps(target)
    shutil.rmtree(f"{target}-scratch")
