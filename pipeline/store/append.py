"""Committing episodes: exactly once by id, refused ones beside them, one atomic act.

The rows of an append are planned on the head they are committed on: ids the branch knows are
dropped, a known id with other content is refused as `id_conflict` or takes the place of the old
one, the spec that blocks join is settled, and after a lost race all of that is decided again. So
racing writers of the same ids store each once, and a re-run adds nothing.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from pipeline.store import blocks, ids, layout
from pipeline.store.catalog import Catalog, parquet_bytes
from pipeline.store.commit import Draft
from pipeline.store.joining import Casting, CastToFit, Joining
from pipeline.store.known import Known, OnChange, Sorted
from pipeline.store.replace import replaced
from pipeline.store.writer import WrittenBlock, rows_in_order, write_blocks
from schemas.document import DataFile
from schemas.episode import Episode
from schemas.table import EpisodeRow, rows_to_table
from schemas.version import (
    Append,
    Block,
    Commit,
    Part,
    SourceState,
    State,
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
    """What the branch should remember of sources, by the names it knows them by."""
    before: Mapping[str, SourceState] | None = None
    """What it remembered when the job began: a state that another job moved since is left to that
    job. None asks for no such care."""


@dataclass(frozen=True)
class Outcome:
    """What became of a batch."""

    commit: Commit | None
    """None if there was nothing to commit."""
    added: tuple[EpisodeRow, ...]
    known: int
    refusals: tuple[Refusal, ...]
    """All refusals of this batch, those of earlier runs included."""
    replaced: tuple[EpisodeRow, ...] = ()
    """Those that came in the place of others; not among the added ones."""
    conflicts: int = 0
    """How often another writer was faster, so that it was planned anew."""


def write_new(
    catalog: Catalog,
    branch: str,
    episodes: Iterable[tuple[Episode, EpisodeRow]],
    *,
    on_change: OnChange = "quarantine",
    casting: Casting = "none",
    cast: Callable[[Episode], Episode] | None = None,
) -> Batch:
    """Writes the episodes that a branch does not know yet; the others need no block.

    Args:
        catalog: the store.
        branch: whose newest version is asked.
        episodes: with their rows.
        on_change: as for `commit_batch`; `replace` writes changed episodes too.
        casting: as for `commit_batch`.
        cast: gives what is to be written of an episode, in place of `casting`.
    """
    head = catalog.refs.head(branch)
    state = catalog.refs.state(head) if head else State()
    known = Known(catalog, state, on_change)
    offered: list[tuple[EpisodeRow, bool]] = []

    def wanted() -> Iterator[tuple[Episode, EpisodeRow]]:
        for episode, row in episodes:
            is_wanted = known.is_wanted(row.episode_id, row.digest)
            offered.append((row, is_wanted))
            if is_wanted:
                yield episode, row

    cast = cast or CastToFit(state, casting)
    written = tuple(write_blocks(catalog.objects, wanted(), cast=cast))
    placed = iter(rows_in_order(written))
    return Batch(written, [next(placed) if is_wanted else row for row, is_wanted in offered])


def commit_batch(
    catalog: Catalog,
    batch: Batch,
    *,
    branch: str,
    message: str,
    run_id: str,
    base: int | None = None,
    new_spec: str | None = None,
    on_change: OnChange = "quarantine",
    casting: Casting = "none",
) -> Outcome:
    """Commits a batch to a branch; what is known already is not added again.

    Args:
        catalog: the store.
        batch: what to commit.
        branch: where.
        message: one line for the log.
        run_id: the job's own id.
        base: see `Refs.publish`.
        new_spec: name of the spec that episodes join which fit none of the branch's.
        on_change: what becomes of an episode whose id is known with other content: refused, or
            put in the place of the old one.
        casting: which episodes are cast to a spec of equal names and shapes that they would not
            fit otherwise.

    Raises:
        SpecMismatchError: if the episodes fit no spec of the branch, or several; nothing is
            committed.
        NameTakenError: if `new_spec` is the name of a spec that they do not fit.
    """
    if new_spec is not None:
        layout.check_name(new_spec, "spec")
    planner = _Planner(catalog, batch, Joining(catalog, new_spec, casting), on_change)
    commit = catalog.refs.publish(branch, planner.plan, message=message, run_id=run_id, base=base)
    if commit is not None and not planner.plans:
        # An earlier try of this run made it: this one says what that one would have said.
        parent = commit.parent
        before = catalog.refs.read(parent.branch, parent.number) if parent else None
        planner.review(catalog.refs.state(before) if before else State())
    return Outcome(
        commit,
        planner.added,
        planner.known,
        planner.refusals,
        planner.replaced,
        conflicts=max(planner.plans - 1, 0),
    )


class _Planner:
    """Plans one batch on one head after another; remembers the last plan's outcome."""

    def __init__(
        self, catalog: Catalog, batch: Batch, joining: Joining, on_change: OnChange
    ) -> None:
        self._catalog = catalog
        self._batch = batch
        self._joining = joining
        self._on_change = on_change
        # As a commit will give them back: JSON knows no NaN and no tuples.
        self._sources = {
            name: SourceState.model_validate_json(source.model_dump_json())
            for name, source in batch.sources.items()
        }
        self._parts: dict[object, tuple[Part, DataFile]] = {}
        self.added: tuple[EpisodeRow, ...] = ()
        self.replaced: tuple[EpisodeRow, ...] = ()
        self.known = 0
        self.refusals: tuple[Refusal, ...] = ()
        self.plans = 0
        """How many heads it was planned on."""

    def review(self, state: State) -> Sorted:
        """Decides what becomes of each episode on a state."""
        found = Known(self._catalog, state, self._on_change).sort(self._batch.rows)
        self.added = found.new
        self.replaced = tuple(row for row, _ in found.changed)
        conflicts = (_conflict(row, digest) for row, digest in found.conflicts)
        self.refusals = (*self._batch.refusals, *conflicts)
        self.known = len(self._batch.rows) - len(found.coming) - len(found.conflicts)
        return found

    def plan(self, _head: Commit | None, state: State) -> Draft | None:
        self.plans += 1
        found = self.review(state)
        rows = list(found.coming)
        sources = self._moved(state, [row for row, _ in found.conflicts])
        fresh = self._fresh_refusals(state)
        if not rows and not fresh and not sources:
            return None
        joined = self._joining.join(state, self._batch.written, rows)
        parts = [self._write_part(of, joined.blocks) for of in joined.groups.values()]
        places = [place for _, place in found.changed]
        operation = Append(
            specs={name: spec_document(spec) for name, spec in joined.specs.items()},
            parts=tuple(part for part, _ in parts),
            known=tuple(index for _, index in parts),
            quarantine=(self._write_refusals(fresh),) if fresh else (),
            sources=sources,
            replaced=replaced(self._catalog, state, places) if places else None,
            casts=joined.casts,
        )
        said = ", ".join(f"{name} {cast}" for name, cast in joined.casts.items())
        return Draft((operation,), note=f"; cast {said}" if said else "")

    def _moved(self, state: State, conflicts: Sequence[EpisodeRow]) -> dict[str, SourceState]:
        """Returns the source states to commit; episodes found in conflict only now are in them."""
        moved = {}
        before = self._batch.before
        for name, source in self._sources.items():
            mine = [
                r for r in conflicts if f"{r.facts['source_key']}".startswith(f"{source.where}#")
            ]
            if mine:
                codes = {**source.quarantined, "id_conflict": len(mine)}
                healthy = max(source.episodes - len(mine), 0)
                source = source.model_copy(update={"quarantined": codes, "episodes": healthy})
            there = state.sources.get(name)
            if there != source and (before is None or there == before.get(name)):
                moved[name] = source
        return moved

    def _fresh_refusals(self, state: State) -> list[Refusal]:
        listed: set[tuple[str | None, ...]] = set()
        if self.refusals:
            for file in state.quarantine:
                table = self._catalog.parquet(file)
                columns = (table[name].to_pylist() for name in _REFUSAL_KEY)
                listed.update(zip(*columns, strict=True))
        fresh = {refusal.key: refusal for refusal in self.refusals}
        return [refusal for key, refusal in fresh.items() if key not in listed]

    def _write_part(
        self, rows: list[EpisodeRow], known: Mapping[str, Block]
    ) -> tuple[Part, DataFile]:
        """Writes rows of one spec and their id index, unless an earlier plan wrote the same."""
        key = tuple((row.episode_id, row.block, row.facts["spec"]) for row in rows)
        if key not in self._parts:
            name = layout.new_id()
            table = parquet_bytes(rows_to_table(rows))
            index = ids.encode(ids.keys((row.episode_id, row.digest) for row in rows))
            files = {layout.episode_rows(name): table, layout.id_index(name): index}
            self._catalog.objects.put(files)
            mine = tuple(known[block] for block in dict.fromkeys(row.block for row in rows))
            part = Part(
                id=name,
                kind="linked" if any(one.container == "link" for one in mine) else "stored",
                episodes=len(rows),
                steps=sum(row.length for row in rows),
                rows=blocks.data_file(layout.episode_rows(name), table),
                blocks=mine,
            )
            file = blocks.data_file(layout.id_index(name), index)
            self._catalog.keep_index(file, index)
            self._parts[key] = (part, file)
        return self._parts[key]

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
