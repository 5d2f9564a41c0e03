"""Several streams in fixed proportion, with exact counts in every global batch.

The counts are a pure function of the step (`shares`), and each source is drawn from as a stream of
its own, so a mixture keeps the promise of a stream: the same rows on any number of ranks and after
a resume.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from pipeline.store.reader import Version
from pipeline.stream import plan
from pipeline.stream.alike import check_forms, joint_config
from pipeline.stream.batches import columns, draw, gathered_at_once
from pipeline.stream.carry import packed, packed_parts, unpacked_parts
from pipeline.stream.counts import Counts, Mixed, interleave, own_rows, row_order
from pipeline.stream.endless import STATE_FORMAT, Endless
from pipeline.stream.loader import Stream
from pipeline.stream.mixture_sources import apart, of_streams, pairs
from pipeline.stream.priorities import (
    AllGather,
    Priorities,
    as_array,
    gathering,
    priorities_for,
)
from pipeline.stream.provenance import Decisions, said_run, without_run
from pipeline.stream.samplers import Draw, Drawn
from pipeline.stream.shares import Anneal, Annealed, Shares, exact_weight, mixed_shares
from pipeline.stream.source import OpenVersion
from pipeline.stream.words import describe_draw, describe_version
from schemas.errors import ConfigError, UsageError
from schemas.stream import StreamConfig
from schemas.transforms import FieldStatistics

_Gathered = tuple[list[OpenVersion], np.ndarray, Any]
"""A version of each source, where rows stand in their order, and what a carrier sent."""
Columns = Callable[[OpenVersion, Drawn], dict[str, np.ndarray]]


class Mixture(Endless):
    """Batches drawn from several streams at once, endlessly.

    The streams say what is drawn and how; the mixture has its own order, size and position. Rows
    of the sources stand interleaved, so that every rank gets its share of each. A version that
    one of the streams is told to follow is followed here from the mixture's next batch on.

    Args:
        sources: streams with their weights; a mixture among them counts as its streams.
        batch_size: rows of the global batch.
        seed: the order.
        demonstration: which sources count as demonstrations; by default the first alone.
        anneal: (steps, start, end): weights that move in a straight line over so many batches, in
            place of those of the sources. Each end is one weight per source, or one number: the
            share of the first source, while the others keep their weights among them.
        run: name of the run that decides versions and weights for all ranks; it follows the
            branches that streams were told to `follow=`.

    Raises:
        UsageError: if the streams' batches differ in form.
        ConfigError: for weights or flags that do not fit.
    """

    def __init__(
        self,
        sources: Sequence[tuple[Stream | Mixture, float | Fraction]],
        batch_size: int = 256,
        seed: int = 0,
        *,
        demonstration: Sequence[bool] | None = None,
        anneal: Anneal | None = None,
        run: str | None = None,
    ) -> None:
        sources = pairs(sources)
        members = list(apart(sources, demonstration))
        self.streams = [stream for stream, _, _ in members]
        self._flags = [flag for _, _, flag in members]
        config = joint_config(self.streams, batch_size, seed)
        self._shares = mixed_shares(
            [weight for _, weight, _ in members], batch_size, of_streams(sources, anneal)
        )
        self._counts = Counts(self._shares, len(members))
        # The streams' own positions and histories stay theirs.
        feeds = [stream.feed.fork(stream.step) for stream in self.streams]
        self.run = run
        mixed = Mixed(self._shares, self._counts, batch_size, seed)
        decisions = None if run is None else Decisions(run, feeds, self._sources(), mixed)
        super().__init__(config, feeds, decisions, min(one.config.ahead for one in self.streams))
        self._priorities: list[Priorities | None] = [None] * len(members)
        check_forms(self._draw(0, 1))
        for stream in self.streams:
            stream.mixtures.add(self)

    def __reduce__(self) -> tuple[object, ...]:
        shares = self._shares
        anneal = (shares.steps, shares.start, shares.end) if isinstance(shares, Annealed) else None
        weights = shares.weights if anneal is None else [Fraction(1)] * len(self.streams)
        sources = list(zip(self.streams, weights, strict=True))
        made = (sources, self.config.batch_size, self.config.seed, self._flags, anneal, self.run)
        return _reopened, (made, self._position(), self._output.known(), self._stride)

    @property
    def members(self) -> list[tuple[Version, StreamConfig]]:
        """The versions that the next batch is drawn from, and how."""
        pairs = zip(self._feeds, self.streams, strict=True)
        return [(feed.at(self._step).version, stream.config) for feed, stream in pairs]

    @property
    def transitions(self) -> list[int]:
        """Number of transitions of each source that the next batch is drawn from."""
        return [len(feed.at(self._step).index) for feed in self._feeds]

    def parts(self) -> list[tuple[Stream, Fraction]]:
        """Returns the streams with their weights in the next batch.

        Raises:
            ConfigError: where weights are annealed.
        """
        if isinstance(self._shares, Annealed):
            raise ConfigError("Expected a mixture with still weights, came an annealed one.")
        return list(zip(self.streams, self._counts.shares(self._step).weights, strict=True))

    def counts(self, step: int) -> list[int]:
        """Returns how many rows of each source a global batch holds."""
        return list(self._counts.at(step))

    def update_priorities(
        self, indices: Any, priorities: Any, all_gather: AllGather | None = None
    ) -> None:
        """Tells the sources that are drawn by priorities of new ones, once after each batch.

        Args:
            indices: (rows,) of the batch that came last, all of its rows as they stand.
            priorities: (rows,) finite and not negative; those of other sources are not read.
            all_gather: as for `Stream.update_priorities`.

        Raises:
            UsageError: if no source is drawn by priorities, no batch came yet, or the arrays are
                not of the last batch.
        """
        found = self._current_priorities(self._step)
        if self._step == 0 or not any(found):
            raise UsageError(
                "Expected a mixture with a source of sampler='prioritised' that has yielded a "
                "batch, came another."
            )
        gather = gathering(all_gather, self.config.world_size)
        mine = (as_array(indices), as_array(priorities))
        every = [mine] if gather is None else gather(mine)
        positions, values = (np.concatenate([part[k] for part in every]) for k in (0, 1))
        owners = interleave(self._counts.at(self._step - 1))
        if not len(positions) == len(values) == len(owners):
            raise UsageError(
                f"Expected one index and one priority for each of {len(owners)} rows of the last "
                f"batch, came {len(positions)} and {len(values)}."
            )
        for source, one in enumerate(found):
            if one is not None:
                one.update(positions[owners == source], values[owners == source])

    def follow(self, version: Version | str, source: int = -1) -> None:
        """Reads another version of one source's store from the next batch on.

        With `run=`, call it on every rank at the same step: the first to draw the next batch
        decides for all.

        Args:
            version: the version, or a reference such as `main`.
            source: which one; the last by default, where online data usually stands.

        Raises:
            UsageError: if there is no such source, or the version is of another store or has
                other fields.
            NotFoundError: if there is no such version.
        """
        if not -len(self._feeds) <= source < len(self._feeds):
            raise UsageError(
                f"Expected one of {len(self._feeds)} sources, counted from 0, came {source}."
            )
        if self._decisions is not None:
            self._ahead.drop()  # a thread that decides must see all of a change or none
        is_other = self._feeds[source].follow(self._step, version, keep=self._decisions is not None)
        if is_other or self._decisions is not None:
            self._change()  # that nothing else is read is a decision, too

    def reweigh(self, weights: Sequence[float | Fraction]) -> None:
        """Mixes by other weights from the next batch on; with `run=`, as for `follow`.

        Args:
            weights: of the streams, in their order; those of a mixture within count one by one.

        Raises:
            ConfigError: for weights that do not fit, or where weights are annealed.
        """
        if isinstance(self._shares, Annealed):
            raise ConfigError("Expected a mixture with still weights, came an annealed one.")
        if len(weights) != len(self.streams):
            raise ConfigError(
                f"Expected one weight for each of {len(self.streams)} streams, came "
                f"{list(weights)}."
            )
        exact = [exact_weight(weight) for weight in weights]
        shares = Shares(exact, self.config.batch_size)
        if shares.weights != self._counts.shares(self._step).weights:
            self._forget()
            self._counts.change(self._step, shares, keep=self._decisions is not None)
            self._change()

    def follow_stream(self, stream: Stream, version: Version | str) -> None:
        """Follows what one of the mixed streams follows."""
        for source, member in enumerate(self.streams):
            if member is stream:
                self.follow(version, source)

    # -- state ---------------------------------------------------------------------------------

    def _position(self) -> dict[str, Any]:
        histories = [feed.history() for feed in self._feeds]
        found = self._current_priorities(self._step)
        told = {"priorities": [one and one.state() for one in found]} if any(found) else {}
        changed = self._counts.state()
        weights = {"reweighed": changed} if changed else {}
        position = {"step": self._step, "versions": histories}
        return {**self._identity(), **position, **weights, **told}

    def _load_position(self, state: Mapping[str, Any]) -> None:
        self._forget()
        for feed, history in zip(self._feeds, state["versions"], strict=True):
            feed.load_history(history)
        self._step = int(state["step"])
        self._counts.load(state.get("reweighed", {}), self.config.batch_size)
        if self._decisions is not None:
            self._decisions.resume(self._step)
        told = state.get("priorities") or [None] * len(self._feeds)
        self._priorities = [
            priorities_for(feed.at(self._step), None, one)
            for feed, one in zip(self._feeds, told, strict=True)
        ]

    def _identity(self) -> dict[str, Any]:
        return {
            "format": STATE_FORMAT,
            "stores": [feed.store_id for feed in self._feeds],
            "specs": [feed.spec for feed in self._feeds],
            "samplers": [stream.config.sampler for stream in self.streams],
            "settings": [stream.config.order() for stream in self.streams],
            "weights": [str(weight) for weight in self._shares.weights],
            "anneal": self._shares.said(),
            "batch_size": self.config.batch_size,
            "seed": self.config.seed,
        }

    # -- words ---------------------------------------------------------------------------------

    def describe(self) -> str:
        """Says what is mixed in which proportion, and from where."""
        config, shares = self.config, self._counts.shares(self._step)
        weights = shares.at(self._step) if isinstance(shares, Annealed) else shares.weights
        parts = [
            f"{float(weight):.4g} of each batch ({'demonstrations' if flag else 'others'}) "
            f"{describe_draw(feed.at(self._step))}: {describe_version(feed.at(self._step))}"
            for weight, flag, feed in zip(weights, self._flags, self._feeds, strict=True)
        ]
        if isinstance(self._shares, Annealed):
            ends = ", ".join(f"{float(weight):.4g}" for weight in self._shares.end)
            parts.append(f"Until step {self._shares.steps} these shares move to {ends}.")
        return (
            f"Mixes {len(self.streams)} sources with seed {config.seed}, {config.batch_size} rows "
            f"per global batch, rank {config.rank} of {config.world_size}. "
            + " ".join(parts)
            + self._carrier.says
            + self._output.describe()
            + said_run(self.run, self._sources())
        )

    # -- within --------------------------------------------------------------------------------

    def _sources(self) -> list[StreamConfig]:
        return [stream.config for stream in self.streams]

    def _gather(self, step: int) -> tuple[int, _Gathered]:
        config = self.config
        opened = [feed.at(step) for feed in self._feeds]
        rows = config.batch_size // config.world_size
        steps = min(gathered_at_once(one, rows) for one in opened)
        if self._decisions is not None:
            self._decisions.settle(step, steps * self._stride)
            opened = [feed.at(step) for feed in self._feeds]
        for source in self._sources():
            if self._decisions is None and source.follow is not None:
                raise without_run(source.follow)
        for feed in self._feeds:
            steps = feed.steps_left(step, steps)
        if self._stride > 1:
            steps = 1  # what is drawn together is of batches that follow each other
        parts = self._draw(step, steps, packed)
        counts = [self._counts.at(one) for one in range(step, step + steps)]
        order = row_order(counts, self._share)
        sent = self._carrier.send(packed_parts(opened, parts, order))
        return steps * self._stride, (opened, order, sent)

    def _received(self, gathered: _Gathered) -> Mapping[str, Any]:
        opened, order, sent = gathered
        return unpacked_parts(opened, self._carrier.receive(sent), order)

    def _draw(self, step: int, steps: int, make: Columns = columns) -> list[dict[str, np.ndarray]]:
        """Rows of each source for some steps on this rank, one step after the other."""
        drawn = []
        size, before = self.config.batch_size, self._before(step, steps)
        priorities = self._current_priorities(step)
        mine = [own_rows(self._counts.at(one), self._share) for one in range(step, step + steps)]
        for source, feed in enumerate(self._feeds):
            opened = feed.at(step)
            asked = Draw(
                self.config.seed,
                source + 1,
                step,
                steps,
                size,
                before[:, source],
                priorities[source],
            )
            ranges = [rows[source] for rows in mine]
            chosen = draw(opened, asked).pick(functools.partial(_picked, ranges=ranges))
            found = make(opened, chosen)
            found["is_demonstration"] = np.full(len(found["indices"]), self._flags[source])
            drawn.append(found)
        real = np.float64 if self.config.dtype == "float64" else np.float32
        if any("weights" in found for found in drawn):
            for found in drawn:  # a source that is drawn from evenly needs no correction
                found.setdefault("weights", np.ones(len(found["indices"]), real))
        return drawn

    @property
    def _share(self) -> slice:
        """Which rows of a global batch this rank takes."""
        config = self.config
        return plan.share(config.batch_size, config.rank, config.world_size)

    def _before(self, step: int, steps: int) -> np.ndarray:
        """Rows drawn of each source's version before each batch, (steps, sources) int64."""
        if all(stream.config.sampler != "shuffle" for stream in self.streams):
            return np.zeros((steps, len(self.streams)), np.int64)  # nothing else asks
        since = [
            self._counts.before(feed.since(step))[source] for source, feed in enumerate(self._feeds)
        ]
        found = [self._counts.before(step + k) for k in range(steps)]
        before: np.ndarray = np.array(found, np.int64) - np.array(since)
        return before

    def _current_priorities(self, step: int) -> list[Priorities | None]:
        self._priorities = [
            priorities_for(feed.at(step), before)
            for feed, before in zip(self._feeds, self._priorities, strict=True)
        ]
        return self._priorities


def _reopened(
    made: tuple[Any, ...],
    position: Mapping[str, Any],
    known: Mapping[str, FieldStatistics],
    stride: int,
) -> Mixture:
    """A mixture as it was in another process."""
    sources, batch_size, seed, flags, anneal, run = made
    mixture = Mixture(sources, batch_size, seed, demonstration=flags, anneal=anneal, run=run)
    return mixture._moved(position, known, stride)


def _picked(rows: np.ndarray, ranges: Sequence[slice]) -> np.ndarray:
    """Some rows of each step, one step after the other."""
    return np.concatenate([rows[row, part] for row, part in enumerate(ranges)])
