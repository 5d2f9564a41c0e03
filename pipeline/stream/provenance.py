"""What a run reads from which step on: decided once for all ranks, and kept where the data are.

Each store learns which of its versions a run reads, so that collection keeps them and people find
the run from the data. The first rank that comes to a step at which something may change says what
it sees; that is the decision, and every rank, a resumed run and a replay read it from the store. A
step is decided before any rank gathers rows of it, so all change at the same one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from pipeline.store import runs
from pipeline.store.reader import Version
from pipeline.store.runs import MixtureReference, RunReference
from pipeline.stream.feed import Feed
from pipeline.stream.newest import newest
from schemas.errors import AccessDeniedError, ConfigError, UsageError
from schemas.stream import StreamConfig

_PLACES = frozenset(
    {
        *("device", "residency", "memory", "device_memory", "prefetch", "cache_dir", "verify"),
        *("framework", "output", "rank", "world_size", "run", "follow", "follow_every"),
        *("service", "min_offset"),
    }
)
"""Settings that change where rows are or what else is told of them, not which they are."""

_ROWS = frozenset(
    {
        *("sampler", "batch_size", "seed", "spec", "weights", "shuffle_window", "returns"),
        *("window", "history", "action_chunk", "frame_stack", "pad"),
        *("priority_alpha", "priority_beta"),
    }
)
"""Settings that decide which rows are drawn."""


class Mixed(Protocol):
    """What a mixture adds to its streams."""

    def reference(self, sources: Sequence[int], step: int) -> MixtureReference:
        """Returns how some of its sources are mixed from a step on."""
        ...

    def decide(self, step: int, mixture: MixtureReference) -> None:
        """Mixes so from a step on."""
        ...


class Decisions:
    """What one run has decided so far, and how it decides more.

    Args:
        run: its name.
        feeds: one per stream, in their order; they are told what is decided.
        configs: how each stream draws.
        mixed: how they are mixed, if they are.

    Raises:
        ConfigError: if the run is known, and draws in another way.
        NotFoundError, FilesExpiredError: if a version that it reads is gone, or a branch that a run
            begins to follow is not there.
        DamagedStoreError: if a decision cannot be read.
    """

    def __init__(
        self,
        run: str,
        feeds: Sequence[Feed],
        configs: Sequence[StreamConfig],
        mixed: Mixed | None = None,
    ) -> None:
        self.run = run
        self._feeds, self._configs, self._mixed = feeds, configs, mixed
        self._stores: dict[str, list[int]] = {}
        for source, feed in enumerate(feeds):
            self._stores.setdefault(feed.store_id, []).append(source)
        self._decided: set[int] = set()
        self._due: int | None = None
        """A step of which something was said that is not decided yet."""
        self.load()
        if not self._decided:
            for feed, config in zip(feeds, configs, strict=True):
                feed.at(0)  # what cannot be read is not decided
                if config.follow is not None:
                    feed.named(config.follow)  # a name that is mistaken is told now
            self._decide(0)

    def load(self) -> None:
        """Reads what is decided so far, so that the feeds apply it."""
        known: dict[int, int] = {}
        for store_id, sources in self._stores.items():
            for reference in runs.decided(self._feeds[sources[0]].store.catalog, self.run):
                self._apply(store_id, reference)
                known[reference.step] = known.get(reference.step, 0) + 1
        # A step of which a store knows nothing yet is decided there when it is come to.
        self._decided = {step for step, stores in known.items() if stores == len(self._stores)}

    def resume(self, step: int) -> None:
        """Goes on at a step, from a state whose histories the feeds have loaded.

        Raises:
            ConfigError: if the run has decided otherwise.
        """
        # What is read from this very step on was perhaps decided after the state was taken.
        last = max(step - 1, 0)
        before = [feed.id_at(last) for feed in self._feeds]
        since = {feed.since(step) for feed in self._feeds}
        self.load()
        for feed, version in zip(self._feeds, before, strict=True):
            if step and feed.id_at(last) != version:
                raise ConfigError(
                    f"Expected a state of the run {self.run!r}, which reads "
                    f"{feed.id_at(last)[:12]} at step {last}, came one that reads {version[:12]}; "
                    f"choose another run name, or let go of this one (`penstock run forget`).",
                    where=feed.store_url,
                )
        self._due = None if since <= self._decided else step

    def change(self, step: int) -> None:
        """Says that something else is to be read from the next batch on."""
        self._due = step

    def settle(self, step: int, most: int) -> None:
        """Decides what is open about some batches, before their rows are gathered.

        Args:
            step: of the first.
            most: how many steps further on the last may be, and one.

        Raises:
            NotFoundError: if the branch that is followed is gone.
            UsageError: if its newest version has other fields.
            AccessDeniedError: if the store takes no references, and a branch of it is followed.
        """
        if self._due == step:
            self._decided.discard(step)
        open_steps = {step} if self._due == step else set()
        for every in {config.follow_every for config in self._configs if config.follow}:
            open_steps.update(range(max(-(-step // every), 1) * every, step + most, every))
        for one in sorted(open_steps - self._decided):
            self._decide(one)
        if self._due == step:
            self._due = None

    # -- within --------------------------------------------------------------------------------

    def _decide(self, step: int) -> None:
        # The store of the first stream has the last word on weights, so it is asked first.
        for store_id, sources in self._stores.items():
            reference = self._refer(step, sources)
            if reference is not None:
                self._apply(store_id, reference)
        self._decided.add(step)

    def _refer(self, step: int, sources: Sequence[int]) -> RunReference | None:
        """What is decided of one store's streams; None if the store takes no references."""
        catalog = self._feeds[sources[0]].store.catalog
        commits = [self._proposed(source, step).commit for source in sources]
        told = [settings(self._configs[source]) for source in sources]
        mixture = None if self._mixed is None else self._mixed.reference(sources, step)
        try:
            return runs.refer(catalog, self.run, step, commits, told, mixture)
        except AccessDeniedError as error:
            if all(self._configs[source].follow is None for source in sources):
                return None  # what is read stays, so nobody has to be told
            raise AccessDeniedError(
                f"Expected a store that takes the references of the run {self.run!r}, which "
                f"follows a branch of it, came one that this user may only read; leave out "
                f"follow=, or ask for the right to write refs/runs.",
                where=catalog.url,
            ) from error

    def _proposed(self, source: int, step: int) -> Version:
        """What this rank would have a stream read from a step on."""
        feed, config = self._feeds[source], self._configs[source]
        if config.follow is None or step == 0 or step % config.follow_every:
            return feed.version_at(step)
        version = newest(feed, config)
        feed.expect(version, step)
        return version

    def _apply(self, store_id: str, reference: RunReference) -> None:
        sources = self._stores[store_id]
        self._check(sources, reference)
        for source, ref in zip(sources, reference.versions, strict=True):
            self._feeds[source].decide(reference.step, ref)
        is_first = store_id == next(iter(self._stores))
        if is_first and self._mixed is not None and reference.mixture is not None:
            self._mixed.decide(reference.step, reference.mixture)

    def _check(self, sources: Sequence[int], reference: RunReference) -> None:
        """Refuses a run of another order: its decisions are not about these batches."""
        mine = [_order(settings(self._configs[source]), self._mixed) for source in sources]
        came = [_order(told, self._mixed) for told in reference.streams]
        if reference.mixture is not None:
            came.append(_said(reference.mixture))
            if self._mixed is not None:
                mine.append(_said(self._mixed.reference(sources, reference.step)))
        if mine != came:
            raise ConfigError(
                f"Expected the settings that the run {self.run!r} began with, {came}, came "
                f"{mine}; choose another run name for another order.",
                where=f"run {self.run}",
            )


