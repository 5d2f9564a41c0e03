"""Which runs drew an episode: could have, and exactly how often, long after.

What a run draws is a pure function of what its references say. So how often an episode was drawn
is counted by drawing again, many steps at once, from the versions' indices alone; no row is read.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow.compute as pc

from pipeline.store import runs
from pipeline.store.reader import Version
from pipeline.store.runs import MixtureReference, RunReference
from pipeline.store.store import Store
from pipeline.stream.counts import Counts
from pipeline.stream.samplers import Draw, sampler_named
from pipeline.stream.shares import Annealed, Shares
from pipeline.stream.source import open_order
from schemas.errors import NotFoundError, UsageError
from schemas.stream import StreamConfig, stream_config

WORDS_AT_ONCE = 1 << 20
"""Random words that are drawn in one go."""


@dataclass(frozen=True)
class Mixing:
    """Which rows of a mixture's batches one of its streams draws."""

    seed: int
    batch_size: int
    source: int
    """Number of the stream in its mixture."""
    counts: Counts


@dataclass(frozen=True)
class Reading:
    """One stream of a run, over the steps at which it reads one version."""

    run: str
    begin: int
    end: int | None
    """One past the last step; None if the run may go on."""
    version: Version
    config: StreamConfig
    mixture: Mixing | None


def could_draw(store: Store, episode_id: str) -> list[dict[str, Any]]:
    """Returns which runs could draw an episode, from and until which of their steps.

    Returns:
        Rows of `run, from_step, until_step` (None if still), `version` and `steps_share`, the
        episode's share of the version's steps.

    Raises:
        NotFoundError: if no version that any run read has the episode, nor the newest of a branch.
    """
    found = []
    for run in runs.runs(store.catalog):
        for reading in readings(store, run):
            table = reading.version.episodes(columns=["episode_id", "length"])
            at = pc.index(table["episode_id"], episode_id).as_py()
            if at < 0:
                continue
            steps = pc.sum(table["length"]).as_py()
            found.append(
                {
                    "run": run,
                    "from_step": reading.begin,
                    "until_step": reading.end,
                    "version": reading.version.id,
                    "steps_share": table["length"][at].as_py() / max(steps, 1),
                }
            )
    if not found:
        _check_known(store, episode_id)
    return found


def drew(
    store: Store, episode_id: str, until_step: int | None = None, run: str | None = None
) -> list[dict[str, Any]]:
    """Counts how often runs drew an episode: rows whose anchor is a step of it, goals aside.

    Args:
        store: that the runs read.
        episode_id: of the episode.
        until_step: one past the last step that counts; needed where a run may go on, as the store
            is not told how far a run came.
        run: its name; None counts all runs.

    Returns:
        Rows of `run, version, from_step, until_step, batches` and `rows`: how many global batches
        hold the episode, and how many of their rows are of it.

    Raises:
        NotFoundError: as for `could_draw`, or if there is no such run.
        UsageError: without `until_step` where it is needed, and for runs that draw by priorities,
            which are no function of what the store knows.
    """
    found = []
    for name in runs.runs(store.catalog) if run is None else [run]:
        for reading in readings(store, name):
            end = _end(reading, until_step)
            if end <= reading.begin or not _holds(reading.version, episode_id):
                continue
            batches, rows = _count(reading, episode_id, end)
            found.append(
                {
                    "run": name,
                    "version": reading.version.id,
                    "from_step": reading.begin,
                    "until_step": end,
                    "batches": batches,
                    "rows": rows,
                }
            )
    if not found:
        _check_known(store, episode_id)
    return found


def readings(store: Store, run: str) -> Iterator[Reading]:
    """Yields what each stream of a run reads, stream by stream, in the order of steps.

    Raises:
        NotFoundError: if there is no such run.
    """
    listed = runs.references(store.catalog, run)
    counts = _counts(listed)
    for number, told in enumerate(listed[0].streams):
        refs = [(one.step, one.versions[number]) for one in listed]
        parts = [list(part) for _, part in itertools.groupby(refs, key=lambda pair: pair[1].id)]
        ends = [part[0][0] for part in parts[1:]]
        for part, end in zip(parts, [*ends, None], strict=True):
            begin, ref = part[0]
            commit = store.catalog.refs.read(ref.branch, ref.number)
            yield Reading(
                run=run,
                begin=begin,
                end=end,
                version=Version(store.catalog, commit),
                config=stream_config(dict(told)),
                mixture=_mixing(listed[0].mixture, number, counts),
            )


