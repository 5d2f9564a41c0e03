"""The pages of the control port, a line each; who may see them is a line of `access.RULES`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib import resources

import anyio
from fastapi import FastAPI, Request, Response

from pipeline.service.state import ControlState
from pipeline.service.web import episode, lists, live, overview, select, signing, version
from pipeline.service.web.rates import Watch
from pipeline.service.web.strips import Strips
from schemas.errors import NotFoundError

FILES = {
    "penstock.css": "text/css; charset=utf-8",
    "penstock.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
"""What pages load."""


async def static(_: Request, name: str) -> Response:
    """A file that pages load."""
    if name not in FILES:
        raise NotFoundError(f"Expected a file of the pages, came {name[:64]!r}.")
    data = (resources.files("pipeline.service.web") / "static" / name).read_bytes()
    return Response(data, headers={"content-type": FILES[name], "cache-control": "no-cache"})


PAGES: tuple[tuple[str, str, Callable[..., Awaitable[Response]]], ...] = (
    ("GET", "/", overview.overview),
    ("GET", "/sign-in", signing.show),
    ("POST", "/sign-in", signing.begin),
    ("POST", "/sign-out", signing.end),
    ("GET", "/static/{name}", static),
    ("GET", "/history/{name}", overview.history),
    ("GET", "/diff", overview.diff),
    ("GET", "/versions/{ref}", version.version),
    ("POST", "/versions/{ref}/tag", select.tag),
    ("GET", "/versions/{ref}/select", select.show),
    ("POST", "/versions/{ref}/select", select.save),
    ("GET", "/versions/{ref}/episodes", version.rows),
    ("GET", "/versions/{ref}/episode", episode.episode),
    ("GET", "/versions/{ref}/strip", episode.strip),
    ("GET", "/live", live.live),
    ("GET", "/live/figures", live.figures),
    ("GET", "/quarantine", lists.quarantine),
    ("GET", "/tokens", lists.tokens),
    ("POST", "/tokens/revoke", lists.revoke),
)


def prepare(app: FastAPI, state: ControlState) -> None:
    """Gives an app what its pages keep between requests."""
    app.state.watch = Watch(state.metrics)
    app.state.runs = live.Runs()
    app.state.strips = Strips()
    app.state.readers = anyio.CapacityLimiter(episode.READERS)
