"""Who may use which route: one table, and the checks that stand before every one of them."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import urlsplit

from fastapi import Request

from pipeline.service.config import ServiceConfig
from pipeline.service.sessions import COOKIE
from pipeline.service.state import state_of, trace_of
from pipeline.service.tokens import Scope, Token, bearer, check_scope
from schemas.errors import ForbiddenError

ANYONE: tuple[Scope, ...] | None = None
"""Routes that ask for no token: they tell nothing of the data, or take the token themselves."""
ANY_TOKEN: tuple[Scope, ...] = ("push", "pull", "curate")

RULES: Mapping[tuple[str, str], tuple[Scope, ...] | None] = {
    ("GET", "/healthz"): ANYONE,
    ("GET", "/readyz"): ANYONE,
    ("GET", "/metrics"): ("pull",),
    ("GET", "/v1/openapi.json"): ANY_TOKEN,
    ("POST", "/v1/session"): ANYONE,
    ("DELETE", "/v1/session"): ANY_TOKEN,
    ("GET", "/v1/status"): ANY_TOKEN,
    ("GET", "/v1/versions"): ("pull",),
    ("GET", "/v1/versions/{ref}"): ("pull",),
    ("GET", "/v1/versions/{ref}/episodes"): ("pull",),
    ("GET", "/v1/quarantine"): ("pull",),
    ("GET", "/v1/branches"): ("pull", "curate"),
    ("GET", "/v1/tags"): ("pull", "curate"),
    ("PUT", "/v1/tags/{name}"): ("curate",),
    ("DELETE", "/v1/tags/{name}"): ("curate",),
    ("POST", "/v1/curate"): ("curate",),
    ("POST", "/v1/rollouts"): ("push",),
    ("GET", "/v1/learners"): ("pull",),
    ("POST", "/v1/learners/{run}"): ("pull",),
    ("GET", "/v1/policies"): ("push", "pull"),
    ("GET", "/v1/policies/{run}"): ("push", "pull"),
    ("PUT", "/v1/policies/{run}/{step}"): ("curate",),
    ("GET", "/"): ("pull",),
    ("GET", "/sign-in"): ANYONE,
    ("POST", "/sign-in"): ANYONE,
    ("POST", "/sign-out"): ANY_TOKEN,
    ("GET", "/static/{name}"): ANYONE,
    ("GET", "/history/{name}"): ("pull",),
    ("GET", "/diff"): ("pull",),
    ("GET", "/versions/{ref}"): ("pull",),
    ("POST", "/versions/{ref}/tag"): ("curate",),
    ("GET", "/versions/{ref}/select"): ("pull",),
    ("POST", "/versions/{ref}/select"): ("curate",),
    ("GET", "/versions/{ref}/episodes"): ("pull",),
    ("GET", "/versions/{ref}/episode"): ("pull",),
    ("GET", "/versions/{ref}/strip"): ("pull",),
    ("GET", "/live"): ("pull",),
    ("GET", "/live/figures"): ("pull",),
    ("GET", "/quarantine"): ("pull",),
    ("GET", "/tokens"): ("admin",),
    ("POST", "/tokens/revoke"): ("admin",),
}
"""Which scopes open a route, any of them; `admin` opens all. A route that is not here is none."""
SAFE = ("GET", "HEAD", "OPTIONS")


def allowed(scopes: tuple[Scope, ...] | None) -> Callable[[Request], Awaitable[None]]:
    """Returns the check of who asks; it leaves the token in the request's trace."""

    async def check(request: Request) -> None:
        if scopes is None:
            return
        token, by_cookie = authenticated(request)
        trace_of(request).token = token
        if by_cookie and request.method not in SAFE and "origin" not in request.headers:
            raise ForbiddenError(
                "Expected a request of a page of this service, came one without an Origin header."
            )
        check_scope(token, scopes)

    return check


def authenticated(request: Request) -> tuple[Token | None, bool]:
    """Returns whose request it is, and whether a cookie says so; None where nobody is asked.

    Raises:
        UnauthenticatedError: if neither a token nor a session says who it is.
    """
    state = state_of(request)
    if state.book is None or state.sessions is None:
        return None, False
    header = request.headers.get("authorization")
    cookie = request.cookies.get(COOKIE)
    if header is None and cookie is not None:
        return state.sessions.verify(cookie), True
    return state.book.verify(bearer(header)), False


def check_origin(config: ServiceConfig, method: str, headers: Mapping[str, str]) -> None:
    """Refuses names that are not the service's own, and what pages of other sites ask for.

    A page of another site could reach a loopback port by a name of its own that it lets point here
    (DNS rebinding); a name that we do not know is therefore refused, an address is not. Whatever
    changes something is refused if a browser says that a page of another origin sent it.

    Args:
        config: the service's.
        method: of the request.
        headers: by their names in lower case.

    Raises:
        ForbiddenError: if the request is refused.
    """
    host = headers.get("host", "")
    if not is_ours(config, host):
        raise ForbiddenError(
            f"Expected a Host that is a name of this service, came {host[:128]!r}; start it with "
            f"that name among its allowed hosts."
        )
    if method in SAFE:
        return
    origin = headers.get("origin")
    is_same = origin is None or (origin != "null" and urlsplit(origin).netloc == host)
    if not is_same or headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        raise ForbiddenError(
            f"Expected a request of this service's own pages, came one of {(origin or '-')[:128]!r}"
        )


def is_ours(config: ServiceConfig, host: str) -> bool:
    """True if a Host header names this service: by an address, or a name that it knows."""
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        return False
    if not name or "@" in host or "/" in host:
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        known = {"localhost", config.host.lower(), *map(str.lower, config.allowed_hosts)}
        if not config.host.startswith("127.") and config.host.lower() != "localhost":
            known.add(socket.gethostname().lower())
        return name.rstrip(".") in known
    return True
