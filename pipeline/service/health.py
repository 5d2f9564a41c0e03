"""Routes that tell how the service is: alive, ready, its metrics, its state in a page of JSON."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import anyio
import structlog
from fastapi import Request, Response

from pipeline.service.answers import json_answer, scrub
from pipeline.service.metrics import CONTENT_TYPE
from pipeline.service.state import ControlState, in_thread, state_of
from pipeline.store import layout
from schemas.errors import PenstockError

logger = structlog.stdlib.get_logger(__name__)
READY_SECONDS = 1.0
"""How long an answer of `readyz` holds: anyone may ask, and each look reads the store."""


class Readiness:
    """Whether the service can take rollouts, looked at no more often than every second."""

    def __init__(self, state: ControlState, clock: Callable[[], float] = time.monotonic) -> None:
        self._state = state
        self._clock = clock
        self._lock = threading.Lock()
        self._at: float | None = None
        self._found: dict[str, str] = {}
        self.threads = anyio.CapacityLimiter(1)
        """A store that hangs holds up those who ask for health alone."""

    def checks(self) -> dict[str, str]:
        """Returns `ok` or the kind of error: of the log with room on its disk, and of the store."""
        with self._lock:
            if self._at is None or self._clock() - self._at >= READY_SECONDS:
                checks = {"log": self._state.log.check, "store": self._store}
                self._found = {name: _outcome(name, check) for name, check in checks.items()}
                self._at = self._clock()
            return dict(self._found)

    def _store(self) -> None:
        self._state.store.catalog.objects.read(layout.STORE)


def _outcome(name: str, check: Callable[[], None]) -> str:
    try:
        check()
    except PenstockError as error:
        logger.warning("not ready", check=name, kind=error.kind, why=error.message)
        return error.kind
    except OSError as error:
        logger.warning("not ready", check=name, why=str(error))
        return "transient"
    return "ok"


async def healthz(_: Request) -> Response:
    """The process answers."""
    return json_answer({"alive": True})


async def readyz(request: Request) -> Response:
    """Whether it can take rollouts: 200, or 503 with the checks that failed."""
    state = state_of(request)
    readiness: Readiness = request.app.state.readiness
    checks = await in_thread(state, readiness.checks, limiter=readiness.threads)
    is_ready = set(checks.values()) == {"ok"}
    return json_answer({"ready": is_ready, "checks": checks}, 200 if is_ready else 503)


async def metrics(request: Request) -> Response:
    """The metrics in Prometheus' text format."""
    state = state_of(request)
    text = await in_thread(state, state.metrics.text)
    return Response(text, headers={"content-type": CONTENT_TYPE})


async def status(request: Request) -> Response:
    """The state of the log and the ports."""
    state = state_of(request)
    return json_answer(await in_thread(state, _status, state))


def _scrubbed(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {n: scrub(v) if isinstance(v, str) else v for n, v in figures.items()}


def _status(state: ControlState) -> dict[str, Any]:
    return {
        "store": state.store.id,
        "log": _scrubbed(state.log.status()),
        "ports": state.ports,
        "open_streams": state.quotas.open_streams,
        "limits": {
            "body_bytes": state.config.max_body_bytes,
            "streams": state.config.max_streams,
            "unsealed_bytes": state.config.max_unsealed_bytes,
            "seal_every_seconds": state.config.seal_every,
        },
    }
