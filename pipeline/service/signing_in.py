"""Routes by which a browser signs in with a token, and out."""

from __future__ import annotations

from typing import Annotated

from fastapi import Request, Response
from pydantic import Field

from pipeline.service.answers import json_answer
from pipeline.service.bodies import Asked, read_json
from pipeline.service.sessions import COOKIE
from pipeline.service.state import in_thread, state_of, trace_of
from pipeline.service.tokens import MAX_TEXT, Token
from schemas.errors import UsageError


class SignIn(Asked):
    """The token's text, which the browser does not keep."""

    token: Annotated[str, Field(max_length=MAX_TEXT, repr=False)]


async def begin(request: Request) -> Response:
    """Sets a cookie that stands for a token."""
    asked = await read_json(request, SignIn)
    token, cookie = await let_in(request, asked.token)
    answer = json_answer({"name": token.name, "scopes": token.scopes})
    give_cookie(request, answer, cookie)
    return answer


async def end(request: Request) -> Response:
    """Ends the session of the cookie, if there is one."""
    answer = json_answer({"signed_in": False})
    let_out(request, answer)
    return answer


async def let_in(request: Request, text: str) -> tuple[Token, str]:
    """Begins a session of a token's text; returns the token and the session's cookie.

    Raises:
        UnauthenticatedError: if the text is no token's.
        UsageError: if the service has no tokens.
    """
    state = state_of(request)
    if state.sessions is None:
        raise UsageError("Expected a service with tokens to sign in to, came one without.")
    token, cookie = await in_thread(state, state.sessions.begin, text)
    trace_of(request).token = token
    return token, cookie


def give_cookie(request: Request, answer: Response, cookie: str) -> None:
    """Lets an answer set the cookie of a session."""
    config = state_of(request).config
    answer.set_cookie(
        COOKIE,
        cookie,
        max_age=config.session_seconds,
        httponly=True,
        secure=config.scheme == "https",
        samesite="strict",
    )


def let_out(request: Request, answer: Response) -> None:
    """Ends the session of the cookie, if there is one, and takes the cookie back."""
    state = state_of(request)
    if state.sessions is not None:
        state.sessions.end(request.cookies.get(COOKIE, ""))
    answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
