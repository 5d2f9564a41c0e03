"""Pages by which a person signs in with a token, and out; a token is never part of an address."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import Request, Response
from pydantic import Field

from pipeline.service.signing_in import give_cookie, let_in, let_out
from pipeline.service.state import state_of
from pipeline.service.tokens import MAX_TEXT
from pipeline.service.web.forms import read_form
from pipeline.service.web.pages import problem_of, rendered, see
from schemas.document import Document
from schemas.errors import UnauthenticatedError

_OWN = re.compile(r"/(?![/\\])[!-~]{0,1000}")


class SignInForm(Document):
    """The token's text, which the browser does not keep, and the page to go on to."""

    token: Annotated[str, Field(max_length=MAX_TEXT, repr=False)]
    next: Annotated[str, Field(max_length=1024)] = "/"


async def show(request: Request) -> Response:
    """The form."""
    if state_of(request).sessions is None:
        return see("/")
    return rendered(request, "sign_in.html", {"next": "/"})


async def begin(request: Request) -> Response:
    """Sets a cookie that stands for the token, and goes on to the page that was asked for."""
    asked = await read_form(request, SignInForm)
    try:
        _, cookie = await let_in(request, asked.token.strip())
    except UnauthenticatedError as error:
        values = {**problem_of(error), "next": asked.next}
        return rendered(request, "sign_in.html", values, values["status"])
    answer = see(asked.next if _OWN.fullmatch(asked.next) else "/")
    give_cookie(request, answer, cookie)
    return answer


async def end(request: Request) -> Response:
    """Ends the session."""
    answer = see("/sign-in")
    let_out(request, answer)
    return answer
