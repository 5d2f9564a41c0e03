"""The documents a commit writes, and how a chain of them becomes the state of a version.

A commit is one small JSON file that names immutable files. It carries operations (what changed)
and, every so often or after a jump, the whole state, so that reading a version opens a bounded
number of commits. `apply` is the only place that says what an operation means.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from schemas.document import DataFile, Document
from schemas.metrics import MetricValue, ScoreSet
from schemas.spec import DatasetSpec, Encoding, FieldSpec

STORE_VERSION = 1


class StoreDocument(Document):
    """`penstock.json`, written once."""

    format: Literal["penstock"] = "penstock"
    store_version: int = STORE_VERSION
    store_id: str
    created_at: dt.datetime


class FieldDocument(Document):
    """A `FieldSpec` as JSON."""

    dtype: str
    shape: tuple[int, ...]
    encoding: Encoding = "raw"


class SpecDocument(Document):
    """A `DatasetSpec` as JSON."""

    fields: Mapping[str, FieldDocument]


class Block(Document):
    """The rows of some whole episodes of one layout: a Zarr shard, an Arrow tail, or a link."""

    id: str
    container: Literal["shard", "tail", "link"]
    spec: str
    """Name of the spec it belongs to."""
    rows: int = Field(ge=0)
    """T+1 rows per episode, all episodes together."""
    bytes: int = Field(ge=0)
    """Size on disk, all files together; of a link, the link's own."""
    file: DataFile
    """The tail or link itself, or the shard's list of files (`files.json`)."""
    media: tuple[DataFile, ...] = ()
    """Files of videos that its rows name, not counted in its size: other blocks may share them."""
    sources: DataFile | None = None
    """Of a link, the list of the source's files, not counted in its size: other links share it."""


class Part(Document):
    """Some episodes that came together: their rows and the blocks that hold their arrays."""

    id: str
    kind: Literal["stored", "linked"] = "stored"
    """Linked, if its blocks are: its arrays stay in the files they came from."""
    episodes: int = Field(ge=0)
    """Episodes of this part that the version keeps."""
    steps: int = Field(ge=0)
    rows: DataFile
    blocks: tuple[Block, ...]
    selection: DataFile | None = None
    """Which rows a curated version keeps; None keeps all."""


class Overlay(Document):
    """Columns added later, keyed by episode id: scores, labels, or arrays of one row per step."""

    file: DataFile
    score_set: str | None
    """None for labels and arrays."""
    columns: tuple[str, ...]
    episodes: int
    steps: Mapping[str, FieldDocument] = {}
    """What one row of each column is, where a column holds an array per episode: its rows one
    after the other, flat. No column of the episode table then."""
    without: tuple[DataFile, ...] = ()
    """Id indexes of episodes that it no longer speaks of: their content was replaced."""


class MetricRecord(Document):
    """Which score set a metric's column shows, and its value when it was measured."""

    score_set: str
    value: MetricValue


class SourceState(Document):
    """What is known of one source: its fingerprint and dataset-level facts."""

    format: str
    where: str
    identity: str | None
    fingerprint: str
    metadata: Mapping[str, Any] = {}
    guesses: tuple[str, ...] = ()
    settings: str = ""
    """Digest of what the job asked for that decides which episodes it takes."""
    episodes: int = Field(default=0, ge=0)
    """Its healthy episodes, all of which the branch knows."""
    quarantined: Mapping[str, int] = {}
    """Reason codes of its other episodes, and how many there are of each."""


class VersionRef(Document):
    """A commit by place and id."""

    branch: str
    number: int
    id: str


class Derivation(Document):
    """How a curated version came from another."""

    base: VersionRef
    where: str | None = None
    resolved: str | None = None
    """The filter with its quantiles replaced by numbers."""
    top: int | None = None
    by: str | None = None
    exclude: tuple[str, ...] = ()
    unscored: Literal["keep", "drop"] | None = None
    per: str | None = None
    """The column within whose groups `top` counts."""
    dedupe: bool = False
    """Of several copies only the first stays."""
    frames: str | None = None
    """`START:STOP`, the steps of each episode that stay."""
    balance: str | None = None
    """The column of whose every value equally many episodes stay."""
    each: int | None = None
    """How many those are; None for as many as the rarest value has."""
    seed: int = 0
    """Of the draw that balances."""
    thresholds: Mapping[str, Mapping[str, float | None]] = {}
    """What each quantile within groups stood for, by group."""
    dropped: Mapping[str, int] = {}
    """How many episodes each step left out, in order."""
    score_sets: Mapping[str, str] = {}
    """Metric name to the score set that the filter saw."""
    episodes_before: int = 0
    episodes_after: int = 0


