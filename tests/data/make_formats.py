"""Writes the samples in `formats/` with the formats' own libraries.

It was run once, where `d3rlpy==2.8.1`, `torch`, `tensordict==0.15.3` and `torchrl==0.14.1` were
installed; the tests read what it left. RLlib's recorded episodes are packed by `msgpack_numpy`, as
RLlib does, from states of the form that `SingleAgentEpisode.get_state` returns.

    python -m tests.data.make_formats
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent / "formats"
LENGTHS = (5, 1, 4)
"""Steps of the episodes: the first terminates, the second is cut off, the third terminates."""


def episodes() -> list[dict[str, np.ndarray]]:
    """Three episodes with observations (T+1, 3), actions (T, 2), rewards (T,)."""
    random = np.random.default_rng(3)
    return [
        {
            "observations": random.normal(size=(steps + 1, 3)).astype(np.float32),
            "actions": random.normal(size=(steps, 2)).astype(np.float32),
            "rewards": random.normal(size=steps).astype(np.float32),
        }
        for steps in LENGTHS
    ]


TERMINATED = (True, False, True)


def write_d3rlpy() -> None:
    """A version 2.1 file, and one with tuple observations."""
    from d3rlpy.dataset import Episode
    from d3rlpy.dataset.io import dump

    made = []
    pairs = []
    for one, terminated in zip(episodes(), TERMINATED, strict=True):
        steps = {"actions": one["actions"], "rewards": one["rewards"][:, None]}
        observed = one["observations"][:-1]
        made.append(Episode(observations=observed, terminated=terminated, **steps))
        parts = [observed, (observed[:, :1] * 100).astype(np.uint8)]
        pairs.append(Episode(observations=parts, terminated=terminated, **steps))
    for name, found in (("d3rlpy.h5", made), ("d3rlpy_tuples.h5", pairs)):
        with (HERE / name).open("w+b") as file:
            dump(found, file)


def transitions() -> Any:
    """The episodes as TorchRL's transitions (TED)."""
    import torch
    from tensordict import TensorDict

    parts = []
    for number, (one, terminated) in enumerate(zip(episodes(), TERMINATED, strict=True)):
        steps = len(one["rewards"])
        ends = torch.zeros(steps, 1, dtype=torch.bool)
        last = ends.clone()
        last[-1] = True
        flags = {
            "terminated": last if terminated else ends,
            "truncated": ends if terminated else last,
            "done": last,
        }
        parts.append(
            TensorDict(
                {
                    "observation": torch.from_numpy(one["observations"][:-1]),
                    "action": torch.from_numpy(one["actions"]),
                    **{name: ends.clone() for name in flags},
                    "collector": {"traj_ids": torch.full((steps,), number)},
                    "next": {
                        "observation": torch.from_numpy(one["observations"][1:]),
                        "reward": torch.from_numpy(one["rewards"][:, None]),
                        **flags,
                    },
                },
                [steps],
            )
        )
    return torch.cat(parts)


def write_torchrl() -> None:
    """A buffer that is not full, one that has wrapped around, one flat, and a bare tensordict."""
    import torch
    from torchrl.data import LazyMemmapStorage, TED2Flat, TensorDictReplayBuffer

    data = transitions()
    buffer = TensorDictReplayBuffer(storage=LazyMemmapStorage(16))
    buffer.extend(data)
    buffer.dumps(HERE / "torchrl_partial")
    full = TensorDictReplayBuffer(storage=LazyMemmapStorage(len(data)))
    full.extend(torch.cat([data[-2:], data]))
    full.dumps(HERE / "torchrl_full")
    for name, size in (("torchrl_flat", len(data)), ("torchrl_flat_partial", 16)):
        flat = TensorDictReplayBuffer(storage=LazyMemmapStorage(size))
        flat.register_save_hook(TED2Flat())
        flat.extend(data)
        flat.dumps(HERE / name)
    data.memmap(HERE / "torchrl_bare")


def write_rllib() -> None:
    """Recorded episodes; the second has a lookback, and infos that msgpack_numpy pickles."""
    import msgpack
    import msgpack_numpy
    import pyarrow as pa
    import pyarrow.parquet as pq

    def buffer(data: Any, lookback: int = 0) -> dict[str, Any]:
        is_numpy = isinstance(data, np.ndarray)
        return {"data": data, "lookback": lookback, "finalized": is_numpy, "space": None}

    items = []
    for number, (one, terminated) in enumerate(zip(episodes(), TERMINATED, strict=True)):
        steps = len(one["rewards"])
        as_is = (lambda rows: rows) if number else list
        infos = np.array([None] * (steps + 1), dtype=object) if number else [{}] * (steps + 1)
        state = {
            "id_": f"episode-{number}",
            "agent_id": None,
            "module_id": None,
            "multi_agent_episode_id": None,
            "observations": buffer(as_is(one["observations"])),
            "actions": buffer(as_is(one["actions"])),
            "rewards": buffer(as_is(one["rewards"])),
            "infos": buffer(infos),
            "extra_model_outputs": {"action_logp": buffer(np.arange(steps, dtype=np.float32))},
            "is_terminated": terminated,
            "is_truncated": not terminated,
            "t_started": 0,
            "t": steps,
            "_observation_space": None,
            "_start_time": None,
        }
        if number == 1:
            for name in ("observations", "actions", "rewards"):
                rows = one[name]
                state[name] = buffer(np.concatenate([rows[:1], rows]), lookback=1)
        items.append(msgpack.packb(state, default=msgpack_numpy.encode))
    table = pa.table({"item": pa.array([*items, items[0]], pa.binary())})
    pq.write_table(table, HERE / "rllib_items.parquet")


if __name__ == "__main__":
    HERE.mkdir(exist_ok=True)
    write_d3rlpy()
    write_torchrl()
    write_rllib()
