"""Batches of a run, made again: the same rows of the same versions, long after."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from learners.base import learner_class
from learners.checkpoint import Checkpoint, load_checkpoint
from learners.data import Pinned, Sampling, open_stream
from learners.growing import open_growing
from learners.sampling import again_from
from learners.settings import StreamNeeds, read_settings
from learners.successes import growing_at_first
from pipeline.store.store import open_store
from pipeline.stream.loader import Stream
from pipeline.stream.mixture import Mixture
from schemas.errors import UsageError
from schemas.nesting import flatten
from schemas.packed import plain


@dataclass(frozen=True)
class Replayed:
    """One batch as the run saw it."""

    run: str
    step: int
    """Number of the batch among the run's."""
    versions: tuple[str, ...]
    """`STORE@ID` of every version it was drawn from."""
    batch: Mapping[str, np.ndarray]
    """By flat name, `episode_ids` included."""

    @property
    def rows(self) -> str:
        """SHA-256 of which rows were drawn, in their order."""
        named = "\n".join(map(str, self.batch["episode_ids"]))
        sha = hashlib.sha256(np.ascontiguousarray(self.batch["indices"], "<i8").tobytes())
        sha.update(named.encode())
        return sha.hexdigest()


def replay(run: str, step: int) -> Replayed:
    """Returns the batch of a run's update number `step`, counted from 0 within this run.

    Args:
        run: folder of the run, or a checkpoint of it.
        step: up to the last that the checkpoint knows of.

    Raises:
        NotFoundError: if there is no run, or a version is gone.
        UsageError: if the run had not come that far.
    """
    return next(replays(run, step))


def replays(run: str, first: int = 0) -> Iterator[Replayed]:
    """Yields a run's batches from one update to the last that the checkpoint knows of.

    Args:
        run: folder of the run, or a checkpoint of it.
        first: number of the update, counted from 0 within this run.

    Raises:
        NotFoundError: if there is no run, or a version is gone.
        UsageError: if the run had not come that far.
    """
    checkpoint = load_checkpoint(Path(run))
    document = checkpoint.document
    if document.get("stream") is None:
        raise UsageError("Expected a run that has drawn batches, came one without.", where=run)
    last = int(document["stream"]["step"])
    if not 0 <= first < last:
        raise UsageError(f"Expected a step from 0 to {last - 1}, came {first}.", where=run)
    stream = _opened(document, _needs(checkpoint))
    stream.load_state_dict({**document["stream"], "step": first})
    for step in range(first, last):
        versions = tuple(f"{v.store.url}@{v.id}" for v, _ in stream.members)
        batch = {
            name: plain(rows)
            for root, value in next(stream).items()
            for name, rows in flatten(root, value).items()
        }
        yield Replayed(run, step, versions, batch)


def _needs(checkpoint: Checkpoint) -> StreamNeeds:
    kind = learner_class(checkpoint.algo)
    return kind.needs(read_settings(kind.settings_kind, checkpoint.settings, checkpoint.algo))


def _opened(document: Mapping[str, Any], needs: StreamNeeds) -> Stream | Mixture:
    config = document["config"]
    said = document.get("sampling", config)
    sampling = Sampling(
        batch_size=said["batch_size"],
        seed=config["seed"],
        discount=said["discount"],
        device="cpu",
        sampler=said["sampler"],
        stream=again_from(said.get("stream", {})),
        needs=needs,
        episode_ids=True,
    )
    pinned = tuple(Pinned(**one) for one in document["data"])
    if document["kind"] == "train":
        return open_stream(pinned, sampling)
    growing = growing_at_first(open_store(config["into"]), document)
    return open_growing(pinned, growing, sampling)
