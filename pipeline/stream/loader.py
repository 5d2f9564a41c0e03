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
from pipeline.stream.batches import Batch, Split, columns, rows_per_gather, split_batches
from pipeline.stream.feed import Feed
from pipeline.stream.samplers import Draw, sampler_named
from pipeline.stream.source import OpenVersion
from schemas.errors import ConfigError, missing_extra
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

    Every argument but the first is a setting of `schemas.stream.StreamConfig`.

    Args:
        data: `STORE@REF`, or an open version.
        sampler: how samples are drawn.
        batch_size: rows of the global batch; this rank yields its share of them.
        seed: the order.
        rank: number of this share.
        world_size: how many shares there are.
        device: where tensors end up.
        residency: `auto`, `mmap` or `ram`.
        framework: `torch` or `numpy`.
        fields: full names of the fields to stream; None takes all but extras.
        spec: which spec, where the version holds several.
        discount: gamma.
        dtype: what floating-point fields are cast to, or `keep`.
        episode_ids: whether batches name their episodes.
        cache_dir: folder of the packed cache.
        verify: whether cached blocks are compared with their checksums.

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
    ) -> None:
        self.config = stream_config(
            {
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
        self._sampler = sampler_named(self.config.sampler)
        self._split = splitter(self.config)
        version = data if isinstance(data, Version) else open_version(str(data))
        self.feed = Feed(version, self.config)
        self.mixtures: WeakSet[Follower] = WeakSet()
        """Mixtures that this stream is part of."""
        self._step = 0
        self._ready: list[Batch] = []  # gathered batches, the next one last

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

    # -- state ---------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Returns where the stream is, as plain numbers, texts and lists."""
        return {**self._identity(), "step": self._step, "versions": self.feed.history()}

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
        self.feed.at(self._step)

    def _identity(self) -> dict[str, Any]:
        config = self.config
        return {
            "format": STATE_FORMAT,
            "store": self.feed.store_id,
            "spec": self.feed.spec,
            "sampler": config.sampler,
            "batch_size": config.batch_size,
            "seed": config.seed,
        }

    # -- words ---------------------------------------------------------------------------------

    def describe(self) -> str:
        """Says what is sampled, from which version, where it lies, and what was cast."""
        config, opened = self.config, self.feed.at(self._step)
        share = plan.share(config.batch_size, config.rank, config.world_size)
        return (
            f"Draws {self._sampler.says}, with seed {config.seed}, from step {self._step} on: "
            f"{config.batch_size} rows per global batch, of which rank {config.rank} of "
            f"{config.world_size} takes rows {share.start} to {share.stop - 1}. "
            f"{describe_version(opened, config)}"
        )

    # -- within --------------------------------------------------------------------------------

    def _gather(self) -> list[Batch]:
        config, opened = self.config, self.feed.at(self._step)
        mine = plan.share(config.batch_size, config.rank, config.world_size)
        most = rows_per_gather(opened.layout.size, mine.stop - mine.start)
        steps = self.feed.steps_left(self._step, most)
        asked = Draw(config.seed, 0, self._step, steps, config.batch_size)
        numbers = self._sampler.draw(asked, opened.index)[:, mine]
        batches = split_batches(columns(opened, numbers, config), self._split)
        batches.reverse()
        return batches


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


def describe_version(opened: OpenVersion, config: StreamConfig) -> str:
    """Says in words what of a version is streamed, from where and how cast."""
    version, index, layout = opened.version, opened.index, opened.layout
    left_out = (
        f", {index.left_out} last steps left out because they were cut off and their next "
        f"observation is not known"
        if index.left_out
        else ""
    )
    if index.not_kept:
        left_out += f", {index.not_kept:,} more outside the steps that are kept"
    cast = [
        f"{field.name} from {np.dtype(field.source_dtype)} to {np.dtype(field.dtype)}"
        for field in layout.fields
        if field.dtype != field.source_dtype
    ]
    lacks = f" Some episodes have no {' and no '.join(sorted(opened.lacks))}." * bool(opened.lacks)
    if opened.added:
        lacks += f" Added to steps, and laid over what came: {', '.join(sorted(opened.added))}."
    if opened.not_streamed:
        lacks += f" Not streamed, as rows differ in size: {', '.join(opened.not_streamed)}."
    return (
        f"Version {version.branch}:{version.number} ({version.id[:8]}) of {version.store.url}: "
        f"{len(index):,} transitions of {len(index.episode_ids):,} episodes{left_out}. "
        f"Rows are read from {opened.place}, {layout.size} bytes each. "
        f"Cast: {', '.join(cast) or 'nothing'}.{lacks} Discount {config.discount}."
    )


def check_identity(mine: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Refuses the state of a stream that has another order.

    Raises:
        ConfigError: naming what differs or is missing.
    """
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
