"""`Stream`: endless minibatches of one version, in an order that any process can find again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self
from weakref import WeakSet

import numpy as np

from pipeline.store.reader import Version
from pipeline.store.store import open_version
from pipeline.stream import plan
from pipeline.stream.adapters import map_dataset
from pipeline.stream.batches import draw, gathered_at_once, split_batches
from pipeline.stream.cache import Progress
from pipeline.stream.carry import packed, unpacked
from pipeline.stream.endless import STATE_FORMAT, Endless
from pipeline.stream.feed import Feed
from pipeline.stream.newest import with_offset
from pipeline.stream.online import wait_for
from pipeline.stream.priorities import AllGather, Priorities, gathering, priorities_for
from pipeline.stream.provenance import Decisions, said_run, without_run
from pipeline.stream.samplers import Draw, Drawn, sampler_named
from pipeline.stream.source import OpenVersion
from pipeline.stream.words import describe_draw, describe_spread, describe_version
from schemas.errors import UsageError
from schemas.stream import (
    Framework,
    Precision,
    Residency,
    StreamConfig,
    shortened,
    stream_config,
)
from schemas.transforms import FieldStatistics

if TYPE_CHECKING:
    import torch

    from pipeline.stream.datasets import TransitionDataset

_Gathered = tuple[OpenVersion, Any]
"""A version, and what a carrier sent of it."""


class Follower(Protocol):
    """What reads a stream's data at a pace of its own."""

    def follow_stream(self, stream: Stream, version: Version | str) -> None:
        """Reads another version for that stream from its next batch on."""
        ...


