"""`Version`, one immutable state of a dataset.

It is thin: it holds a commit and hands questions on to functions that know how to answer them.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.store import arrays, derive, tables
from pipeline.store.catalog import Catalog
from pipeline.store.choose import Unscored, choose
from pipeline.store.labels import commit_labels
from pipeline.store.query import query
from pipeline.store.selection import Selection
from pipeline.store.step_arrays import REWARDS, StepArrays, commit_steps, step_arrays, with_steps
from pipeline.store.views import Views
from schemas.episode import Episode
from schemas.errors import (
    DamagedStoreError,
    NotFoundError,
    UnknownNameError,
    UsageError,
    missing_extra,
    suggest,
)
from schemas.packed import Rows
from schemas.spec import DatasetSpec
from schemas.version import Block, Commit, Derivation, State, VersionRef, dataset_spec

if TYPE_CHECKING:
    import dask.array as da
    import xarray


@dataclass(frozen=True)
class EpisodeIndex:
    """Where every kept episode's rows lie; aligned arrays, one entry per episode in order.

    Each episode occupies T+1 consecutive rows of its block; the version's row layout is their
    concatenation in this order.
    """

    episode_ids: np.ndarray  # (E,) object
    data: np.ndarray  # (E,) int32, index into data_ids
    data_ids: tuple[str, ...]
    row_start: np.ndarray  # (E,) int64, first row within the block
    length: np.ndarray  # (E,) int64, T
    terminated: np.ndarray  # (E,) bool, of the last step
    final_present: np.ndarray  # (E,) bool, the true final observation is there
    keep: np.ndarray | None = None
    """(E, 2) int64, the first step that is used and one past the last; None uses all."""


class Version(Views):
    """One immutable state of a dataset."""

    def __init__(self, catalog: Catalog, commit: Commit) -> None:
        self._catalog = catalog
        self._commit = commit

    def __repr__(self) -> str:
        sizes = self._commit.totals
        return (
            f"Version({self.branch}:{self.number} {self.id[:8]}, {sizes.episodes:,} episodes, "
            f"{sizes.steps:,} steps, {self.message!r})"
        )

    # -- what it is ----------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """32 hex digits, unique."""
        return self._commit.id

    @property
    def number(self) -> int:
        """Position on its branch, from 1."""
        return self._commit.number

    @property
    def branch(self) -> str:
        """Name of its branch."""
        return self._commit.branch

    @property
    def parent(self) -> VersionRef | None:
        """The version it was committed on."""
        return self._commit.parent

    @property
    def message(self) -> str:
        """One line that says what changed."""
        return self._commit.message

    @property
    def created_at(self) -> dt.datetime:
        """When it was committed."""
        return self._commit.created_at

    @property
    def commit(self) -> Commit:
        """The commit document."""
        return self._commit

    @property
    def state(self) -> State:
        """Everything the version shows, as a document."""
        return self._catalog.refs.state(self._commit)

    @property
    def store(self) -> Catalog:
        """The open store it belongs to."""
        return self._catalog

    def at(self, commit: Commit) -> Version:
        """Returns another version of the same store."""
        return Version(self._catalog, commit)

    @property
    def specs(self) -> dict[str, DatasetSpec]:
        """The specs of its episodes by name; all that its branch has, while it has none."""
        state = self.state
        used = {block.spec for part in state.parts for block in part.blocks}
        return {
            name: dataset_spec(document)
            for name, document in state.specs.items()
            if name in used or not used
        }

    # -- episodes ------------------------------------------------------------------------------

    def __len__(self) -> int:
        return int(self._table().num_rows)

    def episodes(
        self,
        where: str | None = None,
        columns: Sequence[str] | None = None,
        *,
        unscored: Unscored | None = None,
    ) -> pa.Table:
        """Returns one row per episode, metric columns joined.

        Args:
            where: a filter; None keeps all.
            columns: names; None takes all.
            unscored: see `choose.choose`.
        """
        table = self._table()
        if where is not None:
            table = table.filter(pa.array(choose(table, where, unscored=unscored).mask))
        return tables.pick_columns(table, columns)

    def query(self, sql: str) -> pa.Table:
        """Returns the result of a SELECT over the view `episodes`."""
        return query(self.episodes(), sql)

    def where(self, text: str, *, unscored: Unscored | None = None) -> Selection:
        """Returns the episodes that a filter keeps, not yet a version."""
        table = self._table()
        choice = choose(table, text, unscored=unscored)
        shown = self.state.metrics
        derivation = Derivation(
            base=self._commit.ref,
            where=text,
            resolved=choice.resolved,
            thresholds=choice.thresholds,
            unscored=unscored,
            score_sets={n: shown[n].score_set for n in sorted(choice.columns) if n in shown},
        )
        return Selection(self, choice.mask, derivation)

    def episode(self, episode_id: str) -> Episode:
        """Returns one episode with its arrays.

        Raises:
            NotFoundError: if the version has no such episode.
        """
        table = self._table()
        at = pc.index(table["episode_id"], episode_id).as_py()
        if at < 0:
            raise NotFoundError(
                f"Expected an episode {episode_id!r} in {self.branch}:{self.number}, came none.",
                where=self._catalog.url,
            )
        return next(self._read(table.slice(at, 1)))

    def iter_episodes(self, where: str | None = None) -> Iterator[Episode]:
        """Yields episodes with their arrays in version order, block by block."""
        table = self._table()
        if where is not None:
            table = table.filter(pa.array(choose(table, where).mask))
        return self._read(table)

    def episodes_at(self, positions: np.ndarray) -> Iterator[Episode]:
        """Yields the episodes at some positions of `episodes()`, with their arrays, in that order.

        Only blocks that hold some of them are read.
        """
        return self._read(self._table().take(pa.array(positions)))

    # -- adding --------------------------------------------------------------------------------

    def annotate(
        self, labels: pa.Table, *, branch: str | None = None, message: str = "", how: str = ""
    ) -> Version:
        """Commits labels of some of the version's episodes; they read as columns.

        Args:
            labels: `episode_id` and columns of truth values, numbers or texts.
            branch: where to; by default this version's, whose head it must be.
            message: one line for the log.
            how: where they came from, for the record.

        Raises:
            NotFoundError: if the version has not all of the episodes.
            UsageError: if a column is one that labels may not take.
        """
        named = ", ".join(name for name in labels.column_names if name != "episode_id")
        said = message or f"annotate {named} of {labels.num_rows:,} episodes"
        target = self._target(branch)
        commit = commit_labels(
            self._catalog, target, labels, base=self._commit, message=said, how=how
        )
        return self.at(commit)

    def annotate_steps(
        self,
        name: str,
        values: Mapping[str, Any],
        *,
        branch: str | None = None,
        message: str = "",
        how: str = "",
    ) -> Version:
        """Commits arrays of one row per step for some of the version's episodes.

        `rewards` stands in for the episodes' rewards wherever they are read; any other name reads
        as an extra.

        Args:
            name: of the array.
            values: (T, ...) by episode id.
            branch: where to; by default this version's, whose head it must be.
            message: one line for the log.
            how: where they came from, for the record.

        Raises:
            NotFoundError: if the version has not all of the episodes.
            UsageError: if an array does not fit its episode, or the name is taken.
        """
        said = message or f"annotate the steps of {len(values):,} episodes with {name}"
        target = self._target(branch)
        commit = commit_steps(
            self._catalog, target, name, values, base=self._commit, message=said, how=how
        )
        return self.at(commit)

    def step_arrays(self) -> dict[str, StepArrays]:
        """Returns the arrays that `annotate_steps` added, by name and episode id."""
        return step_arrays(self._catalog, self._commit)

    # -- arrays --------------------------------------------------------------------------------

    def field(self, name: str, *, rows: bool = False, spec: str | None = None) -> da.Array:
        """Returns one field of all kept episodes as a dask array, one task per block.

        Args:
            name: full field name, such as `actions` or `observations/state`.
            rows: True for raw T+1 rows, padding included; by default real entries only, of the
                steps that `keep_start` and `keep_stop` keep where there are such labels.
            spec: only of the episodes of this spec; by default of all, which must agree on it.

        Raises:
            UnknownNameError: if no kept episode has the field, or the version no such spec.
            UsageError: if some kept episodes lack the field, or have it otherwise.
        """
        table, added = self._of_spec(spec), self._added(name)
        if added is not None and not self._is_stored(name):
            return arrays.added_field(added, table, name, rows)
        return arrays.field_array(self._catalog, self._blocks(), table, name, rows, added)

    def iter_field(self, name: str, *, spec: str | None = None) -> Iterator[Rows]:
        """Yields the real entries of one field in order as they are stored, encoded or not.

        Args and errors are those of `field`.
        """
        table, added = self._of_spec(spec), self._added(name)
        if added is not None and not self._is_stored(name):
            return iter([arrays.added_field(added, table, name, False).compute()])
        return arrays.stored_field(self._catalog, self._blocks(), table, name, added)

    def to_xarray(self, episode_id: str) -> xarray.Dataset:
        """Returns one episode as an xarray dataset (extra `xarray`)."""
        try:
            import xarray  # noqa: PLC0415 - an optional extra
        except ImportError:
            raise missing_extra("xarray", "xarray") from None
        return arrays.to_xarray(xarray, self.episode(episode_id))

    def index(self) -> EpisodeIndex:
        """Returns where every kept episode's rows lie."""
        table = self._table()
        blocks = table["_block"].combine_chunks().dictionary_encode()
        return EpisodeIndex(
            episode_ids=table["episode_id"].to_numpy(zero_copy_only=False),
            data=blocks.indices.to_numpy(zero_copy_only=False).astype(np.int32),
            data_ids=tuple(blocks.dictionary.to_pylist()),
            row_start=table["_row"].to_numpy(),
            length=table["length"].to_numpy(),
            terminated=table["terminated"].to_numpy(zero_copy_only=False),
            final_present=pc.equal(table["final_observation"], "present").to_numpy(),
            keep=tables.frame_ranges(table),
        )

    def data_rows(self, data_id: str) -> int:
        """Returns how many rows a block holds."""
        return self._block(data_id).rows

    def read_rows(self, data_id: str, fields: Sequence[str] | None = None) -> dict[str, Rows]:
        """Returns fields of a whole block in the T+1-row layout, checksums verified.

        Encoded fields come encoded; `schemas.packed.plain` decodes them.

        Args:
            data_id: one of `index().data_ids`.
            fields: full names, flags (`valid`, `terminated`, ...) included; None takes all.
        """
        return self._catalog.read_block(self._block(data_id), fields)

    # -- within --------------------------------------------------------------------------------

    def _read(self, table: pa.Table) -> Iterator[Episode]:
        found = arrays.read_episodes(self._catalog, self._blocks(), table)
        added = self.step_arrays()
        return with_steps(found, added) if added else found

    def _added(self, name: str) -> StepArrays | None:
        """Returns the arrays that were added under a full field name."""
        if name == REWARDS:
            return self.step_arrays().get(name)
        prefix, _, extra = name.partition("/")
        return self.step_arrays().get(extra) if prefix == "extras" else None

    def _is_stored(self, name: str) -> bool:
        return any(name in spec.fields for spec in self.specs.values())

    def _target(self, branch: str | None) -> str:
        """Returns the branch that something said of this version goes to."""
        refs = self._catalog.refs
        target = self.branch if branch is None else branch
        head = refs.head(target)
        if branch is None and (head is None or head.id != self.id):
            raise UsageError(
                f"Expected a branch's newest version, came {self.branch}:{self.number}; name the "
                f"branch that is to have it (branch=, --branch)."
            )
        if head is None:
            derive.create_branch(self._catalog, self._commit, target)
        return target

    def _table(self) -> pa.Table:
        return tables.episode_table(self._catalog, self._commit)

    def _of_spec(self, spec: str | None) -> pa.Table:
        """Returns the rows of the episodes of one spec, or of all."""
        table = self._table()
        if spec is None:
            return table
        if spec not in self.specs:
            raise UnknownNameError(
                f"Expected a spec of this version, came {spec!r}; {suggest(spec, self.specs)}"
            )
        return table.filter(pc.equal(table["spec"], spec))

    def _blocks(self) -> Mapping[str, Block]:
        return {block.id: block for part in self.state.parts for block in part.blocks}

    def _block(self, data_id: str) -> Block:
        try:
            return self._blocks()[data_id]
        except KeyError:
            raise DamagedStoreError(
                f"Expected the block {data_id} in {self.branch}:{self.number}, came none.",
                where=self._catalog.url,
            ) from None
