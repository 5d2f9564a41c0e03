"""Pages on a store as a whole: branches and tags, a branch's history, differences of versions."""

from __future__ import annotations

from itertools import islice
from typing import Annotated, Any

import numpy as np
from fastapi import Path, Query, Request, Response
from markupsafe import Markup
from pydantic import Field

from pipeline.service.state import ControlState
from pipeline.service.versions import RefText
from pipeline.service.web.forms import PAGE_ROWS
from pipeline.service.web.pages import page
from pipeline.service.web.svg import sparkline
from pipeline.store.store import Version
from schemas.document import Document
from schemas.errors import DamagedStoreError, NotFoundError
from schemas.version import Commit

GROWTH = 16
"""Versions that a line of growth is drawn from, evenly spaced along the branch."""
GROWN = 10
"""Branches that have such a line: each of its versions is read."""
MAX_BRANCHES = 100
MAX_TAGS = 200
MAX_IDS = 200
"""Episode ids of each kind that a page of differences lists."""
BranchName = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]


class HistoryQuery(Document):
    """Where a page of history begins."""

    before: Annotated[int, Field(ge=1, lt=10**12)] | None = None
    """The newest number that is not shown any more."""


class DiffQuery(Document):
    """Two versions."""

    one: RefText
    two: RefText


async def overview(request: Request) -> Response:
    """Branches with how they grew, and tags."""
    return await page(request, "overview.html", _overview)


async def history(
    request: Request, name: BranchName, query: Annotated[HistoryQuery, Query()]
) -> Response:
    """The versions of a branch, newest first."""
    return await page(request, "history.html", _history, name, query.before)


async def diff(request: Request, query: Annotated[DiffQuery, Query()]) -> Response:
    """Episodes that came, left or were scored anew from one version to another."""
    return await page(request, "diff.html", _diff, query)


# -- in threads ----------------------------------------------------------------------------------


def _overview(state: ControlState) -> dict[str, Any]:
    heads = sorted(
        state.store.branches().values(), key=lambda one: (one.branch != "main", one.branch)
    )
    tags = state.store.tags()
    rows = [
        {"head": head, "growth": _growth(state, head) if at < GROWN else ""}
        for at, head in enumerate(heads[:MAX_BRANCHES])
    ]
    return {
        "store": state.store,
        "branches": rows,
        "more_branches": len(heads) - len(rows),
        "tags": dict(islice(sorted(tags.items()), MAX_TAGS)),
        "more_tags": max(0, len(tags) - MAX_TAGS),
    }


def _growth(state: ControlState, head: Version) -> Markup:
    numbers = np.unique(np.linspace(1, head.number, min(head.number, GROWTH)).astype(int))
    found = [_commit(state, head.branch, int(number)) for number in numbers]
    steps = [one.totals.steps for one in found if one is not None]
    return sparkline(steps, f"Steps in {len(steps)} versions of {head.branch}")


def _history(state: ControlState, branch: str, before: int | None) -> dict[str, Any]:
    head = state.store.version(branch)
    newest = head.number if before is None else min(before - 1, head.number)
    numbers = range(newest, max(newest - PAGE_ROWS, 0), -1)
    shown = [(number, _commit(state, head.branch, number)) for number in numbers]
    named: dict[str, list[str]] = {}
    for name, target in state.store.tags().items():
        named.setdefault(target.id, []).append(name)
    return {"branch": head.branch, "head": head, "versions": shown, "tags": named}


def _commit(state: ControlState, branch: str, number: int) -> Commit | None:
    """One commit; None if it cannot be read, which is the doctor's business."""
    try:
        return state.store.catalog.refs.read(branch, number)
    except (NotFoundError, DamagedStoreError):
        return None


def _diff(state: ControlState, query: DiffQuery) -> dict[str, Any]:
    one, two = state.store.version(query.one), state.store.version(query.two)
    fixed = [f"{version.branch}:{version.number}" for version in (one, two)]
    changes = state.store.diff(*fixed)
    kinds = (
        ("added", changes.added, fixed[1]),
        ("removed", changes.removed, fixed[0]),
        ("scored anew", changes.rescored, fixed[1]),
        ("replaced", changes.replaced, fixed[1]),
        ("labelled anew", changes.relabelled, fixed[1]),
    )
    found = [(kind, ids[:MAX_IDS], len(ids), ref) for kind, ids, ref in kinds]
    return {"one": fixed[0], "two": fixed[1], "kinds": found}
