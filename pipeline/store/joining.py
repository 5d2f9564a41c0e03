"""Joining a branch's specs: settles, on the head of each plan, which spec every block is of.

Casting at the latest moment costs a second writing of the block, so writers cast by the head they
know (`cast_to_fit`) and only what lost a race is read back, cast and written again.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pipeline.store.arrays import read_episodes
from pipeline.store.catalog import Catalog
from pipeline.store.specs import cast_episode, cast_target, casts_between, join
from pipeline.store.writer import WrittenBlock, write_blocks
from schemas.episode import Episode
from schemas.spec import DatasetSpec
from schemas.table import EpisodeRow, rows_to_table
from schemas.version import Block, State, dataset_spec

Casting = Literal["none", "rollouts", "all"]
"""Which episodes may be cast to fit a spec of equal names and shapes."""
REMEMBERED = 256
"""Of so many specs it is known at a time that they fit."""


@dataclass(frozen=True)
class Joined:
    """Where the episodes of a batch belong on one head."""

    specs: Mapping[str, DatasetSpec]
    """Those that the branch has with them, as far as they are new or grew."""
    groups: Mapping[str, list[EpisodeRow]]
    """The rows by spec, each in the order of the input and with its spec and place."""
    blocks: Mapping[str, Block]
    casts: Mapping[str, str]
    """What was cast, by field."""


def cast_to_fit(episode: Episode, *, state: State, casting: Casting) -> Episode:
    """Returns an episode as a branch would take it: cast, if only its dtypes keep it out."""
    if casting == "none" or (casting == "rollouts" and episode.kind != "rollout"):
        return episode
    target = cast_target(_specs(state), episode.spec)
    return cast_episode(episode, target) if target else episode


class CastToFit:
    """`cast_to_fit` for the many episodes that are offered to one state of a branch."""

    def __init__(self, state: State, casting: Casting) -> None:
        self.specs = _specs(state)
        self._casting = casting
        self._fitting: dict[int, DatasetSpec] = {}
        """Specs that are not cast, by their identity: most episodes share theirs."""

    def __call__(self, episode: Episode) -> Episode:
        """Returns an episode as the branch would take it."""
        spec = episode.spec
        if self._casting == "none" or id(spec) in self._fitting:
            return episode
        if self._casting == "rollouts" and episode.kind != "rollout":
            return episode
        target = cast_target(self.specs, spec)
        if target is not None:
            return cast_episode(episode, target)
        if len(self._fitting) >= REMEMBERED:
            self._fitting.clear()
        self._fitting[id(spec)] = spec
        return episode


class Joining:
    """Settles specs on one head after another; remembers the blocks it had to write again."""

    def __init__(self, catalog: Catalog, new: str | None, casting: Casting) -> None:
        self._catalog = catalog
        self._new = new
        self._casting = casting
        self._again: dict[tuple[str, DatasetSpec], tuple[WrittenBlock, ...]] = {}

    def join(
        self, state: State, written: Sequence[WrittenBlock], rows: Sequence[EpisodeRow]
    ) -> Joined:
        """Returns where rows belong.

        Args:
            state: of the head.
            written: the blocks, in the order that decides which spec comes first.
            rows: the episodes that are to come in, placed in those blocks.

        Raises:
            SpecMismatchError, NameTakenError: see `specs.join`.
        """
        before = _specs(state)
        specs = dict(before)
        named: dict[str, str] = {}
        known: dict[str, Block] = {}
        casts: dict[str, str] = {}
        moved: dict[tuple[str, int], EpisodeRow] = {}
        used: dict[str, list[EpisodeRow]] = {}
        for row in rows:
            used.setdefault(row.block, []).append(row)
        for old in written:
            mine = used.get(old.block.id, [])
            for block in self._fitting(specs, old, mine) if mine else ():
                name, spec = join(specs, block.spec, self._new, self._catalog.url)
                specs[name] = spec
                named[block.block.id] = name
                known[block.block.id] = block.block.model_copy(update={"spec": name})
                casts.update(casts_between(block.came or block.spec, block.spec))
                if block is not old:
                    for position, row in zip(block.positions, block.rows, strict=True):
                        moved[mine[position].block, mine[position].row] = row
        groups: dict[str, list[EpisodeRow]] = {}
        for row in rows:
            at = moved.get((row.block, row.row), row)
            name = named[at.block]
            facts = {**row.facts, "spec": name}
            groups.setdefault(name, []).append(
                replace(row, facts=facts, block=at.block, row=at.row)
            )
        grown = {name: spec for name, spec in specs.items() if before.get(name) != spec}
        return Joined(grown, groups, known, casts)

    def _fitting(
        self, specs: Mapping[str, DatasetSpec], block: WrittenBlock, rows: list[EpisodeRow]
    ) -> Iterable[WrittenBlock]:
        """Returns a block, or what it is once it is cast to fit a spec."""
        if self._casting == "none":
            return (block,)
        if self._casting == "rollouts" and any(row.facts["kind"] != "rollout" for row in rows):
            return (block,)
        target = cast_target(specs, block.spec)
        if target is None:
            return (block,)
        key = (block.block.id, target)
        if key not in self._again:
            table = rows_to_table(rows)
            episodes = read_episodes(self._catalog, {block.block.id: block.block}, table)
            self._again[key] = tuple(
                replace(again, came=block.came or block.spec)
                for again in write_blocks(
                    self._catalog.objects,
                    zip(episodes, rows, strict=True),
                    cast=functools.partial(cast_episode, target=target),
                )
            )
        return self._again[key]


def _specs(state: State) -> dict[str, DatasetSpec]:
    return {name: dataset_spec(document) for name, document in state.specs.items()}
