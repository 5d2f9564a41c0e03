"""`Stream`: endless minibatches of one version, in an order that any process can find again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakSet

import numpy as np

from pipeline.store.reader import Version
from pipeline.store.store import open_version
from pipeline.stream import plan
from pipeline.stream.batches import (
    Batch,
    Split,
    columns,
    draw,
    gathered_at_once,
    split_batches,
)
from pipeline.stream.cache import Progress
from pipeline.stream.feed import Feed
from pipeline.stream.priorities import AllGather, Priorities, priorities_for
from pipeline.stream.samplers import Draw, sampler_named
from pipeline.stream.source import OpenVersion
from pipeline.stream.words import describe_draw, describe_spread, describe_version
from schemas.errors import ConfigError, UsageError, missing_extra
from schemas.stream import Framework, Precision, Residency, StreamConfig, stream_config

STATE_FORMAT = 1


class Follower(Protocol):
    """What reads a stream's data at a pace of its own."""

    def follow_stream(self, stream: Stream, version: Version | str) -> None:
        """Reads another version for that stream from its next batch on."""
        ...


class Stream:
    """Minibatches of a version, endlessly; what iterates can stop and resume exactly.

    A batch is a mapping: `observations, actions, rewards, next_observations, terminated,
    truncated, discounts, mask, indices`, rows first. Fields that the spec lacks are absent; where
    only some episodes lack actions or rewards, those rows are NaN (0 for integers) and
    `actions_mask` or `rewards_mask` is 0 there. After a terminated step the discount is 0 and the
    next observation is one that nothing should read.

    Every argument but the first is a setting of `schemas.stream.StreamConfig`, which lists those
    of single samplers, too: windows, n-step, returns, goals (docs/streams.md).

    Args:
        data: `STORE@REF`, or an open version.
        sampler: how samples are drawn: `transition`, `length_proportional`, `episode`, `weighted`,
            `window`, `shuffle` or `prioritised`.
        batch_size: rows of the global batch; this rank yields its share of them.
        seed: the order.
        rank: number of this share.
        world_size: how many shares there are.
        device: where tensors end up.
        residency: `auto`, `mmap`, `ram` or, for `shuffle`, `windowed`; `auto` copies what fits
            `memory=`, a budget.
        framework: `torch` or `numpy`.
        fields: full names of the fields to stream; None takes all but extras.
        spec: which spec, where the version holds several.
        discount: gamma.
        dtype: what floating-point fields are cast to, or `keep`.
        episode_ids: whether batches name their episodes.
        cache_dir: folder of the packed cache.
        verify: whether cached blocks are compared with their checksums.
        progress: called with the number of blocks packed and the number to pack, while the
            packed cache is filled.
        **settings: of the sampler.

    Raises:
        ConfigError, UnknownNameError, UsageError: for settings that do not fit.
        NotFoundError: if there is no such store or version.
    """

    def __init__(
        self,
        data: str | Path | Version,
        *,
        sampler: str = "transition",
        batch_size: int = 256,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        device: str = "cpu",
        residency: Residency = "auto",
        framework: Framework = "torch",
        fields: tuple[str, ...] | list[str] | None = None,
        spec: str | None = None,
        discount: float = 0.99,
        dtype: Precision = "float32",
        episode_ids: bool = False,
        cache_dir: str | Path | None = None,
        verify: bool = True,
        progress: Progress | None = None,
        **settings: Any,
    ) -> None:
        self.config = stream_config(
            {
                **settings,
                "sampler": sampler,
                "batch_size": batch_size,
                "seed": seed,
                "rank": rank,
                "world_size": world_size,
                "device": device,
                "residency": residency,
                "framework": framework,
                "fields": fields,
                "spec": spec,
                "discount": discount,
                "dtype": dtype,
                "episode_ids": episode_ids,
                "cache_dir": None if cache_dir is None else str(cache_dir),
                "verify": verify,
            }
        )
        sampler_named(self.config.sampler)
        self._split = splitter(self.config)
        version = data if isinstance(data, Version) else open_version(str(data))
        self.feed = Feed(version, self.config, progress)
        self.mixtures: WeakSet[Follower] = WeakSet()
        """Mixtures that this stream is part of."""
        self._step = 0
        self._ready: list[Batch] = []  # gathered batches, the next one last
        self._priorities: Priorities | None = None

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if not self._ready:
            self._ready = self._gather()
        self._step += 1
        return self._ready.pop()

    @property
    def step(self) -> int:
        """Number of the next global batch."""
        return self._step

    @property
    def version(self) -> Version:
        """The version that the next batch is of."""
        return self.feed.at(self._step).version

    @property
    def transitions(self) -> int:
        """Number of transitions that the next batch is drawn from."""
        return len(self.feed.at(self._step).index)

    @property
    def members(self) -> list[tuple[Version, StreamConfig]]:
        """The version that the next batch is of, and how it is drawn; as a mixture has several."""
        return [(self.version, self.config)]

    def follow(self, version: Version | str) -> None:
        """Reads another version of the same store from the next batch on.

        The step is part of the state, so that a resumed or repeated run reads the same. Mixtures
        of this stream follow, too, each from its own next batch on.

        Args:
            version: the version, or a reference such as `main`.
        """
        if self.feed.follow(self._step, version):
            self._ready = []
        for mixture in self.mixtures:
            mixture.follow_stream(self, version)

    def update_priorities(
        self, indices: Any, priorities: Any, all_gather: AllGather | None = None
    ) -> None:
        """Tells the sampler `prioritised` of new priorities, once after each batch.

        Args:
            indices: (n,) of transitions, as the batch carries them.
            priorities: (n,) finite and not negative, such as absolute TD errors.
            all_gather: takes this rank's pair of arrays and returns those of all ranks in their
                order; with several ranks each must hand one over, once per batch.

        Raises:
            UsageError: for another sampler, for several ranks without `all_gather`, and for
                indices or priorities that do not fit.
        """
        found = self._current_priorities()
        if found is None:
            raise UsageError(
                f"Expected a stream with sampler='prioritised', came {self.config.sampler!r}."
            )
        found.update(indices, priorities, gathering(all_gather, self.config.world_size))

    # -- state ---------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Returns where the stream is, as plain numbers, texts and lists."""
        priorities = self._current_priorities()
        told = {} if priorities is None else {"priorities": priorities.state()}
        return {**self._identity(), "step": self._step, "versions": self.feed.history(), **told}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues where a state was taken, on any number of ranks.

        Raises:
            ConfigError: if the state is of a stream with another order.
            NotFoundError: if the store no longer has a version.
        """
        check_identity(self._identity(), state)
        self.feed.load_history(state["versions"])
        self._step = int(state["step"])
        self._ready = []
        self._priorities = priorities_for(self.feed.at(self._step), None, state.get("priorities"))

    def _identity(self) -> dict[str, Any]:
        config = self.config
        return {
            "format": STATE_FORMAT,
            "store": self.feed.store_id,
            "spec": self.feed.spec,
            "sampler": config.sampler,
            "settings": config.order(),
            "batch_size": config.batch_size,
            "seed": config.seed,
        }

    # -- words ---------------------------------------------------------------------------------

    def describe(self) -> str:
        """Says what is sampled, from which version, where it lies, and what was cast."""
        config, opened = self.config, self.feed.at(self._step)
        share = plan.share(config.batch_size, config.rank, config.world_size)
        asked = self._asked(opened, 8)
        return (
            f"Draws {describe_draw(opened)}, with seed {config.seed}, from step {self._step} on: "
            f"{config.batch_size} rows per global batch, of which rank {config.rank} of "
            f"{config.world_size} takes rows {share.start} to {share.stop - 1}. "
            f"{describe_spread(opened, asked, draw(opened, asked))}{describe_version(opened)}"
        )

    # -- within --------------------------------------------------------------------------------

    def _gather(self) -> list[Batch]:
        config, opened = self.config, self.feed.at(self._step)
        mine = plan.share(config.batch_size, config.rank, config.world_size)
        most = gathered_at_once(opened, mine.stop - mine.start)
        steps = self.feed.steps_left(self._step, most)
        drawn = draw(opened, self._asked(opened, steps)).pick(lambda rows: rows[:, mine])
        batches = split_batches(columns(opened, drawn), self._split)
        batches.reverse()
        return batches

    def _asked(self, opened: OpenVersion, steps: int) -> Draw:
        size = self.config.batch_size
        since = self._step - self.feed.since(self._step)
        before = (since + np.arange(steps)) * size
        priorities = self._current_priorities()
        return Draw(self.config.seed, 0, self._step, steps, size, before, priorities)

    def _current_priorities(self) -> Priorities | None:
        self._priorities = priorities_for(self.feed.at(self._step), self._priorities)
        return self._priorities


def gathering(all_gather: AllGather | None, world_size: int) -> AllGather | None:
    """Returns what gathers priorities of all ranks; None for a single one.

    Raises:
        UsageError: if there are several ranks and nothing gathers.
    """
    if all_gather is None and world_size > 1:
        raise UsageError(
            f"Expected all_gather=, as each of {world_size} ranks must know all priorities, came "
            f"none."
        )
    return all_gather


def splitter(config: StreamConfig) -> Split:
    """Returns what makes a configured framework's batches.

    Raises:
        MissingExtraError: if torch is asked for and not installed.
        ConfigError: if it has no such device.
    """
    if config.framework == "numpy":
        return list
    try:
        from pipeline.stream import torch_adapter  # noqa: PLC0415 - an optional extra
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise missing_extra("learners", "torch") from None
    return torch_adapter.splitter(config.device)


def check_identity(mine: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Refuses the state of a stream that has another order.

    Raises:
        ConfigError: naming what differs or is missing.
    """
    # Absent from states of the time when samplers had no settings.
    still: Any = [{}] * len(mine["settings"]) if isinstance(mine["settings"], list) else {}
    state = {"settings": still, "anneal": None, **state}
    missing = [name for name in (*mine, "step", "versions") if name not in state]
    if missing:
        raise ConfigError(
            f"Expected a state that state_dict() returned, came one without {missing[0]!r}."
        )
    differing = [name for name in mine if mine[name] != state[name]]
    if differing:
        name = differing[0]
        raise ConfigError(
            f"Expected the state of a stream with {name} {mine[name]!r}, came {state[name]!r}; "
            f"make the stream with the settings that the state was saved with.",
            where=name,
        )
