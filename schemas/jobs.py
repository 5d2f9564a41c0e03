"""What people ask for: jobs as frozen documents with unknown keys refused."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from schemas.document import Document
from schemas.gate import Gate

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "": 1.0}


def seconds(value: object) -> object:
    """Returns `90`, `90s`, `30m`, `24h` or `7d` as seconds; anything else as it is."""
    match = (
        re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhd]?)\s*", value) if type(value) is str else None
    )
    if type(value) is str and match is None:
        raise ValueError("expected a time such as 90s, 30m, 24h or 7d")
    return float(match[1]) * _UNITS[match[2]] if match else value


Seconds = Annotated[float, BeforeValidator(seconds)]


class _Ingestion(Document):
    """What one ingestion does: some sources into one branch of one store."""

    sources: tuple[str, ...] = Field(min_length=1)
    """Files, folders, or `format:where`."""
    into: str
    """The store."""
    name: str | None = None
    """Names the job, and so its lock; by default sources, format and branch do."""
    format: str | None = None
    """Format of all sources; by default told from each source."""
    branch: str = "main"
    tag: str | None = None
    """Name for the resulting version."""
    namespace: str | None = None
    """In place of the dataset's own identity in its episodes' ids."""
    new_spec: str | None = None
    """Name of a spec that episodes whose fields fit no spec of the branch join it under."""
    on_change: Literal["quarantine", "replace"] = "quarantine"
    """What becomes of an episode whose id is known with other content."""
    link: bool = False
    """Commit references to the sources' own files, copy nothing."""
    gate: Gate | None = None
    """What must hold before the episodes are committed."""
    dtype: str | None = None
    """Cast floats to this dtype, or with `spec` to those of the branch's spec; by default they
    stay as they came."""
    commit_every: int | None = Field(default=None, ge=1)
    """One commit per so many episodes; by default one in all."""
    max_episodes: int | None = Field(default=None, ge=1)
    """Take only the first so many episodes of each source."""
    backfill: bool = False
    """Read everything again, sources that have not changed included."""
    lag: Seconds = Field(default=0.0, ge=0)
    """Leave files that were written less than so many seconds ago for the next run."""
    timeout: Seconds | None = Field(default=None, gt=0)
    """Stop after so many seconds; what is committed by then stays."""
    dry_run: bool = False
    """Read and check everything, write nothing."""
    single_writer: bool = False
    """Declares that nobody else writes to the store at the same time, for storage that lacks
    conditional writes; the store remembers it."""
    shared_filesystem: bool = False
    """Declares that workers on other hosts see a local store and the sources at the same paths."""
    message: str | None = None
    """One line for the log."""

    @model_validator(mode="after")
    def _whole_or_in_parts(self) -> Self:
        if self.commit_every is not None and self.gate is not None and self.gate.may_refuse:
            raise ValueError(
                "expected no commit_every with a gate that may refuse the job whole: part of it "
                "would be committed by then"
            )
        return self


class IngestJob(_Ingestion):
    """One run of an ingestion."""

    run_id: str
    """Names this run: a retried step finds what it did before."""
    engine: str = "in-process"
    """What does the work, for the run's record."""
    started_at: float | None = None
    """When it began, as `time.time()` tells; by default when its sources are listed."""


class EngineConfig(Document):
    """What does a job's work, and with how many hands."""

    engine: Literal["in-process", "dask", "beam"] = "in-process"
    address: str | None = None
    """Of a Dask scheduler, with `dask`; by default a cluster of this machine's own."""
    workers: int | None = Field(default=None, ge=1)
    """Processes that work at once; by default what the engine finds."""
    runner: str | None = None
    """A Beam runner by name, with `beam`."""
    options: tuple[str, ...] = ()
    """Further Beam options (`--name=value`), with `beam`."""


class JobFile(_Ingestion):
    """A job file: an ingestion, its engine, its schedule, and where it tells of itself."""

    engine: Literal["in-process", "dask", "beam"] = "in-process"
    workers: int | None = Field(default=None, ge=1)
    """Processes that work at once; by default what the engine finds."""
    dask: str | None = None
    """Address of a Dask scheduler; by default a cluster of this machine's own."""
    runner: str | None = None
    """A Beam runner by name."""
    every: Seconds | None = Field(default=None, gt=0)
    """Run again and again, so many seconds after the last run ended."""
    metrics_file: str | None = None
    """Where to write what became of the last run, as Prometheus' text format."""
    log_format: Literal["text", "json"] | None = None
    """By default text on a terminal, JSON lines elsewhere."""

    @model_validator(mode="after")
    def _fitting_engine(self) -> Self:
        if self.runner is not None and self.engine != "beam":
            raise ValueError("expected runner only with the engine beam")
        if self.dask is not None and self.engine != "dask":
            raise ValueError("expected dask only with the engine dask")
        return self

    def job(self, run_id: str) -> IngestJob:
        """Returns one run of it."""
        return IngestJob(**{n: getattr(self, n) for n in _Ingestion.model_fields}, run_id=run_id)

    def engine_config(self, options: tuple[str, ...] = ()) -> EngineConfig:
        """Returns the engine; `options` are Beam's own."""
        return EngineConfig(
            engine=self.engine,
            address=self.dask,
            workers=self.workers,
            runner=self.runner,
            options=options,
        )
