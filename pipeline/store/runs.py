"""What learner runs read: from which step on, which versions, drawn how.

A run that goes on while its data grow must read the same on every rank, after a resume and in a
replay. So each change of versions is a reference of the run, `refs/runs/<run>/<step>.json`,
created exclusively: the first rank to create it decides, and all read what was decided. Garbage
collection keeps what a run reads until the run is forgotten.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pyarrow.compute as pc
from pydantic import Field, ValidationError

from pipeline.store import layout
from pipeline.store.catalog import Catalog
from pipeline.store.files import files_of_state
from pipeline.store.store import Store
from schemas.document import Document
from schemas.errors import DamagedStoreError, NotFoundError, suggest
from schemas.version import Commit, VersionRef


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
    created_at: dt.datetime


def refer(
    catalog: Catalog,
    run: str,
    step: int,
    commits: Sequence[Commit],
    streams: Sequence[Mapping[str, Any]],
) -> RunReference:
    """Says what a run reads from a step on, unless another rank has said so before.

    Args:
        catalog: the store.
        run: name of the run.
        step: the first global batch that reads it.
        commits: the versions, one per stream.
        streams: the settings of each stream.

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
    layout.check_name(run, "run")
    folder = f"{layout.RUNS}/{run}"
    names = sorted(name for name in catalog.objects.names(folder) if name.endswith(".json"))
    if not names:
        known = runs(catalog)
        raise NotFoundError(
            f"Expected a run, came {run!r}; {suggest(run, known)}", where=catalog.url
        )
    keys = [f"{folder}/{name}" for name in names]
    return [_parse(catalog.objects.read(key), key) for key in keys]


def runs(catalog: Catalog) -> list[str]:
    """Returns the names of all runs that the store remembers."""
    return sorted(name for name in catalog.objects.names(layout.RUNS) if layout.is_name(name))


def forget(catalog: Catalog, run: str) -> int:
    """Lets go of what a run read; returns how many references that were.

    Raises:
        NotFoundError: if there is no such run.
    """
    found = references(catalog, run)
    for reference in found:
        catalog.objects.delete(layout.run_reference(run, reference.step))
    return len(found)


def could_draw(store: Store, episode_id: str) -> list[dict[str, Any]]:
    """Returns which runs could draw an episode, from and until which of their steps.

    Returns:
        Rows of `run, from_step, until_step` (None if still), `version` and `steps_share`, the
        episode's share of the version's steps.

    Raises:
        NotFoundError: if no version that any run read has the episode, nor the newest of a branch.
    """
    found: list[dict[str, Any]] = []
    for run in runs(store.catalog):
        listed = references(store.catalog, run)
        ends = [reference.step for reference in listed[1:]]
        for reference, until in zip(listed, [*ends, None], strict=True):
            for ref in reference.versions:
                table = store.version(ref.id).episodes(columns=["episode_id", "length"])
                at = pc.index(table["episode_id"], episode_id).as_py()
                if at < 0:
                    continue
                steps = pc.sum(table["length"]).as_py()
                found.append(
                    {
                        "run": run,
                        "from_step": reference.step,
                        "until_step": until,
                        "version": ref.id,
                        "steps_share": table["length"][at].as_py() / max(steps, 1),
                    }
                )
    known = bool(found) or any(
        pc.index(head.episodes(columns=["episode_id"])["episode_id"], episode_id).as_py() >= 0
        for head in store.branches().values()
    )
    if not known:
        raise NotFoundError(
            f"Expected an episode of this store, came {episode_id!r}; `penstock episodes` lists "
            f"them.",
            where=store.url,
        )
    return found


def _parse(data: bytes, key: str) -> RunReference:
    try:
        return RunReference.model_validate_json(data)
    except ValidationError:
        raise DamagedStoreError(
            "Expected a run's reference, came something else; `penstock run forget` lets it go.",
            where=key,
        ) from None
