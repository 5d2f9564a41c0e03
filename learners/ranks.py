"""Learners on several processes: each rank learns from its share of a batch, all as one.

`torchrun` starts the ranks. Every one holds the same networks and draws the same random numbers, of
which it takes those of its own rows; gradients are averaged before each step, in one call for each
flat parameter, so weights stay equal bit for bit. Where some rows do not count, losses weigh by how
many of a rank's do, so that rows are alike whichever rank has them. Where a number of the whole
batch scales a loss, that is averaged, too. Rank 0 alone writes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, distributed

from pipeline.stream.ranks import stream_ranks
from schemas.errors import ConfigError

PATIENCE = timedelta(days=1)
"""For which ranks wait for one that judges a policy; one that died ends the others at once."""

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """One of several processes that learn together; one alone, by default."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def average(self, mine: Tensor) -> Tensor:
        """Makes a tensor the mean of those of all ranks, in place; returns it."""
        if self.size > 1:
            distributed.all_reduce(mine)
            mine.div_(self.size)
        return mine

    def weight(self, rows: Tensor) -> Tensor:
        """Returns by what this rank's means over some rows are to be multiplied, (K,) to (K,).

        The products then average over the ranks to the mean over all of theirs.

        Args:
            rows: how many rows of each agent count here.
        """
        if self.size == 1:
            return torch.ones_like(rows)
        return rows / self.average(rows.clone()).clamp(min=1.0 / self.size)

    def told(self, mine: T) -> T:
        """Returns what rank 0 gave, which is something that pickles."""
        if self.size == 1:
            return mine
        held = [mine]
        distributed.broadcast_object_list(held)
        return held[0]

    def wait(self) -> None:
        """Waits until all ranks are here."""
        if self.size > 1:
            distributed.barrier()

    def share(self, rows: int) -> slice:
        """Returns which of so many rows are this rank's."""
        mine = rows // self.size
        return slice(self.rank * mine, (self.rank + 1) * mine)

    def device(self, name: str) -> str:
        """Returns this rank's own device: `cuda` is a GPU for each rank of a machine."""
        if self.size == 1 or name != "cuda":
            return name
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"


ALONE = Ranks()


def this_rank() -> Ranks:
    """Returns which rank this process is, by what `torchrun` told it."""
    found = stream_ranks()
    return Ranks(found["rank"], found["world_size"])


@contextmanager
def joined(device: str, batch_size: int) -> Iterator[Ranks]:
    """Joins the other ranks that `torchrun` started, and leaves them at the end.

    Args:
        device: where networks live; decides how ranks talk.
        batch_size: rows of all ranks together.

    Raises:
        ConfigError: if the ranks cannot share so many rows evenly.
    """
    ranks = this_rank()
    if ranks.size == 1:
        yield ranks
        return
    if batch_size % ranks.size:
        raise ConfigError(
            f"Expected a batch that {ranks.size} ranks share evenly, came {batch_size} rows; "
            f"choose a multiple."
        )
    is_mine = not distributed.is_initialized()
    if is_mine:
        is_cuda = torch.device(device).type == "cuda"
        if is_cuda:
            torch.cuda.set_device(ranks.device(device))
        distributed.init_process_group("nccl" if is_cuda else "gloo", timeout=PATIENCE)
    try:
        yield ranks
        ranks.wait()  # one that leaves while another still talks to it ends that one with an abort
    finally:
        if is_mine:
            distributed.destroy_process_group()
