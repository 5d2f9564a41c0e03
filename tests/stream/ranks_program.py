"""One rank of a training program, as `torchrun` starts it: STORE CACHE OUT STEPS STATE.

Each rank reads its share of every batch, all ranks train one linear model by DDP, and a second
stream is drawn by priorities that they tell each other. Rank r writes what it saw to OUT/r.npz.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

import penstock
from pipeline.stream.ranks import all_gather

BATCH = 24


def loss_of(
    model: torch.nn.Module, batch: dict[str, torch.Tensor], world_size: int
) -> torch.Tensor:
    """Mean over the global batch, written so that DDP's average over ranks gives it."""
    errors = model(batch["observations"] / 1e4).squeeze(-1) - batch["rewards"] / 1e4
    return errors.square().sum() * world_size / BATCH


def main(store: str, cache: str, out: str, steps: int, state: str) -> None:
    """Reads and trains."""
    distributed.init_process_group("gloo")
    ranks = penstock.stream_ranks()
    form = {"batch_size": BATCH, "seed": 5, "cache_dir": cache, **ranks}
    stream = penstock.Stream(store, **form)
    if Path(state).exists():
        stream.load_state_dict(json.loads(Path(state).read_text()))
    prioritised = penstock.Stream(store, sampler="prioritised", **form)
    torch.manual_seed(0)
    model = DistributedDataParallel(torch.nn.Linear(3, 1))
    seen: dict[str, list[np.ndarray]] = {"rows": [], "gradients": [], "prioritised": []}
    for _ in range(steps):
        batch = next(stream)
        model.zero_grad()
        loss_of(model, batch, ranks["world_size"]).backward()
        seen["rows"].append(batch["indices"].numpy())
        seen["gradients"].append(model.module.weight.grad.numpy().copy())
        batch = next(prioritised)
        prioritised.update_priorities(batch["indices"], batch["rewards"].abs(), all_gather)
        seen["prioritised"].append(batch["indices"].numpy())
    arrays = {name: np.stack(rows) for name, rows in seen.items()}
    np.savez(Path(out) / f"{ranks['rank']}.npz", **arrays)
    if ranks["rank"] == 0:
        Path(state).write_text(json.dumps(stream.state_dict()))
    # A rank that leaves while another still talks to it ends that one with an abort.
    distributed.barrier()
    del model
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:4], int(sys.argv[4]), sys.argv[5])
