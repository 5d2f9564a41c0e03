"""The control port: health, metrics, versions, curation, rollouts over HTTP, and pages.

Each route is a line of `ROUTES`; who may use it is a line of `access.RULES`, and a route without
one cannot be made.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import uvicorn
from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.telemetry import TelemetryConfig
from starlette.exceptions import HTTPException

from pipeline.service import (
    changes,
    health,
    heartbeats,
    policies,
    rollouts,
    signing_in,
    versions,
)
from pipeline.service.access import RULES, allowed
from pipeline.service.answers import error_answer, json_answer
from pipeline.service.config import ServiceConfig
from pipeline.service.guard import MAX_HEADERS, Guard
from pipeline.service.health import Readiness
from pipeline.service.slow_clients import protocol_with
from pipeline.service.state import ControlState, trace_of
from pipeline.service.web.pages import for_browser
from pipeline.service.web.routes import PAGES, prepare
from schemas.errors import NotFoundError, PenstockError, UsageError

Endpoint = Callable[..., Awaitable[Response]]

ROUTES: tuple[tuple[str, str, Endpoint], ...] = (
    ("GET", "/healthz", health.healthz),
    ("GET", "/readyz", health.readyz),
    ("GET", "/metrics", health.metrics),
    ("POST", "/v1/session", signing_in.begin),
    ("DELETE", "/v1/session", signing_in.end),
    ("GET", "/v1/status", health.status),
    ("GET", "/v1/versions", versions.versions),
    ("GET", "/v1/versions/{ref}", versions.version),
    ("GET", "/v1/versions/{ref}/episodes", versions.episodes),
    ("GET", "/v1/quarantine", versions.quarantine),
    ("GET", "/v1/branches", versions.branches),
    ("GET", "/v1/tags", versions.tags),
    ("PUT", "/v1/tags/{name}", changes.put_tag),
    ("DELETE", "/v1/tags/{name}", changes.delete_tag),
    ("POST", "/v1/curate", changes.curate),
    ("POST", "/v1/rollouts", rollouts.push),
    ("GET", "/v1/learners", heartbeats.learners),
    ("POST", "/v1/learners/{run}", heartbeats.beat),
    ("GET", "/v1/policies", policies.listed),
    ("GET", "/v1/policies/{run}", policies.newest),
    ("PUT", "/v1/policies/{run}/{step}", policies.publish),
    *PAGES,
)
_SILENT: TelemetryConfig = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "operation_spans": False,
    "auto_configure": False,
}


def control_app(state: ControlState) -> FastAPI:
    """Returns the app of a control port; it starts nothing and opens nothing."""
    app = FastAPI(
        title="Penstock",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        telemetry=_SILENT,
    )
    app.state.control = state
    app.state.readiness = Readiness(state)
    prepare(app, state)
    for method, path, endpoint in (*ROUTES, ("GET", "/v1/openapi.json", _openapi)):
        add_route(app, method, path, endpoint)
    app.add_exception_handler(PenstockError, _refused)
    app.add_exception_handler(RequestValidationError, _wrong_query)
    app.add_exception_handler(HTTPException, _no_route)
    app.add_middleware(Guard, state=state)
    return app


def add_route(app: FastAPI, method: str, path: str, endpoint: Endpoint) -> None:
    """Adds a route with the check that the table of rules asks for."""
    check = Depends(allowed(RULES[method, path]))
    app.add_api_route(path, endpoint, methods=[method], dependencies=[check], response_model=None)


def server_config(app: FastAPI, config: ServiceConfig) -> uvicorn.Config:
    """Returns how uvicorn is to serve the app."""
    return uvicorn.Config(
        app,
        host=config.host,
        port=config.http_port,
        http=protocol_with(config.header_seconds),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=config.max_connections,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=int(config.request_seconds),
        h11_max_incomplete_event_size=MAX_HEADERS,
        ssl_certfile=config.tls_cert,
        ssl_keyfile=config.tls_key,
    )


async def _openapi(request: Request) -> Response:
    """What the routes take and answer, in OpenAPI."""
    return json_answer(request.app.openapi())


async def _refused(request: Request, error: Exception) -> Response:
    if not isinstance(error, PenstockError):
        raise error
    trace_of(request).kind = error.kind
    return for_browser(request, error_answer(error))


async def _wrong_query(request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    first = error.errors()[0]
    at = ".".join(str(part)[:64] for part in first["loc"])
    return await _refused(
        request, UsageError(f"Expected a request as documented, came {at}: {first['msg'][:200]}.")
    )


async def _no_route(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    method, path = request.method[:16], request.url.path[:128]
    answer = await _refused(
        request, NotFoundError(f"Expected a route of this service, came {method} {path!r}.")
    )
    answer.status_code = error.status_code
    if error.headers:
        answer.headers.update(error.headers)
    return answer