def without_run(branch: str) -> UsageError:
    """Returns the error that says what following a branch needs."""
    return UsageError(
        f"Expected run=, a name under which the store keeps what was decided, beside "
        f"follow={branch!r}, came none; name the run of the stream, or of the mixture it is in."
    )


def said_run(run: str | None, configs: Sequence[StreamConfig]) -> str:
    """Says which run decides what is read, and what it follows."""
    if run is None:
        return ""
    followed = dict.fromkeys(
        f"the newest version of {config.follow} every {config.follow_every} steps"
        for config in configs
        if config.follow is not None
    )
    reads = f", and reads {' and '.join(followed)}" if followed else ""
    return f" The run {run!r} decides the versions for all ranks{reads}."


def settings(config: StreamConfig) -> dict[str, Any]:
    """Returns the settings that decide which rows a stream draws, as plain values."""
    return config.model_dump(mode="json", exclude=set(_PLACES), exclude_defaults=True)


def _order(told: Mapping[str, Any], mixed: Mixed | None) -> dict[str, Any]:
    """Settings without those that say what of the rows is told, or that a mixture has instead."""
    names = _ROWS if mixed is None else _ROWS - {"batch_size", "seed"}
    return {name: value for name, value in told.items() if name in names}


def _said(mixture: MixtureReference) -> dict[str, Any]:
    return mixture.model_dump(mode="json", exclude={"weights"})