class Stream(Endless):
    """Minibatches of a version, endlessly; what iterates can stop and resume exactly.

    A batch is a mapping: `observations, actions, rewards, next_observations, terminated,
    truncated, discounts, mask, indices`, rows first. Fields that the spec lacks are absent; where
    only some episodes lack actions or rewards, those rows are NaN (0 for integers) and
    `actions_mask` or `rewards_mask` is 0 there. After a terminated step the discount is 0 and the
    next observation is one that nothing should read.

    Every argument but the first is a setting of `schemas.stream.StreamConfig`, which lists those
    of single samplers, too: windows, n-step, returns, goals; and `normalize=`, `images=` and
    `output=`, which change batches last (docs/streams.md).

    Args:
        data: `STORE@REF`, or an open version.
        sampler: how samples are drawn: `transition`, `length_proportional`, `episode`, `weighted`,
            `window`, `shuffle` or `prioritised`.
        batch_size: rows of the global batch; this rank yields its share of them.
        seed: the order.
        rank: number of this share.
        world_size: how many shares there are.
        device: where tensors end up, by name or as a `torch.device`.
        residency: `auto`, `mmap`, `ram`, `gpu` or, for `shuffle`, `windowed`; `auto` copies what
            fits `device_memory=` or `memory=`, budgets.
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
        device: str | torch.device = "cpu",
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
        config = stream_config(
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
        sampler_named(config.sampler)
        if not isinstance(data, str | Path | Version) or not str(data):
            raise UsageError(
                f"Expected 'STORE@REF' or an open version, such as store.version('main'), came "
                f"{shortened(data)}."
            )
        version = data if isinstance(data, Version) else open_version(str(data))
        if config.min_offset is not None:
            version = with_offset(version, config)
        feeds = [Feed(version, config, progress)]
        decisions = None if config.run is None else Decisions(config.run, feeds, [config])
        super().__init__(config, feeds, decisions, config.ahead)
        self.mixtures: WeakSet[Follower] = WeakSet()
        """Mixtures that this stream is part of."""
        self._priorities: Priorities | None = None

    def __reduce__(self) -> tuple[object, ...]:
        # Another process maps the cache itself: neither records nor a copy of them travel.
        there: dict[str, Any] = {"residency": "mmap"} if self.config.residency == "auto" else {}
        there["min_offset"] = None  # it has been waited for
        settings = {**self.config.model_dump(), **there, "verify": False}
        position = (self._position(), self._output.known(), self._stride)
        return _reopened, (self.version, settings, *position)

    def every(self, stride: int = 1, first: int = 0) -> Self:
        """Returns a stream of its own that yields every so many of this one's next batches.

        Arguments and errors are those of `Endless.every`.
        """
        made = super().every(stride, first)
        made.mixtures = WeakSet()
        return made

    @property
    def feed(self) -> Feed:
        """The versions that this reads, step by step."""
        return self._feeds[0]

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

        With `run=`, call it on every rank at the same step: the first to draw the next batch
        decides for all.

        Args:
            version: the version, or a reference such as `main`.
        """
        if self._decisions is not None:
            self._ahead.drop()  # a thread that decides must see all of a change or none
        is_other = self.feed.follow(self._step, version, keep=self._decisions is not None)
        if is_other or self._decisions is not None:
            self._change()  # that nothing else is read is a decision, too
        for mixture in self.mixtures:
            mixture.follow_stream(self, version)

    def wait_for(self, offset: int, server: str | None = None, timeout: float = 30.0) -> None:
        """Reads, from the next batch on, a version with all that a service acknowledged so far.

        With `run=`, call it on every rank at the same step, as `follow`.

        Args:
            offset: as `RolloutClient.push` returned it; that knows its server.
            server: whose offset it is, if it does not say.
            timeout: seconds until the service has sealed it.

        Raises:
            UsageError: if nobody says whose offset it is.
            OutOfTimeError: if no version has it in time.
        """
        known = server or getattr(offset, "server", None)
        if known is None:
            raise UsageError(
                f"Expected an offset that knows its server, came {offset}; name it with server=."
            )
        branch = self.config.follow or self.version.branch
        self.follow(wait_for(self.feed.store, branch, offset, known, timeout))

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

    # -- for other programs --------------------------------------------------------------------

    def rows(self, numbers: np.ndarray) -> Any:
        """Returns transitions by number, as a batch; which come next does not change.

        Args:
            numbers: (n,) int64 in [0, `transitions`), n at least 1.
        """
        opened = self.feed.at(self._step)
        sent = self._carrier.send(packed(opened, Drawn(numbers[None])))
        found = unpacked(opened, self._carrier.receive(sent))
        batch = split_batches(found, self._carrier.split)[0]
        return batch if self._output.is_plain else self._output(batch, self._step)

    def as_map_dataset(self) -> TransitionDataset:
        """Returns what is drawn from, by number, for a `DataLoader` with a sampler of its own.

        Raises:
            UsageError: for another sampler than `transition` or `window`, and with goals or random
                images, which are drawn for batches.
            MissingExtraError: if torch is not installed.
        """
        return map_dataset(self)

    # -- state ---------------------------------------------------------------------------------

    def _position(self) -> dict[str, Any]:
        priorities = self._current_priorities()
        told = {} if priorities is None else {"priorities": priorities.state()}
        return {**self._identity(), "step": self._step, "versions": self.feed.history(), **told}

    def _load_position(self, state: Mapping[str, Any]) -> None:
        self._forget()
        self.feed.load_history(state["versions"])
        self._step = int(state["step"])
        if self._decisions is not None:
            self._decisions.resume(self._step)
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
        asked = self._asked(opened, self._step, 8)
        drawn = sampler_named(config.sampler).draw(asked, opened.index, opened.table)
        return (
            f"Draws {describe_draw(opened)}, with seed {config.seed}, from step {self._step} on: "
            f"{config.batch_size} rows per global batch, of which rank {config.rank} of "
            f"{config.world_size} takes rows {share.start} to {share.stop - 1}. "
            f"{describe_spread(opened, asked, drawn)}{describe_version(opened)}"
            f"{self._carrier.says}{self._output.describe()}"
            f"{said_run(self.config.run, [self.config])}"
        )

    # -- within --------------------------------------------------------------------------------

    def _sources(self) -> list[StreamConfig]:
        return [self.config]

    def _gather(self, step: int) -> tuple[int, _Gathered]:
        config, opened = self.config, self.feed.at(step)
        mine = plan.share(config.batch_size, config.rank, config.world_size)
        most = gathered_at_once(opened, mine.stop - mine.start)
        if self._decisions is not None:
            self._decisions.settle(step, most * self._stride)
            opened = self.feed.at(step)
        elif config.follow is not None:
            raise without_run(config.follow)
        # A window holds no more chunks at a time for a stream that leaves out batches.
        ahead = most * (self._stride if opened.windowed is None else 1)
        drawn = draw(opened, self._asked(opened, step, self.feed.steps_left(step, ahead)))
        drawn = drawn.pick(lambda rows: rows[:: self._stride, mine])
        steps = len(drawn.numbers) * self._stride
        return steps, (opened, self._carrier.send(packed(opened, drawn)))

    def _received(self, gathered: _Gathered) -> Mapping[str, Any]:
        opened, sent = gathered
        return unpacked(opened, self._carrier.receive(sent))

    def _asked(self, opened: OpenVersion, step: int, steps: int) -> Draw:
        size = self.config.batch_size
        since = step - self.feed.since(step)
        before = (since + np.arange(steps)) * size
        priorities = self._current_priorities()
        return Draw(self.config.seed, 0, step, steps, size, before, priorities)

    def _current_priorities(self) -> Priorities | None:
        if self.config.sampler != "prioritised":
            return None
        self._priorities = priorities_for(self.feed.at(self._step), self._priorities)
        return self._priorities


def _reopened(
    version: Version,
    settings: Mapping[str, Any],
    position: Mapping[str, Any],
    known: Mapping[str, FieldStatistics],
    stride: int,
) -> Stream:
    """A stream as it was in another process."""
    return Stream(version, **settings)._moved(position, known, stride)
