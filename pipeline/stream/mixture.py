"""Several streams in fixed proportion, with exact counts in every global batch.

The counts are a pure function of the step (`shares`), and each source is drawn from as a stream of
its own, so a mixture keeps the promise of a stream: the same rows on any number of ranks and after
a resume.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from pipeline.store.reader import Version
from pipeline.stream import plan
from pipeline.stream.batches import Batch, columns, rows_per_gather, split_batches
from pipeline.stream.loader import (
    STATE_FORMAT,
    Stream,
    check_identity,
    describe_version,
    splitter,
)
from pipeline.stream.samplers import Draw, sampler_named
from pipeline.stream.shares import Shares, exact_weight, interleave
from schemas.errors import ConfigError, UsageError
from schemas.stream import StreamConfig, stream_config

_SHARED = ("rank", "world_size", "device", "framework", "discount", "dtype")


class Mixture:
    """Batches drawn from several streams at once, endlessly.

    The streams say what is drawn and how; the mixture has its own order, size and position. Rows
    of the sources stand interleaved, so that every rank gets its share of each. A version that
    one of the streams is told to follow is followed here from the mixture's next batch on.

    Args:
        sources: streams with their weights; a mixture among them counts as its streams.
        batch_size: rows of the global batch.
        seed: the order.
        demonstration: which sources count as demonstrations; by default the first alone.

    Raises:
        UsageError: if the streams' batches differ in form.
        ConfigError: for weights or flags that do not fit.
    """

    def __init__(
        self,
        sources: Sequence[tuple[Stream | Mixture, float]],
        batch_size: int = 256,
        seed: int = 0,
        *,
        demonstration: Sequence[bool] | None = None,
    ) -> None:
        flags = [k == 0 for k in range(len(sources))] if demonstration is None else demonstration
        if len(flags) != len(sources):
            raise ConfigError(
                f"Expected one demonstration flag for each of {len(sources)} streams, came "
                f"{list(flags)}."
            )
        members = list(_members(sources, flags))
        self.streams = [stream for stream, _, _ in members]
        self._flags = [flag for _, _, flag in members]
        self.config = _joint_config(self.streams, batch_size, seed)
        self._shares = Shares([weight for _, weight, _ in members], batch_size)
        # The streams' own positions and histories stay theirs.
        self._feeds = [stream.feed.fork(stream.step) for stream in self.streams]
        self._samplers = [sampler_named(stream.config.sampler) for stream in self.streams]
        self._split = splitter(self.config)
        self._step = 0
        self._ready: list[Batch] = []  # gathered batches, the next one last
        _check_forms(self._draw(0, 1))
        for stream in self.streams:
            stream.mixtures.add(self)

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
    def members(self) -> list[tuple[Version, StreamConfig]]:
        """The versions that the next batch is drawn from, and how."""
        pairs = zip(self._feeds, self.streams, strict=True)
        return [(feed.at(self._step).version, stream.config) for feed, stream in pairs]

    def counts(self, step: int) -> list[int]:
        """Returns how many rows of each source a global batch holds."""
        return list(self._shares.counts(step))

    def follow(self, version: Version | str, source: int = -1) -> None:
        """Reads another version of one source's store from the next batch on.

        Args:
            version: the version, or a reference such as `main`.
            source: which one; the last by default, where online data usually stands.
        """
        if self._feeds[source].follow(self._step, version):
            self._ready = []

    def follow_stream(self, stream: Stream, version: Version | str) -> None:
        """Follows what one of the mixed streams follows."""
        for source, member in enumerate(self.streams):
            if member is stream:
                self.follow(version, source)

    # -- state ---------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Returns where the mixture is, as plain numbers, texts and lists."""
        histories = [feed.history() for feed in self._feeds]
        return {**self._identity(), "step": self._step, "versions": histories}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues where a state was taken, on any number of ranks.

        Raises:
            ConfigError: if the state is of a mixture with another order.
            NotFoundError: if a store no longer has a version.
        """
        check_identity(self._identity(), state)
        for feed, history in zip(self._feeds, state["versions"], strict=True):
            feed.load_history(history)
        self._step = int(state["step"])
        self._ready = []
        for feed in self._feeds:
            feed.at(self._step)

    def _identity(self) -> dict[str, Any]:
        return {
            "format": STATE_FORMAT,
            "stores": [feed.store_id for feed in self._feeds],
            "specs": [feed.spec for feed in self._feeds],
            "samplers": [sampler.name for sampler in self._samplers],
            "weights": [str(weight) for weight in self._shares.weights],
            "batch_size": self.config.batch_size,
            "seed": self.config.seed,
        }

    # -- words ---------------------------------------------------------------------------------

    def describe(self) -> str:
        """Says what is mixed in which proportion, and from where."""
        config = self.config
        parts = [
            f"{float(weight):.4g} of each batch ({'demonstrations' if flag else 'others'}) "
            f"{sampler.says}: {describe_version(feed.at(self._step), stream.config)}"
            for weight, flag, sampler, feed, stream in zip(
                self._shares.weights,
                self._flags,
                self._samplers,
                self._feeds,
                self.streams,
                strict=True,
            )
        ]
        return (
            f"Mixes {len(parts)} sources with seed {config.seed}, {config.batch_size} rows per "
            f"global batch, rank {config.rank} of {config.world_size}. " + " ".join(parts)
        )

    # -- within --------------------------------------------------------------------------------

    def _gather(self) -> list[Batch]:
        config = self.config
        opened = [feed.at(self._step) for feed in self._feeds]
        widest = max(one.layout.size for one in opened)
        steps = rows_per_gather(widest, config.batch_size // config.world_size)
        for feed in self._feeds:
            steps = feed.steps_left(self._step, steps)
        drawn, order = self._draw(self._step, steps), self._order(self._step, steps)
        names = drawn[0]
        joined = {name: np.concatenate([found[name] for found in drawn])[order] for name in names}
        batches = split_batches(joined, self._split)
        batches.reverse()
        return batches

    def _draw(self, step: int, steps: int) -> list[dict[str, np.ndarray]]:
        """Rows of each source for some steps on this rank, one step after the other."""
        drawn = []
        for source, (feed, sampler, stream) in enumerate(
            zip(self._feeds, self._samplers, self.streams, strict=True)
        ):
            opened = feed.at(step)
            asked = Draw(self.config.seed, source + 1, step, steps, self.config.batch_size)
            numbers = sampler.draw(asked, opened.index)
            ranges = [self._mine(one)[source] for one in range(step, step + steps)]
            mine = [numbers[row, part] for row, part in enumerate(ranges)]
            found = columns(opened, np.concatenate(mine), stream.config)
            found["is_demonstration"] = np.full(len(found["mask"]), self._flags[source])
            drawn.append(found)
        return drawn

    def _mine(self, step: int) -> list[slice]:
        """Which rows of each source this rank takes of a global batch."""
        counts = self._shares.counts(step)
        owners = interleave(counts)
        share = plan.share(self.config.batch_size, self.config.rank, self.config.world_size)
        before = np.bincount(owners[: share.start], minlength=len(counts))
        until = np.bincount(owners[: share.stop], minlength=len(counts))
        return [slice(int(a), int(b)) for a, b in zip(before, until, strict=True)]

    def _order(self, step: int, steps: int) -> np.ndarray:
        """Where each row of this rank's batches stands in the joined draws, (steps, rows)."""
        share = plan.share(self.config.batch_size, self.config.rank, self.config.world_size)
        owners = np.stack(
            [interleave(self._shares.counts(one))[share] for one in range(step, step + steps)]
        )
        # Draws of one source follow each other in this very order, source after source.
        order = np.empty(owners.size, np.int64)
        order[np.argsort(owners.reshape(-1), kind="stable")] = np.arange(owners.size)
        return order.reshape(owners.shape)


