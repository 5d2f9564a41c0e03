"""How pages are made: one template environment that escapes every text, and errors as pages.

Pages run no script but the one file of ours and load nothing from elsewhere; the headers that
`guard` sends forbid both.
"""

from __future__ import annotations

import datetime as dt
import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

import anyio
from fastapi import Request, Response
from fastapi.responses import RedirectResponse
from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.service.answers import place, scrub, status_of
from pipeline.service.state import ControlState, in_thread, state_of, trace_of
from pipeline.service.tokens import Scope, Token
from schemas.errors import PenstockError

MAX_TEXT = 200
"""Characters of a text of the data on a page."""
NOTHING = "–"  # noqa: RUF001 - what a table shows for nothing
HEADERS = {"referrer-policy": "same-origin"}
"""Without a referrer browsers send forms with `Origin: null`, which the port refuses."""
Values = Mapping[str, Any]


async def page(
    request: Request,
    template: str,
    work: Callable[..., Values],
    *arguments: Any,
    limiter: anyio.CapacityLimiter | None = None,
) -> Response:
    """Returns a page of what some blocking work finds; drawn in a thread, too.

    Args:
        request: whose page it is.
        template: its name.
        work: called with the state and the arguments, returns the template's values; `status`
            among them is that of the answer.
        arguments: more of them.
        limiter: how many do such work at a time; by default as many as on the store.
    """
    state = state_of(request)

    def make() -> Response:
        values = work(state, *arguments)
        return rendered(request, template, values, values.get("status", 200))

    return await in_thread(state, make, limiter=limiter)


def rendered(request: Request, template: str, values: Values, status: int = 200) -> Response:
    """Returns a template as an answer."""
    state, token = state_of(request), trace_of(request).token
    may = functools.partial(_may, state, token)
    has_tokens = state.book is not None
    known = {"me": token, "may": may, "has_tokens": has_tokens, "at": request.url.path}
    text = environment().get_template(template).render({**known, **values})
    return Response(text, status, HEADERS, "text/html")


def for_browser(request: Request, refusal: Response) -> Response:
    """Returns a refusal as a page with the same sentence, for a browser that shows what it gets.

    Who is not known may sign in there.
    """
    is_api = request.url.path.startswith("/v1/")
    if is_api or "text/html" not in request.headers.get("accept", ""):
        return refusal
    told = json.loads(bytes(refusal.body))["error"]
    asked = f"{request.url.path}?{request.url.query}".rstrip("?")
    where = f" ({told['where']})" if told["where"] else ""
    values = {
        "problem": told["message"] + where,
        "kind": told["kind"],
        "next": asked if request.method == "GET" else "/",
    }
    template = "sign_in.html" if told["kind"] == "unauthenticated" else "error.html"
    answer = rendered(request, template, values, refusal.status_code)
    if "retry-after" in refusal.headers:
        answer.headers["retry-after"] = refusal.headers["retry-after"]
    return answer


def problem_of(error: PenstockError) -> dict[str, Any]:
    """Returns what a page with a form says of an error, and its status."""
    return {"problem": said_of(error), "status": status_of(error)}


def said_of(error: PenstockError) -> str:
    """Returns an error's sentence, without a path of this machine."""
    where = f" ({place(error.where)})" if error.where else ""
    return scrub(error.message) + where


def see(path: str) -> Response:
    """Returns the answer to a form that worked: look there."""
    return RedirectResponse(path, 303)


@functools.cache
def environment() -> Environment:
    """Returns the templates; every text is escaped."""
    found = Environment(
        loader=PackageLoader("pipeline.service.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    found.filters.update(short=short, said=said, size=size, when=when)
    return found


def short(value: object, most: int = MAX_TEXT) -> str:
    """A text of the data: cut to a size, without what would turn the page's letters round."""
    text = str(value)
    cut = text if len(text) <= most else f"{text[: most - 1]}…"
    return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in cut)


def said(value: object) -> str:
    """One value as a person would write it."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dt.datetime):
        return when(value)
    return f"{value:,}" if isinstance(value, int) else short(value)


def size(count: float) -> str:
    """Bytes as a person would write them."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.4g} {unit}"
        count /= 1000
    return f"{count:,.4g} TB"


def when(moment: dt.datetime) -> str:
    """A moment, in UTC."""
    return f"{moment.astimezone(dt.UTC):%Y-%m-%d %H:%M:%S}"


def _may(state: ControlState, token: Token | None, scope: Scope) -> bool:
    return state.book is None or (token is not None and token.allows(scope))
