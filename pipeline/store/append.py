"""Committing episodes: exactly once by id, refused ones beside them, one atomic act.

The rows of an append are planned on the head they are committed on: ids the branch knows are
dropped, a known id with other content is refused as `id_conflict`, and after a lost race all of
that is decided again. So racing writers of the same ids store each once, and a re-run adds nothing.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.store import blocks, ids, layout
from pipeline.store.catalog import Catalog, parquet_bytes
from pipeline.store.commit import Draft
from pipeline.store.writer import WrittenBlock, rows_in_order, write_blocks
from schemas.document import DataFile
from schemas.episode import Episode
from schemas.spec import DatasetSpec
from schemas.table import EpisodeRow, rows_to_table
from schemas.version import (
    Append,
    Commit,
    Part,
    SourceState,
    State,
    dataset_spec,
    spec_document,
)

QUARANTINE_COLUMNS = pa.schema(
    [
        ("source", pa.string()),
        ("source_key", pa.string()),
        ("episode_id", pa.string()),
        ("digest", pa.string()),
        ("code", pa.string()),
        ("message", pa.string()),
        ("refused_at", pa.timestamp("us", "UTC")),
    ]
)


@dataclass(frozen=True)
class Refusal:
    """One episode that must not enter a version, and why."""

    source: str | None
    source_key: str | None
    episode_id: str | None
    digest: str | None
    code: str
    message: str

    @property
    def key(self) -> tuple[str | None, ...]:
        """Equal for the same refusal of a later run."""
        return (self.source, self.source_key, self.episode_id, self.digest, self.code)


@dataclass(frozen=True)
class Batch:
    """What one job wants to commit."""

    written: Sequence[WrittenBlock] = ()
    """Blocks in the order of the input; a part's rows keep the input's order."""
    rows: Sequence[EpisodeRow] = ()
    """The episodes to commit, named, in the order of the input: those of the blocks, and those
    the branch knows already, which need none."""
    refusals: Sequence[Refusal] = ()
    sources: Mapping[str, SourceState] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What became of a batch."""

    commit: Commit | None
    """None if there was nothing to commit."""
    added: tuple[EpisodeRow, ...]
    known: int
    refusals: tuple[Refusal, ...]
    """All refusals of this batch, those of earlier runs included."""


def write_new(
    catalog: Catalog, branch: str, episodes: Iterable[tuple[Episode, EpisodeRow]]
) -> Batch:
    """Writes the episodes that a branch does not know yet; the others need no block.

    Args:
        catalog: the store.
        branch: whose newest version is asked.
        episodes: with their rows.
    """
    head = catalog.refs.head(branch)
    known = catalog.refs.state(head).known if head else ()
    indexes = [catalog.id_index(file) for file in known]
    offered: list[tuple[EpisodeRow, bool]] = []

    def unknown() -> Iterator[tuple[Episode, EpisodeRow]]:
        for episode, row in episodes:
            seen = ids.classify(indexes, ids.keys([(row.episode_id, row.digest)]))
            is_new = bool(seen[0] == ids.Seen.NEW)
            offered.append((row, is_new))
            if is_new:
                yield episode, row

    written = tuple(write_blocks(catalog.objects, unknown()))
    placed = iter(rows_in_order(written))
    return Batch(written, [next(placed) if is_new else row for row, is_new in offered])


def commit_batch(
    catalog: Catalog,
    batch: Batch,
    *,
    branch: str,
    message: str,
    run_id: str,
    base: int | None = None,
) -> Outcome:
    """Commits a batch to a branch; what is known already is not added again.

    Args:
        catalog: the store.
        batch: what to commit.
        branch: where.
        message: one line for the log.
        run_id: the job's own id.
        base: see `Refs.publish`.

    Raises:
        SpecMismatchError: if the episodes do not fit the branch's spec; nothing is committed.
    """
    planner = _Planner(catalog, batch)
    commit = catalog.refs.publish(branch, planner.plan, message=message, run_id=run_id, base=base)
    return Outcome(commit, planner.added, planner.known, planner.refusals)


