"""Copying a version to another store: its episodes, what was said of them, what its jobs know.

Episodes are read and appended, each exactly once by id and digest: a copy that was broken off, or
that is run again every night, reads only what the other store does not have. What is linked is read
from where it lies, and stored. Scores, labels and arrays of steps come as overlays that are named
by their content: what the other branch has already is not said again. Episodes that were erased
stay behind, with everything that was said of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.store import arrays, blocks, derive, ids, layout, leases
from pipeline.store.append import Batch, Outcome, Refusal, commit_batch, write_new
from pipeline.store.catalog import Catalog, parquet_bytes
from pipeline.store.commit import Draft
from pipeline.store.tables import overlay_rows, stored_rows
from schemas.episode import Episode
from schemas.errors import UsageError
from schemas.metrics import ScoreSet
from schemas.table import EpisodeRow, episode_row
from schemas.version import Annotate, Commit, Measure, Operation, Overlay, State

_DIGITS = 20
"""Of a copied overlay's name, which say what it holds."""
Advance = Callable[[int, int], None]
"""Called with the episodes and steps of each episode that is read."""


@dataclass(frozen=True)
class Copied:
    """What a copy did."""

    commit: Commit
    """The version of the other store that holds it all."""
    episodes: int
    """That came anew."""
    steps: int
    known: int
    """Episodes that were there."""
    refused: int
    """Episodes that were there with other content; they are in quarantine."""


def copy_version(
    source: Catalog,
    version: Commit,
    target: Catalog,
    branch: str,
    advance: Advance | None = None,
) -> Copied:
    """Copies a version to a branch of another store; run again, it copies what came since.

    Every spec is a commit of its own, in which all of its episodes appear at once; scores and
    labels follow in one more.

    Args:
        source: the store of the version.
        version: what is copied.
        target: the other store.
        branch: of the other store; made if it is not there.
        advance: told of every episode that is read.

    Raises:
        UsageError: if both are one store, or the version is empty.
        SpecMismatchError, NameTakenError: if episodes fit no spec of the branch, and the name of
            theirs is taken there.
    """
    if source.id == target.id:
        raise UsageError(
            "Expected another store to copy to, came the same; `penstock branch` makes a branch "
            "that shares all data.",
            where=target.url,
        )
    layout.check_name(branch, "branch")
    derive.check_free(target, branch, taken_by="tag")
    copying = _Copying(source, version, target, branch)
    with leases.lease(source.objects, version.ref), leases.lease(target.objects):
        outcomes = copying.episodes(advance)
        copying.say_of_sources()
        copying.overlays()
    head = target.refs.head(branch)
    if head is None:
        raise UsageError("Expected a version with episodes to copy, came one without any.")
    added = [row for outcome in outcomes for row in outcome.added]
    refused = sum(len(outcome.refusals) for outcome in outcomes)
    return Copied(
        commit=head,
        episodes=len(added),
        steps=sum(row.length for row in added),
        known=copying.rows.num_rows - len(added) - refused,
        refused=refused,
    )


