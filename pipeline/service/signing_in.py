"""Routes by which a browser signs in with a token, and out."""

from __future__ import annotations

from typing import Annotated

from fastapi import Request, Response
from pydantic import Field

from pipeline.service.answers import json_answer
from pipeline.service.bodies import Asked, read_json
from pipeline.service.sessions import COOKIE
from pipeline.service.state import in_thread, state_of, trace_of
from pipeline.service.tokens import MAX_TEXT
from schemas.errors import UsageError


class SignIn(Asked):
    """The token's text, which the browser does not keep."""

    token: Annotated[str, Field(max_length=MAX_TEXT, repr=False)]


async def begin(request: Request) -> Response:
    """Sets a cookie that stands for a token."""
    state = state_of(request)
    asked = await read_json(request, SignIn)
    if state.sessions is None:
        raise UsageError("Expected a service with tokens to sign in to, came one without.")
    token, cookie = await in_thread(state, state.sessions.begin, asked.token)
    trace_of(request).token = token
    answer = json_answer({"name": token.name, "scopes": token.scopes})
    answer.set_cookie(
        COOKIE,
        cookie,
        max_age=state.config.session_seconds,
        httponly=True,
        secure=state.config.scheme == "https",
        samesite="strict",
    )
    return answer


async def end(request: Request) -> Response:
    """Ends the session of the cookie, if there is one."""
    state = state_of(request)
    if state.sessions is not None:
        state.sessions.end(request.cookies.get(COOKIE, ""))
    answer = json_answer({"signed_in": False})
    answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return answer
