"""Who speaks to the data port: the token of a call, looked up before any method runs."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow.flight as fl

from pipeline.service.answers import status_of
from pipeline.service.audit import Deed, address_of
from pipeline.service.flight_errors import flight_error
from pipeline.service.state import ControlState
from pipeline.service.tokens import Scope, Token, bearer, check_scope
from schemas.errors import PenstockError, UsageError
from schemas.tracing import HEADER, traceparent_of

logger = logging.getLogger(__name__)
MIDDLEWARE = "token"
RECHECK_SECONDS = 1.0
"""How soon a stream that goes on ends after its token was revoked."""


_NO_SCHEMA = "Expected a method of this service, came get_schema; each stream says its schema."
"""Refused here: of this method Flight sends whatever it raises with its traceback."""


class Caller(fl.ServerMiddleware):  # type: ignore[misc]
    """Whose call it is."""

    def __init__(self, state: ControlState, token: Token | None) -> None:
        self._state = state
        self._checked = time.monotonic()
        self.token = token
        """None for a service without tokens."""

    def check(self, scopes: Sequence[Scope]) -> Token | None:
        """Returns the token if it has one of some scopes.

        Raises:
            ForbiddenError: if it has not.
        """
        check_scope(self.token, scopes)
        return self.token

    def check_again(self) -> None:
        """Makes sure, once in a while, that the token can still be used.

        Raises:
            UnauthenticatedError: if it was revoked, or has expired.
        """
        now = time.monotonic()
        if self.token is None or now - self._checked < RECHECK_SECONDS:
            return
        self._checked = now
        assert self._state.book is not None
        self.token = self._state.book.by_id(self.token.id)


class Callers(fl.ServerMiddlewareFactory):  # type: ignore[misc]
    """Looks up the token of each call."""

    def __init__(self, state: ControlState) -> None:
        self._state = state

    def start_call(self, info: Any, headers: Mapping[str, Sequence[Any]]) -> Caller:
        """Lets a call in, or not."""
        trace = traceparent_of(next(iter(headers.get(HEADER, ())), None))
        if trace is not None:
            method = str(info.method).rpartition(".")[2]
            logger.info("call", extra={"traceparent": trace, "method": method})
        try:
            caller = Caller(self._state, self._token(headers))
            if info.method == fl.FlightMethod.GET_SCHEMA:
                raise UsageError(_NO_SCHEMA)
            return caller
        except PenstockError as error:
            write_deed(self._state, None, str(info.method).rpartition(".")[2], "-", error)
            raise flight_error(error) from None
        except Exception as error:
            raise flight_error(error) from None

    def _token(self, headers: Mapping[str, Sequence[Any]]) -> Token | None:
        if self._state.book is None:
            return None
        stated = headers.get("authorization", ())
        header = stated[0] if len(stated) == 1 else None
        text = header.decode("latin-1") if isinstance(header, bytes) else header
        return self._state.book.verify(bearer(text))


def caller_of(context: Any) -> Caller:
    """Returns whose call a context is of."""
    caller = context.get_middleware(MIDDLEWARE)
    assert isinstance(caller, Caller)
    return caller


def write_deed(
    state: ControlState, token: Token | None, method: str, client: str, error: Exception | None
) -> None:
    """Writes a line of the audit; one that cannot be written is logged."""
    kind = getattr(error, "kind", "bug") if error is not None else None
    status = status_of(error) if isinstance(error, PenstockError) else 500 if error else 200
    deed = Deed(
        request=uuid.uuid4().hex,
        client=address_of(client),
        token=token.id if token is not None else None,
        name=token.name if token is not None else None,
        method=method,
        path="flight",
        status=status,
        kind=kind,
    )
    try:
        state.audit.write(deed)
    except OSError:
        logger.exception("audit line lost")
