"""A D4RL file as TorchRL's raw memory maps: a replay buffer filled in blocks, then dumped."""

import shutil

import h5py
import numpy as np
import torch
from tensordict import TensorDict
from torchrl.data import LazyMemmapStorage, TensorDictReplayBuffer

BLOCK = 10_000
torch.set_num_threads(1)


def convert(source: str, target: str) -> None:
    with h5py.File(source) as file:
        d = {key: torch.from_numpy(file[key][:]) for key in file}
    done = d["terminals"] | d["timeouts"]
    episode = torch.from_numpy(np.cumsum(np.r_[0, done.numpy()[:-1]]))
    following = {
        "observation": d["next_observations"],
        "reward": d["rewards"][:, None],
        "terminated": d["terminals"][:, None],
        "truncated": d["timeouts"][:, None],
        "done": done[:, None],
    }
    steps = TensorDict(
        {
            "observation": d["observations"],
            "action": d["actions"],
            "episode": episode,
            "next": following,
        },
        [len(done)],
    )
    storage = LazyMemmapStorage(len(done), scratch_dir=f"{target}-scratch")
    buffer = TensorDictReplayBuffer(storage=storage, batch_size=256)
    for start in range(0, len(done), BLOCK):
        buffer.extend(steps[start : start + BLOCK])
    buffer.dumps(target)
    shutil.rmtree(f"{target}-scratch")