class State(Document):
    """Everything a version shows."""

    specs: Mapping[str, SpecDocument] = {}
    parts: tuple[Part, ...] = ()
    known: tuple[DataFile, ...] = ()
    """Id indexes: ids this branch has seen, those a selection dropped included."""
    overlays: tuple[Overlay, ...] = ()
    score_sets: Mapping[str, ScoreSet] = {}
    metrics: Mapping[str, MetricRecord] = {}
    quarantine: tuple[DataFile, ...] = ()
    sources: Mapping[str, SourceState] = {}
    derivation: Derivation | None = None

    @property
    def episodes(self) -> int:
        """Episodes kept, before erasures."""
        return sum(part.episodes for part in self.parts)

    @property
    def steps(self) -> int:
        """Steps kept, before erasures."""
        return sum(part.steps for part in self.parts)


class Replaced(Document):
    """Episodes that leave because others come in under their ids."""

    episodes: int = Field(ge=1)
    parts: tuple[Part, ...]
    """The parts that held them, as they are without; one without episodes leaves."""
    overlays: tuple[Overlay, ...] = ()
    """The overlays that spoke of them, as they are without."""


class Append(Document):
    """New episodes, refused episodes, source states: one job's outcome."""

    op: Literal["append"] = "append"
    specs: Mapping[str, SpecDocument] = {}
    parts: tuple[Part, ...] = ()
    known: tuple[DataFile, ...] = ()
    quarantine: tuple[DataFile, ...] = ()
    sources: Mapping[str, SourceState] = {}
    replaced: Replaced | None = None
    """What the new episodes stand in for."""
    casts: Mapping[str, str] = {}
    """Fields whose values were cast on their way in, `float64 to float32` by field name."""


class Measure(Document):
    """Scores of a version as overlay columns."""

    op: Literal["measure"] = "measure"
    score_set: ScoreSet
    overlays: tuple[Overlay, ...]
    metrics: Mapping[str, MetricRecord]


class Annotate(Document):
    """Labels of episodes, or arrays of their steps, as overlay columns."""

    op: Literal["annotate"] = "annotate"
    overlays: tuple[Overlay, ...]
    how: str = ""
    """Where they came from, in words: a file, a rule."""


class Reset(Document):
    """A jump to the state that the commit carries: a new branch, a curated version, a revert."""

    op: Literal["reset"] = "reset"
    reason: Literal["branch", "curate", "revert", "remove", "repair"]
    to: VersionRef


class Compact(Document):
    """Small parts of one run put together; the episodes and their order stay."""

    op: Literal["compact"] = "compact"
    removed: tuple[str, ...]
    """Ids of parts that stood one after the other."""
    added: Part


class Expire(Document):
    """Older versions of the branch are no longer kept, unless a tag or a run names them."""

    op: Literal["expire"] = "expire"
    before: int = Field(ge=1)
    """The first number that is kept."""


class Close(Document):
    """The end of a branch; its name is not used again."""

    op: Literal["close"] = "close"


Operation = Annotated[
    Append | Measure | Annotate | Reset | Compact | Expire | Close, Field(discriminator="op")
]


class Totals(Document):
    """Sizes of a version, kept in its commit so that a log reads nothing else."""

    episodes: int
    steps: int
    bytes: int


