"""What the workers of a metric run do: pass over some episodes, or score them.

What travels are references: a version and positions in its episode table, and on the way home
merged moments or small tables of scores. Every engine calls the same functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa

from pipeline.jobs import tree
from pipeline.jobs.spread import patiently
from pipeline.quality.passes import P, Stage, accumulate
from pipeline.quality.reference import ReferenceModel, with_spec
from pipeline.quality.score import score_episodes
from pipeline.quality.sketch import SketchStage
from pipeline.store import tables
from pipeline.store.catalog import Catalog
from pipeline.store.reader import Version
from schemas.episode import Episode
from schemas.errors import TransientError
from schemas.metrics import MeasureConfig
from schemas.version import VersionRef

UNIT_STEPS = 1 << 16
"""Steps of a unit, about: units end where blocks end, so that no block is read for two of them."""
MOST_WORKS = 256
"""Pieces that a job is cut into at most; each opens the store anew on its worker."""

S = TypeVar("S")
R = TypeVar("R")


@dataclass(frozen=True)
class Unit:
    """Some episodes of one spec."""

    spec: str
    positions: np.ndarray  # (n,) int64, in the version's episode table, ascending
    steps: int


@dataclass(frozen=True)
class Work:
    """A reference to some units of a version, small enough to send anywhere."""

    catalog: Catalog
    """Opened anew where it is sent to."""
    version: VersionRef
    erased: int
    """How many episodes were erased when positions were counted."""
    level: int
    index: int
    """The units from index * 2^level on."""
    units: tuple[Unit, ...]
    metrics: tuple[str, ...] = ()
    """What to score them for; nothing where a pass goes over them."""


@dataclass(frozen=True)
class Passed:
    """What a pass kept of some units, merged as far as they are neighbours."""

    nodes: tree.Nodes[Any]
    episodes: int
    steps: int


@dataclass(frozen=True)
class Scored:
    """Scores of some units' episodes."""

    metrics: tuple[str, ...]
    index: int
    """Of the work among those of equal metrics."""
    table: pa.Table
    episodes: int
    steps: int


class Mapper(Protocol):
    """An engine: applies a function with one frozen argument to works, in any order."""

    def __call__(
        self, function: Callable[[S, Work], R], frozen: S, works: Sequence[Work]
    ) -> Iterator[R]:
        """Yields the outcomes as they come home."""
        ...


# -- cutting a version ---------------------------------------------------------------------------


def works_of(
    version: Version, wanted: np.ndarray, pieces: int, metrics: tuple[str, ...] = ()
) -> tuple[Work, ...]:
    """Cuts some episodes of a version into works.

    Args:
        version: whose episodes.
        wanted: (E,) bool in the order of its episode table.
        pieces: about how many works to make at least, if there are as many units.
        metrics: what to score them for.
    """
    erased = len(version.store.erased())
    units = _units(tables.episode_table(version.store, version.commit), wanted)
    level = 0
    while len(units) >> level > MOST_WORKS or len(units) >> (level + 1) >= pieces:
        level += 1
    size = 1 << level
    return tuple(
        Work(
            catalog=version.store,
            version=version.commit.ref,
            erased=erased,
            level=level,
            index=at // size,
            units=units[at : at + size],
            metrics=metrics,
        )
        for at in range(0, len(units), size)
    )


def _units(table: pa.Table, wanted: np.ndarray) -> tuple[Unit, ...]:
    """Cuts the wanted rows into runs of about `UNIT_STEPS` steps that divide no block."""
    specs = table["spec"].combine_chunks().dictionary_encode()
    blocks = table["_block"].combine_chunks().dictionary_encode()
    owners, block = specs.indices.to_numpy(), blocks.indices.to_numpy()
    lengths = table["length"].to_numpy().astype(np.int64)
    units = []
    for owner, spec in enumerate(specs.dictionary.to_pylist()):
        rows = np.flatnonzero(wanted & (owners == owner))
        if not len(rows):
            continue
        before = np.cumsum(lengths[rows]) - lengths[rows]
        is_new = np.append(True, block[rows][1:] != block[rows][:-1])
        bins = np.maximum.accumulate(np.where(is_new, before // UNIT_STEPS, 0))
        for run in np.split(rows, np.flatnonzero(np.diff(bins)) + 1):
            units.append(Unit(spec, run, int(lengths[run].sum())))
    return tuple(units)


def read(work: Work) -> Iterator[tuple[Unit, Iterator[Episode]]]:
    """Yields each unit with its episodes; only blocks that hold some of them are opened.

    Raises:
        TransientError: if episodes were erased since the positions were counted.
    """
    catalog = work.catalog
    version = Version(catalog, catalog.refs.read(work.version.branch, work.version.number))
    version.episodes(columns=["episode_id"])  # the table that positions are of, as it is now
    if len(catalog.erased()) != work.erased:
        raise TransientError(
            "Expected the episodes that were there when the job began, some were erased "
            "meanwhile; run it again.",
            where=catalog.url,
        )
    for unit in work.units:
        yield unit, version.episodes_at(unit.positions)


# -- on the workers ------------------------------------------------------------------------------


def pass_over(stage: Stage[P], work: Work) -> Passed:
    """Returns what a pass keeps of a work's units."""
    return patiently(_pass_over, stage, work)


def score(model: ReferenceModel, work: Work) -> Scored:
    """Returns the scores of a work's episodes, each by the models of its own spec."""
    return patiently(_score, model, work)


def _pass_over(stage: Stage[P], work: Work) -> Passed:
    nodes: tree.Nodes[P] = {}
    first = work.index << work.level
    for number, (unit, episodes) in enumerate(read(work), start=first):
        kept = with_spec(accumulate(episodes, stage.of_spec(unit.spec)), unit.spec)
        tree.put(nodes, (0, number), kept)
    return Passed(nodes, *_sizes(work))


def _score(model: ReferenceModel, work: Work) -> Scored:
    config = model.config.model_copy(update={"metrics": work.metrics})
    asked = replace(model, config=config)
    found = [score_episodes(episodes, asked.of_spec(unit.spec)) for unit, episodes in read(work)]
    return Scored(work.metrics, work.index, pa.concat_tables(found), *_sizes(work))


def _sizes(work: Work) -> tuple[int, int]:
    return sum(len(u.positions) for u in work.units), sum(u.steps for u in work.units)


# -- in order ------------------------------------------------------------------------------------


def fit(mapper: Mapper, works: Sequence[Work], config: MeasureConfig) -> ReferenceModel:
    """Returns the reference model of all episodes of some works."""
    sketch = SketchStage(config)
    fitting = sketch.finalise(_all(mapper, sketch, works))
    return fitting.finalise(_all(mapper, fitting, works))


def _all(mapper: Mapper, stage: Stage[P], works: Sequence[Work]) -> dict[Any, P]:
    """What a pass keeps of all works; they are merged as they come home."""
    passed: Iterator[Passed] = mapper(pass_over, stage, works)
    return tree.total(tree.join(one.nodes for one in passed))


def by_metrics(scored: Iterable[Scored]) -> list[pa.Table]:
    """Returns one table per set of metrics, with its episodes in order."""
    alike: dict[tuple[str, ...], list[Scored]] = {}
    for one in sorted(scored, key=lambda one: (one.metrics, one.index)):
        alike.setdefault(one.metrics, []).append(one)
    return [pa.concat_tables(one.table for one in some) for some in alike.values()]
