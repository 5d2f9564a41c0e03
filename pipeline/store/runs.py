"""What learner runs read: from which step on, which versions, drawn how.

A run that goes on while its data grow must read the same on every rank, after a resume and in a
replay. So each change of versions is a reference of the run, `refs/runs/<run>/<step>.json`,
created exclusively: the first rank to create it decides, and all read what was decided. Garbage
collection keeps what a run reads until the run is forgotten.
"""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from pipeline.store import layout
from pipeline.store.catalog import Catalog
from pipeline.store.files import files_of_state
from schemas.document import Document
from schemas.errors import DamagedStoreError, NotFoundError, suggest
from schemas.version import Commit, VersionRef

Weight = Annotated[str, Field(pattern=r"\A\d{1,60}(/[1-9]\d{0,59})?\z")]


class MixtureReference(Document):
    """How a run mixes its streams from one global step on."""

    batch_size: int = Field(ge=1)
    """Rows of the global batch."""
    seed: int = Field(ge=0)
    sources: tuple[int, ...]
    """Which of the mixture's sources each stream of the reference is."""
    weights: tuple[Weight, ...] = Field(min_length=1)
    """Of all sources of the mixture, those of other stores included; exact, such as `1/3`."""
    anneal: tuple[int, tuple[Weight, ...], tuple[Weight, ...]] | None = None
    """Steps, first and last weights, where weights move in a straight line."""


class RunReference(Document):
    """What a run reads from one global step on."""

    format: Literal["penstock-run"] = "penstock-run"
    run: str
    step: int = Field(ge=0)
    """The first global batch that is drawn from these."""
    versions: tuple[VersionRef, ...]
    """One per stream of the run that reads this store, in their order."""
    streams: tuple[Mapping[str, Any], ...]
    """How each draws: the settings that decide its order."""
    mixture: MixtureReference | None = None
    """None for a plain stream."""
    created_at: dt.datetime


def refer(
    catalog: Catalog,
    run: str,
    step: int,
    commits: Sequence[Commit],
    streams: Sequence[Mapping[str, Any]],
    mixture: MixtureReference | None = None,
) -> RunReference:
    """Says what a run reads from a step on, unless another rank has said so before.

    Args:
        catalog: the store.
        run: name of the run.
        step: the first global batch that reads it.
        commits: the versions, one per stream.
        streams: the settings of each stream.
        mixture: how they are mixed, if they are.

    Returns:
        What was decided: by this call, or by the first one.

    Raises:
        FilesExpiredError: if a version's files are marked for deletion.
    """
    layout.check_name(run, "run")
    for commit in commits:
        catalog.marks.refuse(files_of_state(catalog.refs.state(commit)), "a run")
        catalog.refs.settle(commit)
    mine = RunReference(
        run=run,
        step=step,
        versions=tuple(commit.ref for commit in commits),
        streams=tuple(streams),
        mixture=mixture,
        created_at=dt.datetime.now(dt.UTC),
    )
    key = layout.run_reference(run, step)
    if catalog.objects.put_if_absent(key, mine.model_dump_json(indent=1).encode()):
        return mine
    return _parse(catalog.objects.read(key), key)


def references(catalog: Catalog, run: str) -> list[RunReference]:
    """Returns what a run read, in the order of its steps.

    Raises:
        NotFoundError: if there is no such run, naming the nearest.
        DamagedStoreError: if a reference cannot be read.
    """
    found = decided(catalog, run)
    if not found:
        known = runs(catalog)
        raise NotFoundError(
            f"Expected a run, came {run!r}; {suggest(run, known)}", where=catalog.url
        )
    return found


def decided(catalog: Catalog, run: str) -> list[RunReference]:
    """Returns what is decided of a run so far, in the order of its steps; nothing if it is new.

    Raises:
        DamagedStoreError: if a reference cannot be read.
    """
    return list(_references(catalog, layout.check_name(run, "run")))


def newest(catalog: Catalog, run: str) -> RunReference | None:
    """Returns what is decided of a run last; None if nothing is.

    Raises:
        DamagedStoreError: if the reference cannot be read.
    """
    for key in reversed(_keys(catalog, layout.check_name(run, "run"))):
        with contextlib.suppress(FileNotFoundError):  # forgotten meanwhile
            return _parse(catalog.objects.read(key), key)
    return None


def runs(catalog: Catalog) -> list[str]:
    """Returns the names of all runs that the store remembers."""
    return sorted(name for name in catalog.objects.names(layout.RUNS) if layout.is_name(name))


def run_versions(catalog: Catalog) -> Iterator[VersionRef]:
    """Yields the versions that runs read: what collection must keep.

    Raises:
        DamagedStoreError: if a reference cannot be read.
    """
    for run in catalog.objects.names(layout.RUNS):
        for reference in _references(catalog, run):
            yield from reference.versions


def forget(catalog: Catalog, run: str) -> int:
    """Lets go of what a run read, readable or not; returns how many references that were.

    Raises:
        NotFoundError: if there is no such run.
    """
    keys = _keys(catalog, layout.check_name(run, "run"))
    if not keys:
        raise NotFoundError(
            f"Expected a run, came {run!r}; {suggest(run, runs(catalog))}", where=catalog.url
        )
    for key in keys:
        catalog.objects.delete(key)
    return len(keys)


def _keys(catalog: Catalog, run: str) -> list[str]:
    folder = f"{layout.RUNS}/{run}"
    names = sorted(name for name in catalog.objects.names(folder) if name.endswith(".json"))
    return [f"{folder}/{name}" for name in names]


def _references(catalog: Catalog, run: str) -> Iterator[RunReference]:
    for key in _keys(catalog, run):
        try:
            data = catalog.objects.read(key)
        except FileNotFoundError:  # forgotten meanwhile
            continue
        yield _parse(data, key)


def _parse(data: bytes, key: str) -> RunReference:
    try:
        return RunReference.model_validate_json(data)
    except ValidationError:
        raise DamagedStoreError(
            "Expected a run's reference, came something else; `penstock run forget` lets it go.",
            where=key,
        ) from None
