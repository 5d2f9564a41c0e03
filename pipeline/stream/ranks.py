"""How the ranks of a `torch.distributed` program share a stream."""

from __future__ import annotations

import os

import numpy as np
import torch
from torch import distributed

from pipeline.stream.priorities import Gathered
from schemas.errors import UsageError


def stream_ranks() -> dict[str, int]:
    """Returns `rank` and `world_size` of this process, for `Stream(..., **stream_ranks())`.

    They are those of `torch.distributed` where it is initialised, else what `torchrun` has put
    into the environment, else one rank alone.

    Raises:
        UsageError: if the environment holds no such numbers.
    """
    if distributed.is_available() and distributed.is_initialized():
        return {"rank": distributed.get_rank(), "world_size": distributed.get_world_size()}
    told = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    try:
        rank, world_size = map(int, told)
    except ValueError:
        raise UsageError(
            f"Expected whole numbers in RANK and WORLD_SIZE, came {told[0]!r} and {told[1]!r}."
        ) from None
    return {"rank": rank, "world_size": world_size}


def all_gather(mine: Gathered) -> list[Gathered]:
    """Hands indices and priorities to all ranks, for `update_priorities(..., all_gather=)`.

    Args:
        mine: (n,) int64 and (n,) float64 of this rank; n may differ between ranks.

    Returns:
        Those of all ranks in their order.
    """
    place = torch.device("cuda" if distributed.get_backend() == "nccl" else "cpu")
    counts = _gathered(torch.tensor([len(mine[0])], device=place))
    sizes = [int(count) for count in counts]
    # Both as 64-bit words of one tensor, as long as the longest.
    both = np.zeros((2, max(sizes)), np.int64)
    both[0, : len(mine[0])] = mine[0]
    both[1, : len(mine[0])] = np.asarray(mine[1], np.float64).view(np.int64)
    every = [part.cpu().numpy() for part in _gathered(torch.from_numpy(both).to(place))]
    return [
        (part[0, :size], part[1, :size].copy().view(np.float64))
        for part, size in zip(every, sizes, strict=True)
    ]


def _gathered(mine: torch.Tensor) -> list[torch.Tensor]:
    every = [torch.empty_like(mine) for _ in range(distributed.get_world_size())]
    distributed.all_gather(every, mine)
    return every
