"""The documents a commit writes.

A commit is one small JSON file that names immutable files. It carries operations (what changed)
and, every so often or after a jump, the whole state, so that reading a version opens a bounded
number of commits. What an operation means is said in `schemas.state`.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
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