def _mixing(mixture: MixtureReference | None, number: int, counts: Counts | None) -> Mixing | None:
    if mixture is None or counts is None:
        return None
    return Mixing(mixture.seed, mixture.batch_size, mixture.sources[number], counts)


def _end(reading: Reading, until: int | None) -> int:
    if reading.config.sampler == "prioritised":
        raise UsageError(
            f"Expected runs that are functions of what they read, came {reading.run!r}, which "
            f"draws by priorities; choose another with --run.",
        )
    if until is None and reading.end is None:
        raise UsageError(
            f"Expected --until-step, the number of batches that the run {reading.run!r} has "
            f"drawn, as a store is not told how far a run came; came none."
        )
    ends = [end for end in (until, reading.end) if end is not None]
    return min(ends)


def _count(reading: Reading, episode_id: str, end: int) -> tuple[int, int]:
    """Global batches that hold an episode, and rows of it in all of them."""
    config, mixture = reading.config, reading.mixture
    index, table = open_order(reading.version, config)
    place = int(np.flatnonzero(index.episode_ids == episode_id)[0])
    first, count = int(index.spans.number[place]), int(index.spans.count[place])
    size = config.batch_size if mixture is None else mixture.batch_size
    seed, domain = (config.seed, 0) if mixture is None else (mixture.seed, mixture.source + 1)
    sampler = sampler_named(config.sampler)
    at_once = max(1, WORDS_AT_ONCE // size)
    batches = rows = 0
    for step in range(reading.begin, end, at_once):
        steps = min(at_once, end - step)
        before, mine = _rows_before(reading, step, steps, size)
        drawn = sampler.draw(Draw(seed, domain, step, steps, size, before), index, table)
        hit = (drawn.numbers >= first) & (drawn.numbers < first + count)
        if mixture is not None:
            hit &= np.arange(size) < mine[:, None]
        batches += int(hit.any(axis=1).sum())
        rows += int(hit.sum())
    return batches, rows


def _counts(listed: Sequence[RunReference]) -> Counts | None:
    """How many rows of each source each batch of a run holds; None for a plain stream."""
    counts: Counts | None = None
    for reference in listed:
        mixture = reference.mixture
        if mixture is None:
            continue
        size, sources = mixture.batch_size, len(mixture.weights)
        if mixture.anneal is not None:
            steps, start, last = mixture.anneal
            return Counts(Annealed(steps, _exact(start), _exact(last), size), sources)
        shares = Shares(_exact(mixture.weights), size)
        if counts is None:
            counts = Counts(shares, sources)
        counts.change(reference.step, shares)
    return counts


def _exact(weights: Sequence[str]) -> list[Fraction]:
    return [Fraction(weight) for weight in weights]


def _rows_before(
    reading: Reading, step: int, steps: int, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows drawn of the version before each step, and in it, (steps,) int64 each."""
    mixture = reading.mixture
    if mixture is None:
        before = (step - reading.begin + np.arange(steps)) * size
        return before, np.full(steps, size, np.int64)
    counts, source = mixture.counts, mixture.source
    mine = np.array([counts.at(one)[source] for one in range(step, step + steps)], np.int64)
    first = counts.before(step)[source] - counts.before(reading.begin)[source]
    return first + np.cumsum(mine) - mine, mine


def _holds(version: Version, episode_id: str) -> bool:
    ids = version.episodes(columns=["episode_id"])["episode_id"]
    return bool(pc.index(ids, episode_id).as_py() >= 0)


def _check_known(store: Store, episode_id: str) -> None:
    heads = store.branches().values()
    read = [r.version for run in runs.runs(store.catalog) for r in readings(store, run)]
    if not any(_holds(version, episode_id) for version in (*heads, *read)):
        raise NotFoundError(
            f"Expected an episode of this store, came {episode_id!r}; `penstock episodes` lists "
            f"them.",
            where=store.url,
        )