def _members(
    sources: Sequence[tuple[Stream | Mixture, float]], flags: Sequence[bool]
) -> Iterator[tuple[Stream, Fraction, bool]]:
    """Streams with weight and flag; a mixture's streams share its weight and take its flag."""
    for (source, weight), flag in zip(sources, flags, strict=True):
        outer = exact_weight(weight)
        if isinstance(source, Mixture):
            for stream, inner in zip(source.streams, source._shares.weights, strict=True):
                yield stream, outer * inner, bool(flag)
        else:
            yield source, outer, bool(flag)


def _joint_config(streams: Sequence[Stream], batch_size: int, seed: int) -> StreamConfig:
    if not streams:
        raise ConfigError("Expected at least one stream to mix, came none.")
    first = streams[0].config
    for stream in streams:
        for name in _SHARED:
            mine, came = getattr(first, name), getattr(stream.config, name)
            if mine != came:
                raise UsageError(
                    f"Expected streams with the same {name}, came {mine!r} and {came!r}."
                )
    return stream_config({**first.model_dump(), "batch_size": batch_size, "seed": seed})


def _check_forms(drawn: Sequence[Mapping[str, np.ndarray]]) -> None:
    forms = [{name: (a.dtype, a.shape[1:]) for name, a in found.items()} for found in drawn]
    for form in forms[1:]:
        differing = [n for n in sorted(forms[0] | form) if forms[0].get(n) != form.get(n)]
        if differing:
            name = differing[0]
            raise UsageError(
                f"Expected streams with equal fields, came {name!r} as "
                f"{_said(forms[0].get(name))} and {_said(form.get(name))}; choose common ones "
                f"with fields=."
            )


def _said(form: tuple[np.dtype, tuple[int, ...]] | None) -> str:
    return "absent" if form is None else f"{form[0]}{list(form[1])}"
