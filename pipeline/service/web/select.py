"""The page that shows what a filter keeps of a version, and saves it as a version of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import Query, Request, Response
from pydantic import BeforeValidator, Field

from pipeline.curation.preview import preview
from pipeline.service.changes import CurateRequest, chosen, commit
from pipeline.service.state import ControlState, in_thread, state_of
from pipeline.service.versions import Ref
from pipeline.service.web.columns import number_columns, telling
from pipeline.service.web.forms import Column, Text, or_none, read_form
from pipeline.service.web.pages import page, problem_of, see
from pipeline.service.web.version import panels
from pipeline.store.tables import public_columns
from schemas import filter as filters
from schemas.document import Document
from schemas.errors import PenstockError

MAX_TASKS = 100
Count = Annotated[int | None, Field(ge=1, lt=2**53), BeforeValidator(or_none)]
Unscored = Annotated[Literal["keep", "drop"] | None, BeforeValidator(or_none)]


class Wanted(Document):
    """What to keep."""

    where: Text = None
    top: Count = None
    by: Column = None
    unscored: Unscored = None


class Save(Wanted):
    """What to keep, and what its version is called."""

    branch: Annotated[str, Field(max_length=256)] = ""
    tag: Column = None
    message: Text = None


class TagForm(Document):
    """A new name of a version."""

    tag: Annotated[str, Field(max_length=256)]


async def show(request: Request, ref: Ref, query: Annotated[Wanted, Query()]) -> Response:
    """What a filter keeps."""
    return await page(request, "select.html", _shown, ref, query)


async def save(request: Request, ref: Ref) -> Response:
    """Commits what a filter keeps, and shows its version; or the page again with what is wrong."""
    state = state_of(request)
    asked = await read_form(request, Save)
    try:
        place = await in_thread(state, _save, state, ref, asked)
    except PenstockError as error:
        return await page(request, "select.html", _shown, ref, asked, problem_of(error))
    return see(place)


async def tag(request: Request, ref: Ref) -> Response:
    """Names a version for ever."""
    state = state_of(request)
    asked = await read_form(request, TagForm)
    return see(await in_thread(state, _tag, state, ref, asked.tag))


# -- in threads ----------------------------------------------------------------------------------


def _request(ref: str, asked: Wanted, **more: Any) -> CurateRequest:
    return CurateRequest(
        ref=ref, where=asked.where, top=asked.top, by=asked.by, unscored=asked.unscored, **more
    )


def _shown(
    state: ControlState, ref: str, asked: Wanted, problem: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    version = state.store.version(ref)
    table = version.episodes()
    values: dict[str, Any] = {
        "version": version,
        "ref": f"{version.branch}:{version.number}",
        "asked": asked if isinstance(asked, Save) else Save(**asked.model_dump()),
        "columns": public_columns(table),
        "numbers": number_columns(table),
        "told": None,
        **(problem or {}),
    }
    if asked.where is None and asked.top is None:
        return values
    try:
        selection = chosen(state, _request(values["ref"], asked))
    except PenstockError as error:
        return {**values, **(problem or problem_of(error))}
    named = [] if asked.where is None else sorted(filters.columns_of(filters.parse(asked.where)))
    told = preview(selection)
    kept = np.asarray(selection.mask)
    return {
        **values,
        "told": {**told, "tasks": told["tasks"][:MAX_TASKS]},
        "more_tasks": max(0, len(told["tasks"]) - MAX_TASKS),
        "panels": panels(table, telling(table, named), kept),
    }


def _save(state: ControlState, ref: str, asked: Save) -> str:
    wanted = _request(ref, asked, branch=asked.branch, tag=asked.tag, message=asked.message)
    _, version = commit(state, wanted, asked.branch)
    return f"/versions/{version.branch}:{version.number}"


def _tag(state: ControlState, ref: str, name: str) -> str:
    version = state.store.version(ref)
    state.store.tag(name, version)
    return f"/versions/{version.branch}:{version.number}"
