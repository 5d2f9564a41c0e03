"""What the control port works on, handed to it as one object, and the trace of one request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

import anyio
from fastapi import Request

from pipeline.service.audit import AuditLog
from pipeline.service.config import ServiceConfig
from pipeline.service.learners import Learners
from pipeline.service.metrics import ServiceMetrics
from pipeline.service.quotas import Quotas
from pipeline.service.rollout_log import RolloutLog
from pipeline.service.sessions import Sessions
from pipeline.service.token_book import TokenBook
from pipeline.service.tokens import Token
from pipeline.store.store import Store, Version
from schemas.errors import OutOfTimeError

THREADS = 8
PUSHES = 64
_T = TypeVar("_T")


@dataclass(frozen=True)
class ControlState:
    """Everything that the routes need."""

    config: ServiceConfig
    store: Store
    describe: Callable[[Store, Version], dict[str, Any]]
    """Facts of one version, as `penstock show --json` prints them."""
    log: RolloutLog
    book: TokenBook | None
    """None lets everyone in."""
    sessions: Sessions | None
    quotas: Quotas
    metrics: ServiceMetrics
    audit: AuditLog
    learners: Learners
    addresses: dict[str, str] = field(default_factory=dict)
    """URLs of the ports that listen: `data`, `control`."""
    threads: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(THREADS))
    """How much work on the store goes on at a time."""
    pushes: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(PUSHES))
    """How many episodes wait at a time until they are safe, which may be for the next seal."""

    @property
    def ports(self) -> dict[str, int | None]:
        """Numbers of the ports that listen."""
        return {name: urlsplit(url).port for name, url in self.addresses.items()}


@dataclass
class Trace:
    """What one request turned out to be, for its log line and the audit."""

    request_id: str
    token: Token | None = None
    kind: str | None = None
    """Of the error that it ended with."""


def state_of(request: Request) -> ControlState:
    """Returns the state of the app that a request is for."""
    state: ControlState = request.app.state.control
    return state


def trace_of(request: Request) -> Trace:
    """Returns the trace of a request."""
    trace: Trace = request.scope["penstock"]
    return trace


async def in_thread(
    state: ControlState,
    work: Callable[..., _T],
    *arguments: Any,
    limiter: anyio.CapacityLimiter | None = None,
) -> _T:
    """Returns what some blocking work does, done in a thread, within the time of a request.

    Args:
        state: the port's.
        work: what to do.
        arguments: its arguments.
        limiter: how many do such work at a time; by default all routes share one.

    Raises:
        OutOfTimeError: if it takes longer. It goes on: what it changes may yet happen.
    """
    try:
        with anyio.fail_after(state.config.request_seconds):
            return await anyio.to_thread.run_sync(
                partial(work, *arguments), abandon_on_cancel=True, limiter=limiter or state.threads
            )
    except TimeoutError:
        raise OutOfTimeError(
            f"Expected an answer within {state.config.request_seconds:g} s, came none; look "
            f"whether it was done before you ask again."
        ) from None
