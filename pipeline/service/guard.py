"""The door of the control port: every request goes through it, before any route is looked for.

It checks names and origins, holds bodies to a size and a time before they are read, sends headers
that keep browsers from harm, and writes what happened into the log, the metrics and the audit.
"""

from __future__ import annotations

import time
import uuid

import anyio
import structlog
from fastapi import Request, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.service.access import SAFE, check_origin
from pipeline.service.answers import bug_answer, error_answer
from pipeline.service.audit import Deed
from pipeline.service.state import ControlState, Trace
from pipeline.service.web.pages import for_browser
from schemas.errors import OutOfTimeError, PenstockError, TooLargeError, UsageError
from schemas.tracing import HEADER as TRACEPARENT
from schemas.tracing import traceparent_of

logger = structlog.stdlib.get_logger(__name__)
HEADERS = {
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'; object-src 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
"""Of every answer; a route may set its own `cache-control`."""
LARGE = "/v1/rollouts"
"""The route whose bodies may be as long as an episode."""
POLICIES = "/v1/policies/"
"""The routes whose bodies may be as long as a policy."""
SMALL = ("/v1/session", "/sign-in")
SMALL_BYTES = 4096
"""Of the bodies of the routes that read what anybody sends."""
METHODS = ("GET", "PUT", "POST", "DELETE")
MAX_HEADERS = 16 << 10
"""Bytes of a request's headers together."""
_REFUSALS = (401, 403)
_TRACE = TRACEPARENT.encode()


class Guard:
    """The ASGI middleware."""

    def __init__(self, app: ASGIApp, state: ControlState) -> None:
        self._app = app
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        await _Request(self._state, scope, receive, send).serve(self._app)


class _Request:
    """One request on its way through."""

    def __init__(self, state: ControlState, scope: Scope, receive: Receive, send: Send) -> None:
        self._state = state
        self._scope = scope
        self._receive = receive
        self._send = send
        self._trace = Trace(request_id=uuid.uuid4().hex)
        self._began = time.monotonic()
        self._status = 0
        self._came = 0  # bytes of the body
        self._is_whole = False
        own = {LARGE: state.config.max_body_bytes, **dict.fromkeys(SMALL, SMALL_BYTES)}
        most = own.get(scope["path"], state.config.max_json_bytes)
        if scope["path"].startswith(POLICIES) and scope["method"] == "PUT":
            most = state.config.max_body_bytes
        self._most = most
        scope["penstock"] = self._trace

    async def serve(self, app: ASGIApp) -> None:
        """Lets the app answer, or answers in its place."""
        structlog.contextvars.bind_contextvars(request=self._trace.request_id)
        trace = traceparent_of(dict(self._scope["headers"]).get(_TRACE, b"").decode("latin-1"))
        if trace is not None:
            structlog.contextvars.bind_contextvars(traceparent=trace)
        try:
            self._check()
            await app(self._scope, self._take, self._give)
        except PenstockError as error:
            await self._answer(error_answer(error), error.kind)
        except Exception:
            logger.exception("fault")
            await self._answer(bug_answer(self._trace.request_id), "bug")
        finally:
            if not self._status:
                self._tell()  # nobody waited for the answer
            structlog.contextvars.unbind_contextvars("request", "traceparent")

    def _check(self) -> None:
        names = [name for name, _ in self._scope["headers"]]
        if names.count(b"host") != 1:
            raise UsageError(f"Expected one Host header, came {names.count(b'host')}.")
        if sum(len(name) + len(value) for name, value in self._scope["headers"]) > MAX_HEADERS:
            raise TooLargeError(f"Expected at most {MAX_HEADERS:,} bytes of headers, came more.")
        headers = {
            name.decode("latin-1"): v.decode("latin-1") for name, v in self._scope["headers"]
        }
        check_origin(self._state.config, self._scope["method"], headers)
        if headers.get("content-encoding", "identity") != "identity":
            raise UsageError("Expected a body that is not compressed, came a Content-Encoding.")
        declared = headers.get("content-length", "0")
        if not declared.isdigit() or int(declared) > self._most:
            raise self._too_large()

    async def _take(self) -> Message:
        """Receives a piece of the body, within its time and size; then waits for its end."""
        if self._is_whole:
            return await self._receive()
        left = self._state.config.request_seconds - (time.monotonic() - self._began)
        try:
            with anyio.fail_after(left):
                message = await self._receive()
        except TimeoutError:
            raise OutOfTimeError(
                f"Expected the whole request within {self._state.config.request_seconds:g} s."
            ) from None
        self._is_whole = not message.get("more_body", False)
        self._came += len(message.get("body", b""))
        if self._came > self._most:
            raise self._too_large()
        return message

    async def _give(self, message: Message) -> None:
        """Sends a piece of the answer, with our headers."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
            given = [(name, value) for name, value in message["headers"] if name != b"server"]
            known = {name for name, _ in given}
            ours = {**HEADERS, "x-request-id": self._trace.request_id}
            added = [(name.encode(), value.encode()) for name, value in ours.items()]
            message["headers"] = [*given, *(item for item in added if item[0] not in known)]
            self._tell()
        await self._send(message)

    async def _answer(self, answer: Response, kind: str) -> None:
        self._trace.kind = kind
        if not self._status:  # else it is too late: the answer ends here, and is seen to be short
            answer = for_browser(Request(self._scope), answer)
            await answer(self._scope, self._receive, self._give)

    def _too_large(self) -> TooLargeError:
        return TooLargeError(
            f"Expected a body of at most {self._most:,} bytes that states its length or keeps to "
            f"it, came a longer one."
        )

    def _tell(self) -> None:
        """Counts, logs and audits the request."""
        route = getattr(self._scope.get("route"), "path", "none")
        method = self._scope["method"] if self._scope["method"] in METHODS else "other"
        seconds = time.monotonic() - self._began
        metrics = self._state.metrics
        metrics.http_requests.labels(method, route, str(self._status)).inc()
        metrics.http_seconds.labels(route).observe(seconds)
        token = self._trace.token
        deed = Deed(
            request=self._trace.request_id,
            client=(self._scope.get("client") or ("-",))[0],
            token=token.id if token is not None else None,
            name=token.name if token is not None else None,
            method=self._scope["method"][:16],
            path=self._scope["path"],
            status=self._status,
            kind=self._trace.kind,
        )
        is_traced = "traceparent" in structlog.contextvars.get_contextvars()
        if self._status >= 500 or self._scope["method"] not in SAFE or is_traced:
            said = {} if self._trace.kind is None else {"kind": self._trace.kind}
            logger.info(
                "request", seconds=round(seconds, 4), status=self._status, route=route, **said
            )
        if self._scope["method"] in SAFE and self._status not in _REFUSALS:
            return
        try:
            self._state.audit.write(deed)
        except OSError:
            logger.exception("audit line lost", path=deed.path, status=deed.status)