class _Copying:
    """One version on its way to one branch."""

    def __init__(self, source: Catalog, version: Commit, target: Catalog, branch: str) -> None:
        self._source = source
        self._state = source.refs.state(version)
        self.rows = stored_rows(source, self._state)
        """One row per episode, as stored."""
        self._target = target
        self._branch = branch
        self._message = f"copy {version.branch}:{version.number} of {source.id[:8]}"

    def episodes(self, advance: Advance | None) -> list[Outcome]:
        """Appends the episodes that the branch does not have, one spec after the other."""
        table = self._unknown(self.rows)
        outcomes = []
        for spec in pc.unique(table["spec"]).to_pylist():
            rows = table.filter(pc.equal(table["spec"], spec))
            offered = self._read(rows, advance)
            batch = write_new(self._target, self._branch, offered)
            outcomes.append(self._commit(batch, spec))
        return outcomes

    def _unknown(self, table: pa.Table) -> pa.Table:
        """Leaves out the rows that the branch has, so that their arrays are not read."""
        known = [self._target.id_index(file) for file in self._there().known]
        pairs = zip(table["episode_id"].to_pylist(), table["digest"].to_pylist(), strict=True)
        seen = ids.classify(known, ids.keys(pairs))
        return table.filter(pa.array(seen != ids.Seen.KNOWN))

    def _read(
        self, table: pa.Table, advance: Advance | None
    ) -> Iterator[tuple[Episode, EpisodeRow]]:
        found = {block.id: block for part in self._state.parts for block in part.blocks}
        episodes = arrays.read_episodes(self._source, found, table)
        for episode, digest in zip(episodes, table["digest"].to_pylist(), strict=True):
            row = episode_row(episode)
            # Of a rollout that was cast on its way in, the digest is that of what came.
            yield episode, replace(row, facts={**row.facts, "digest": digest})
            if advance is not None:
                advance(1, episode.length)

    def say_of_sources(self) -> None:
        """Hands on what the branch's jobs know of their sources, and the quarantine.

        Not for a curated version: a job would take its word for episodes that were left out.
        """
        sources = {} if self._state.derivation else dict(self._state.sources)
        there = self._there()
        if there.parts:
            self._commit(Batch(refusals=self._refusals(), sources=sources), None)

    def _refusals(self) -> list[Refusal]:
        names = ("source", "source_key", "episode_id", "digest", "code", "message")
        return [
            Refusal(**row)
            for file in self._state.quarantine
            for row in self._source.parquet(file).select(names).to_pylist()
        ]

    def _commit(self, batch: Batch, spec: str | None) -> Outcome:
        return commit_batch(
            self._target,
            batch,
            branch=self._branch,
            message=self._message,
            run_id=layout.new_id(),
            new_spec=spec,
        )

    # -- what was said of them -----------------------------------------------------------------

    def overlays(self) -> None:
        """Commits the scores, labels and arrays of steps that the branch does not have."""
        there = self._there()
        shared = self._shared(there)
        known = {_content(overlay) for overlay in there.overlays}
        told = (self._overlay(overlay, shared, known) for overlay in self._state.overlays)
        written = [overlay for overlay in told if overlay is not None]
        if not written:
            return
        sets = {
            name: self._score_set(one, there.score_sets.get(name))
            for name, one in self._state.score_sets.items()
        }

        def plan(head: Commit | None, state: State) -> Draft | None:
            said = {_content(overlay) for overlay in state.overlays}
            fresh = [overlay for overlay in written if _content(overlay) not in said]
            if head is None or not fresh:
                return None
            return Draft(tuple(self._operation(overlay, sets) for overlay in fresh))

        self._target.refs.publish(
            self._branch, plan, message=f"{self._message}: what was said", run_id=layout.new_id()
        )

    def _shared(self, there: State) -> pa.Array:
        """Returns the ids under which version and branch have the same content."""
        columns = ["episode_id", "digest"]
        others = stored_rows(self._target, there).select(columns)
        return (
            self.rows.select(columns)
            .join(others, columns, join_type="inner")["episode_id"]
            .combine_chunks()
        )

    def _overlay(self, overlay: Overlay, shared: pa.Array, known: set[str]) -> Overlay | None:
        """Writes what an overlay says of some episodes; None if that is nothing new."""
        table = overlay_rows(self._source, overlay)
        table = table.filter(pc.is_in(table["episode_id"], value_set=shared))
        if not table.num_rows:
            return None
        data = parquet_bytes(table.combine_chunks())
        said = f"{overlay.score_set}\0".encode() + data
        content = hashlib.sha256(said).hexdigest()[:_DIGITS]
        if content in known:
            return None
        # A name of its own, for a copy that died may have left half a file under any other.
        name = content + layout.new_id()[_DIGITS:]
        key = layout.overlay(name)
        self._target.objects.put({key: data})
        return overlay.model_copy(
            update={
                "file": blocks.data_file(key, data),
                "episodes": table.num_rows,
                "without": (),
            }
        )

    def _score_set(self, score_set: ScoreSet, known: ScoreSet | None) -> ScoreSet:
        """Hands on a score set with its model, unless the branch has it."""
        if known is not None:
            return score_set.model_copy(update={"model": known.model})
        data = self._source.read(score_set.model)
        key = layout.reference_model(layout.new_id())
        self._target.objects.put({key: data})
        return score_set.model_copy(update={"model": blocks.data_file(key, data)})

    def _operation(self, overlay: Overlay, sets: Mapping[str, ScoreSet]) -> Operation:
        if overlay.score_set is None:
            return Annotate(overlays=(overlay,), how=self._message)
        shown = {
            name: record
            for name, record in self._state.metrics.items()
            if record.score_set == overlay.score_set
        }
        return Measure(score_set=sets[overlay.score_set], overlays=(overlay,), metrics=shown)

    def _there(self) -> State:
        head = self._target.refs.head(self._branch)
        return self._target.refs.state(head) if head is not None else State()


def _content(overlay: Overlay) -> str:
    """Returns the part of an overlay's key that is, for a copied one, a digest of its content."""
    return overlay.file.key.rpartition("/")[2][:_DIGITS]
