"""Routes that make names and versions: tags and curation."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Any, Literal

from fastapi import Request, Response
from pydantic import Field

from pipeline.curation.preview import preview
from pipeline.curation.select import Curation, apply, describe
from pipeline.service.answers import json_answer
from pipeline.service.bodies import Asked, read_json
from pipeline.service.state import ControlState, in_thread, state_of
from pipeline.service.versions import Name, RefText
from pipeline.store import layout
from pipeline.store.reader import Version
from pipeline.store.selection import Selection
from schemas.errors import NameTakenError, UsageError

Text = Annotated[str, Field(max_length=16384)]
Short = Annotated[str, Field(max_length=256)]
Count = Annotated[int, Field(ge=1, lt=2**53)]


class TagRequest(Asked):
    """What a new tag names."""

    ref: RefText = "main"


class CurateRequest(Asked):
    """A curation, as `penstock curate` takes it."""

    ref: RefText = "main"
    where: Text | None = None
    dedupe: bool = False
    frames: Short | None = None
    top: Count | None = None
    by: Short | None = None
    per: Short | None = None
    exclude: tuple[Annotated[str, Field(max_length=1024)], ...] = ()
    balance: Short | None = None
    each: Count | None = None
    seed: Annotated[int, Field(ge=0, lt=2**53)] = 0
    unscored: Literal["keep", "drop"] | None = None
    preview: bool = False
    """Show, commit nothing."""
    branch: Short | None = None
    """Where the version goes; with `preview` left out."""
    tag: Short | None = None
    message: Text | None = None


async def put_tag(request: Request, name: Name) -> Response:
    """Names a version for ever; again is no error, for another version it is."""
    state = state_of(request)
    asked = await read_json(request, TagRequest)
    return json_answer(await in_thread(state, _tag, state, name, asked.ref))


async def delete_tag(request: Request, name: Name) -> Response:
    """Removes a tag; the version stays."""
    state = state_of(request)
    await in_thread(state, state.store.delete_tag, name)
    return json_answer({"deleted": name})


async def curate(request: Request) -> Response:
    """Shows what a curation keeps, or commits it."""
    state = state_of(request)
    asked = await read_json(request, CurateRequest)
    return json_answer(await in_thread(state, _curate, state, asked))


def chosen(state: ControlState, asked: CurateRequest) -> Selection:
    """Returns what a curation keeps; blocks.

    Raises:
        PenstockError: see `curation.select.apply`.
    """
    wanted = Curation(**{field.name: getattr(asked, field.name) for field in fields(Curation)})
    return apply(state.store.version(asked.ref), wanted)


def commit(state: ControlState, asked: CurateRequest, branch: str) -> tuple[Selection, Version]:
    """Makes what a curation keeps the next version of a branch, and tags it if asked; blocks.

    Raises:
        UsageError, NameTakenError: if the tag can be none, or is taken; nothing is committed then.
    """
    if asked.tag is not None and layout.check_name(asked.tag, "tag") in state.store.tags():
        raise NameTakenError(
            f"Expected a new tag, came {asked.tag!r}, which is taken; nothing was committed."
        )
    selection = chosen(state, asked)
    base = selection.version
    said = f"curate {base.branch}:{base.number}: {describe(selection.derivation)}"
    version = selection.commit(branch=branch, message=asked.message or said)
    if asked.tag is not None:
        state.store.tag(asked.tag, version)
    return selection, version


def _tag(state: ControlState, name: str, ref: str) -> dict[str, Any]:
    version = state.store.version(ref)
    state.store.tag(name, version)
    return {"tag": name, "version": version.id, "number": version.number, "branch": version.branch}


def _curate(state: ControlState, asked: CurateRequest) -> dict[str, Any]:
    if asked.preview == (asked.branch is not None):
        raise UsageError('Expected either "preview": true or a "branch" for the version.')
    if asked.branch is None:
        return preview(chosen(state, asked))
    selection, version = commit(state, asked, asked.branch)
    return {
        "version": version.id,
        "number": version.number,
        "branch": version.branch,
        "tag": asked.tag,
        "episodes": len(version),
        "steps": version.commit.totals.steps,
        "derivation": selection.derivation,
    }