class Commit(Document):
    """One commit file. Created exclusively, never changed."""

    format: Literal["penstock-commit"] = "penstock-commit"
    id: str
    """The commit's own uuid: tells a lost reply from a conflict."""
    run_id: str
    """The job that made it: a job that retries finds its own commit."""
    branch: str
    number: int = Field(ge=1)
    parent: VersionRef | None
    message: str
    created_at: dt.datetime
    operations: tuple[Operation, ...]
    totals: Totals
    state: State | None = None
    """The whole state after this commit, at checkpoints and jumps."""

    @property
    def ref(self) -> VersionRef:
        """This commit by place and id."""
        return VersionRef(branch=self.branch, number=self.number, id=self.id)

    @property
    def closed(self) -> bool:
        """True if this commit ends its branch."""
        return any(isinstance(operation, Close) for operation in self.operations)


def apply(state: State, operations: Iterable[Operation]) -> State:
    """Returns the state after some operations.

    A `Reset` cannot be applied: its commit carries the state.
    """
    for operation in operations:
        if isinstance(operation, Append):
            if operation.replaced is not None:
                state = _without(state, operation.replaced)
            state = state.model_copy(
                update={
                    "specs": {**state.specs, **operation.specs},
                    "parts": (*state.parts, *operation.parts),
                    "known": (*state.known, *operation.known),
                    "quarantine": (*state.quarantine, *operation.quarantine),
                    "sources": {**state.sources, **operation.sources},
                }
            )
        elif isinstance(operation, Measure):
            state = state.model_copy(
                update={
                    "overlays": (*state.overlays, *operation.overlays),
                    "score_sets": {
                        **state.score_sets,
                        operation.score_set.id: operation.score_set,
                    },
                    "metrics": {**state.metrics, **operation.metrics},
                }
            )
        elif isinstance(operation, Annotate):
            overlays = (*state.overlays, *operation.overlays)
            state = state.model_copy(update={"overlays": overlays})
        elif isinstance(operation, Compact):
            parts = _compacted(state.parts, operation)
            state = state.model_copy(update={"parts": parts})
    return state


def _without(state: State, replaced: Replaced) -> State:
    """Puts parts and overlays without the replaced episodes where those with them stood."""
    cut = {part.id: part for part in replaced.parts}
    parts = tuple(cut.get(part.id, part) for part in state.parts)
    said = {overlay.file.key: overlay for overlay in replaced.overlays}
    return state.model_copy(
        update={
            "parts": tuple(part for part in parts if part.episodes or part.id not in cut),
            "overlays": tuple(said.get(one.file.key, one) for one in state.overlays),
        }
    )


def _compacted(parts: tuple[Part, ...], operation: Compact) -> tuple[Part, ...]:
    """Puts the new part where the first of the old ones stood."""
    removed = set(operation.removed)
    # A damaged branch may have lost the commits that named the old ones.
    first = next((at for at, part in enumerate(parts) if part.id in removed), len(parts))
    kept = [part for part in parts if part.id not in removed]
    return (*kept[:first], operation.added, *kept[first:])


def size_of(parts: Iterable[Part]) -> int:
    """Returns the bytes of some parts' rows, blocks and media files, each of these once."""
    size = 0
    media: dict[str, int] = {}
    for part in parts:
        size += part.rows.bytes + sum(block.bytes for block in part.blocks)
        media.update(
            {file.key: file.bytes for block in part.blocks for file in shared_files(block)}
        )
    return size + sum(media.values())


def shared_files(block: Block) -> tuple[DataFile, ...]:
    """Returns the files that a block names and others may name too."""
    return block.media if block.sources is None else (*block.media, block.sources)


def totals(state: State) -> Totals:
    """Returns the sizes of a state."""
    size = size_of(state.parts) + sum(overlay.file.bytes for overlay in state.overlays)
    return Totals(episodes=state.episodes, steps=state.steps, bytes=size)


def spec_document(spec: DatasetSpec) -> SpecDocument:
    """Returns a spec as a document."""
    return SpecDocument(
        fields={
            name: FieldDocument(dtype=field.dtype, shape=field.shape, encoding=field.encoding)
            for name, field in spec.fields.items()
        }
    )


def dataset_spec(document: SpecDocument) -> DatasetSpec:
    """Inverse of `spec_document`."""
    return DatasetSpec(
        {
            name: FieldSpec(field.dtype, field.shape, field.encoding)
            for name, field in document.fields.items()
        }
    )
