"""Ingesting without copying: references to the episodes of a unit in place of their arrays."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from connectors import linked
from connectors.base import Unit
from pipeline.jobs.sources import Dataset
from pipeline.store import layout
from pipeline.store.blocks import data_file
from pipeline.store.objects import Objects
from pipeline.store.recent import Recent
from pipeline.store.writer import WrittenBlock
from schemas.arrow import layout_to_json
from schemas.document import DataFile
from schemas.episode import Episode
from schemas.errors import ConfigError, SourceError, UsageError
from schemas.jobs import IngestJob
from schemas.link import Link, SourceFiles
from schemas.rows import RowLayout, layout_of
from schemas.table import EpisodeRow
from schemas.version import Block

_listed = Recent(8)
"""Lists of sources' files that this process wrote for a run: its blocks of one source share one."""


def check(job: IngestJob, datasets: Iterable[Dataset]) -> None:
    """Refuses, before any work, what cannot be linked.

    Raises:
        ConfigError: for a cast: what is not copied stays as it is.
        SourceError: for a source that is no file.
    """
    if not job.link:
        return
    if job.dtype is not None:
        raise ConfigError(
            f"Expected link without dtype, came dtype {job.dtype!r}: what is not copied cannot be "
            f"cast; leave one of them out."
        )
    for dataset in datasets:
        linked.refuse_live(dataset.listing.format)


@dataclass
class _Pile:
    """Episodes of one layout."""

    layout: RowLayout
    positions: list[int] = field(default_factory=list)
    rows: list[EpisodeRow] = field(default_factory=list)


class Linking:
    """Links to the episodes of one unit, as its files were before the first of them was read."""

    def __init__(self, objects: Objects, unit: Unit, run_id: str) -> None:
        self._objects = objects
        self._run_id = run_id
        self._named = unit.where
        self._unit = linked.placed(unit)
        self._files = linked.files_of(self._unit.where)

    def link_blocks(self, episodes: Iterable[tuple[Episode, EpisodeRow]]) -> Iterator[WrittenBlock]:
        """Writes one linked block per layout; every episode is in exactly one.

        Args:
            episodes: with their rows, whose source keys are the unit's place, `#` and what its
                connector calls them.

        Raises:
            SourceError: if the files change while they are read.
            UsageError: for a video at a URL: there is no place to keep it for later.
        """
        piles: dict[object, _Pile] = {}
        for position, (episode, row) in enumerate(episodes):
            row_layout = layout_of(episode)
            pile = piles.setdefault(row_layout.key, _Pile(row_layout))
            pile.positions.append(position)
            pile.rows.append(row)
        if not piles:
            return
        self._check_unchanged()
        for pile in piles.values():
            self._check_video(pile.layout)
            yield self._write(pile)

    def _check_unchanged(self) -> None:
        if linked.files_of(self._unit.where) != self._files:
            raise SourceError(
                f"Expected {self._unit.where} to stay as it is while it is linked, a file of it "
                f"changed; run it again.",
                where=self._unit.where,
            )

    def _check_video(self, row_layout: RowLayout) -> None:
        has_video = any(one.encoding == "video" for one in row_layout.fields.values())
        if has_video and linked.is_remote(self._unit.where):
            raise UsageError(
                f"Expected local files to link videos to, came {self._unit.where}; leave out "
                f"--link, or copy them to a disk first.",
                where=self._unit.where,
            )

    def _write(self, pile: _Pile) -> WrittenBlock:
        name = layout.new_id()
        prefix = f"{self._named}#"
        link = Link(
            block=name,
            unit=self._unit,
            layout=layout_to_json(pile.layout),
            keys=tuple(str(row.facts["source_key"]).removeprefix(prefix) for row in pile.rows),
            lengths=tuple(row.length for row in pile.rows),
            digests=tuple(row.digest for row in pile.rows),
        )
        if len(set(link.keys)) != len(link.keys):
            raise SourceError(
                f"Expected each episode of {self._unit.where} under a key of its own, came one "
                f"twice; leave out --link.",
                where=self._unit.where,
            )
        data = link.model_dump_json().encode()
        file = data_file(layout.link(name), data)
        self._objects.put({file.key: data})
        starts = np.cumsum([0, *(row.length + 1 for row in pile.rows)])
        block = Block(
            id=name,
            container="link",
            spec="default",
            rows=int(starts[-1]),
            bytes=len(data),
            file=file,
            sources=self._list_files(),
        )
        return WrittenBlock(
            block=block,
            spec=pile.layout.spec,
            rows=tuple(
                row.placed(name, int(start)) for row, start in zip(pile.rows, starts, strict=False)
            ),
            positions=tuple(pile.positions),
        )

    def _list_files(self) -> DataFile:
        """Returns the record of the list of the source's files, written once per run."""
        listing = SourceFiles(where=self._unit.where, files=self._files)
        data = listing.model_dump_json().encode()

        def write() -> DataFile:
            file = data_file(layout.source_files(layout.new_id()), data)
            self._objects.put({file.key: data})
            return file

        key = f"{self._run_id} {hashlib.sha256(data).hexdigest()}"
        found: DataFile = _listed.get(key, write)
        return found