class _Planner:
    """Plans one batch on one head after another; remembers the last plan's outcome."""

    def __init__(self, catalog: Catalog, batch: Batch) -> None:
        self._catalog = catalog
        self._batch = batch
        # As a commit will give them back: JSON knows no NaN and no tuples.
        self._sources = {
            name: SourceState.model_validate_json(source.model_dump_json())
            for name, source in batch.sources.items()
        }
        self._files: tuple[tuple[str, ...], Part | None, DataFile | None] = ((), None, None)
        self.added: tuple[EpisodeRow, ...] = ()
        self.known = 0
        self.refusals: tuple[Refusal, ...] = ()

    def plan(self, _head: Commit | None, state: State) -> Draft | None:
        rows, conflicts = self._dedupe(state)
        self.added = tuple(rows)
        self.refusals = (*self._batch.refusals, *conflicts)
        self.known = len(self._batch.rows) - len(rows) - len(conflicts)
        sources = {
            name: source
            for name, source in self._sources.items()
            if state.sources.get(name) != source
        }
        fresh = self._fresh_refusals(state)
        if not rows and not fresh and not sources:
            return None
        part, index = self._write_part(rows)
        specs = self._specs(state, {row.block for row in rows}) if rows else {}
        operation = Append(
            specs={name: spec_document(spec) for name, spec in specs.items()},
            parts=(part,) if part else (),
            known=(index,) if index else (),
            quarantine=(self._write_refusals(fresh),) if fresh else (),
            sources=sources,
        )
        return Draft((operation,))

    def _dedupe(self, state: State) -> tuple[list[EpisodeRow], list[Refusal]]:
        """Splits the batch into rows to add and conflicts; known rows are in neither."""
        rows = self._batch.rows
        keys = ids.keys((row.episode_id, row.digest) for row in rows)
        indexes = [self._catalog.id_index(file) for file in state.known]
        seen = ids.classify(indexes, keys)
        first: dict[str, str] = {}
        add, conflicts = [], []
        for row, verdict in zip(rows, seen, strict=True):
            known_digest = first.get(row.episode_id)
            if verdict == ids.Seen.OTHER and known_digest is None:
                # Not among the kept rows: a curated branch dropped it, and still knows it.
                known_digest = _stored_digest(self._catalog, state, row.episode_id) or "dropped"
            if verdict == ids.Seen.KNOWN or known_digest == row.digest:
                continue
            if known_digest is not None:
                conflicts.append(_conflict(row, known_digest))
                continue
            first[row.episode_id] = row.digest
            add.append(row)
        return add, conflicts

    def _fresh_refusals(self, state: State) -> list[Refusal]:
        listed: set[tuple[str | None, ...]] = set()
        if self.refusals:
            for file in state.quarantine:
                table = self._catalog.parquet(file)
                columns = (table[name].to_pylist() for name in _REFUSAL_KEY)
                listed.update(zip(*columns, strict=True))
        fresh = {refusal.key: refusal for refusal in self.refusals}
        return [refusal for key, refusal in fresh.items() if key not in listed]

    def _write_part(self, rows: list[EpisodeRow]) -> tuple[Part | None, DataFile | None]:
        """Writes the rows and their id index, unless the last plan wrote the same."""
        names = tuple(row.episode_id for row in rows)
        if not rows or names == self._files[0]:
            return (self._files[1], self._files[2]) if rows else (None, None)
        name = layout.new_id()
        table = parquet_bytes(rows_to_table(rows))
        index = ids.encode(ids.keys((row.episode_id, row.digest) for row in rows))
        files = {layout.episode_rows(name): table, layout.id_index(name): index}
        self._catalog.objects.put(files)
        used = {row.block for row in rows}
        part = Part(
            id=name,
            episodes=len(rows),
            steps=sum(row.length for row in rows),
            rows=blocks.data_file(layout.episode_rows(name), table),
            blocks=tuple(w.block for w in self._batch.written if w.block.id in used),
        )
        file = blocks.data_file(layout.id_index(name), index)
        self._catalog.keep_index(file, index)
        self._files = (names, part, file)
        return part, file

    def _specs(self, state: State, used: set[str]) -> dict[str, DatasetSpec]:
        """Returns the branch's specs as they must be to hold the new blocks."""
        specs = {name: dataset_spec(document) for name, document in state.specs.items()}
        for written in self._batch.written:
            if written.block.id in used:
                name = written.block.spec
                known = specs.get(name)
                merged = known.merge(written.spec, self._catalog.url) if known else written.spec
                specs[name] = merged
        return specs

    def _write_refusals(self, refusals: Sequence[Refusal]) -> DataFile:
        now = dt.datetime.now(dt.UTC)
        columns = [[getattr(r, name) for r in refusals] for name in QUARANTINE_COLUMNS.names[:-1]]
        table = pa.Table.from_arrays(
            [
                pa.array(values, column.type)
                for values, column in zip(
                    [*columns, [now] * len(refusals)], QUARANTINE_COLUMNS, strict=True
                )
            ],
            schema=QUARANTINE_COLUMNS,
        )
        data = parquet_bytes(table)
        key = layout.quarantine(layout.new_id())
        self._catalog.objects.put({key: data})
        return blocks.data_file(key, data)


_REFUSAL_KEY = ("source", "source_key", "episode_id", "digest", "code")


def _conflict(row: EpisodeRow, known_digest: str) -> Refusal:
    return Refusal(
        source=row.facts["source"],
        source_key=row.facts["source_key"],
        episode_id=row.episode_id,
        digest=row.digest,
        code="id_conflict",
        message=(
            f"Expected {row.episode_id!r} with the content it was stored with "
            f"({known_digest[:12]}), came other content ({row.digest[:12]}); give it an id of "
            f"its own or ingest it under another namespace."
        ),
    )


def _stored_digest(catalog: Catalog, state: State, episode_id: str) -> str | None:
    """Returns the digest an id is stored with; None if only its hash was seen."""
    for part in reversed(state.parts):
        table = catalog.parquet(part.rows)
        at = pc.index(table["episode_id"], episode_id).as_py()
        if at >= 0:
            return str(table["digest"][at].as_py())
    return None
