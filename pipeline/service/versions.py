"""Routes that look at the store: versions, their episodes, names, refused episodes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Path, Query, Request, Response
from pydantic import Field

from pipeline.service.answers import json_answer
from pipeline.service.state import ControlState, in_thread, state_of
from pipeline.store.store import Version
from pipeline.store.tables import pick_columns
from schemas.document import Document

MAX_ROWS = 10_000
_REF = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}(:[0-9]{1,12})?$"
RefText = Annotated[str, Field(pattern=_REF)]
Ref = Annotated[str, Path(pattern=_REF, description="A branch, BRANCH:N, a tag or an id.")]
Name = Annotated[str, Path(max_length=128, description="Of a branch or tag.")]
Limit = Annotated[int, Field(ge=1, le=MAX_ROWS)]


class Listing(Document):
    """Which version a listing begins at, and how long it gets."""

    ref: RefText = "main"
    limit: Limit = 50


class EpisodesQuery(Document):
    """Which episode rows."""

    where: Annotated[str, Field(max_length=16384)] | None = None
    columns: Annotated[str, Field(max_length=4096)] | None = None
    """Names, a,b,c."""
    sort: Annotated[str, Field(max_length=256)] | None = None
    """A column; -NAME descends."""
    unscored: Literal["keep", "drop"] | None = None
    limit: Limit = 1000


async def versions(request: Request, query: Annotated[Listing, Query()]) -> Response:
    """The history of a reference, newest first."""
    state = state_of(request)
    return json_answer(await in_thread(state, _log, state, query))


async def version(request: Request, ref: Ref) -> Response:
    """One version, as `penstock show --json` tells it."""
    state = state_of(request)
    return json_answer(await in_thread(state, _show, state, ref))


async def episodes(
    request: Request, ref: Ref, query: Annotated[EpisodesQuery, Query()]
) -> Response:
    """Episode rows of a version, metric columns joined; `of` counts those that the filter keeps."""
    state = state_of(request)
    return await in_thread(state, _episodes, state, ref, query)


async def branches(request: Request) -> Response:
    """The newest version of every branch."""
    state = state_of(request)
    return json_answer(await in_thread(state, _branches, state))


async def tags(request: Request) -> Response:
    """All tags."""
    state = state_of(request)
    return json_answer({"tags": await in_thread(state, state.store.tags)})


async def quarantine(request: Request, query: Annotated[Listing, Query()]) -> Response:
    """Refused episodes that a version knows of, with reasons."""
    state = state_of(request)
    return json_answer(await in_thread(state, _quarantine, state, query))


# -- in threads ----------------------------------------------------------------------------------


def brief(one: Version) -> dict[str, Any]:
    """Returns a version in a line."""
    return {
        "version": one.id,
        "number": one.number,
        "branch": one.branch,
        "parent": one.parent.id if one.parent else None,
        "message": one.message,
        "created_at": one.created_at,
        "episodes": one.commit.totals.episodes,
        "steps": one.commit.totals.steps,
    }


def _log(state: ControlState, query: Listing) -> dict[str, Any]:
    found = state.store.log(query.ref)[: query.limit]
    named: dict[str, list[str]] = {}
    for name, target in state.store.tags().items():
        named.setdefault(target.id, []).append(name)
    return {"versions": [{**brief(one), "tags": named.get(one.id, [])} for one in found]}


def _show(state: ControlState, ref: str) -> dict[str, Any]:
    return state.describe(state.store, state.store.version(ref))


def _episodes(state: ControlState, ref: str, query: EpisodesQuery) -> Response:
    found = state.store.version(ref).episodes(query.where, unscored=query.unscored)
    if query.sort is not None:
        name = query.sort.removeprefix("-")
        pick_columns(found, [name])
        order = "descending" if query.sort.startswith("-") else "ascending"
        found = found.sort_by([(name, order)])
    shown = pick_columns(found, query.columns.split(",") if query.columns else None)
    rows = shown.slice(0, query.limit).to_pylist()
    return json_answer({"episodes": rows, "of": found.num_rows})


def _branches(state: ControlState) -> dict[str, Any]:
    return {"branches": {name: brief(one) for name, one in state.store.branches().items()}}


def _quarantine(state: ControlState, query: Listing) -> dict[str, Any]:
    found = state.store.quarantine(query.ref)
    return {"episodes": found.slice(0, query.limit).to_pylist(), "of": found.num_rows}
