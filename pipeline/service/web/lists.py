"""Pages of refused episodes and of tokens."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc
from fastapi import Query, Request, Response
from pydantic import Field

from pipeline.service.state import ControlState, in_thread, state_of
from pipeline.service.token_book import TokenBook
from pipeline.service.versions import RefText
from pipeline.service.web.forms import Column, PageNumber, Pages, read_form
from pipeline.service.web.pages import page, see
from schemas.document import Document
from schemas.errors import UsageError


class QuarantineQuery(Document):
    """Which refused episodes."""

    ref: RefText = "main"
    reason: Column = None
    source: Column = None
    """Part of its name."""
    page: PageNumber = 1


class RevokeForm(Document):
    """Which token."""

    id: Annotated[str, Field(pattern=r"\A[0-9a-f]{12}\z")]


async def quarantine(request: Request, query: Annotated[QuarantineQuery, Query()]) -> Response:
    """Refused episodes with reasons."""
    return await page(request, "quarantine.html", _quarantine, query)


async def tokens(request: Request) -> Response:
    """Who has tokens; never their texts, which are kept nowhere."""
    return await page(request, "tokens.html", _tokens)


async def revoke(request: Request) -> Response:
    """Revokes a token for ever."""
    state = state_of(request)
    asked = await read_form(request, RevokeForm)
    await in_thread(state, _book(state).revoke, asked.id)
    return see("/tokens")


# -- in threads ----------------------------------------------------------------------------------


def _quarantine(state: ControlState, query: QuarantineQuery) -> dict[str, Any]:
    table = state.store.quarantine(query.ref)
    counts = table.group_by("code").aggregate([("code", "count")])
    counts = counts.sort_by([("code_count", "descending"), ("code", "ascending")])
    kept = table
    if query.reason is not None:
        kept = kept.filter(pc.equal(kept["code"], query.reason))
    if query.source is not None:
        kept = kept.filter(pc.match_substring(kept["source"], query.source))
    pages = Pages(query.page, kept.num_rows)
    newest = kept.take(pa.array(range(kept.num_rows - 1, -1, -1), pa.int64()))
    return {
        "query": query,
        "of": table.num_rows,
        "counts": counts.to_pylist(),
        "pages": pages,
        "rows": newest.slice(pages.start, pages.stop - pages.start).to_pylist(),
    }


def _tokens(state: ControlState) -> dict[str, Any]:
    now = dt.datetime.now(dt.UTC)
    found = [(one, one.state(now)) for one in _book(state).tokens()]
    return {"tokens": sorted(found, key=lambda pair: pair[1] != "valid")}


def _book(state: ControlState) -> TokenBook:
    if state.book is None:
        raise UsageError("Expected a service with tokens, came one that lets everyone in.")
    return state.book
