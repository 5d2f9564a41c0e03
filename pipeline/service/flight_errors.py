"""Errors as the data port tells them: a fixed kind and a message that names no path.

Whatever else escapes a method of a Flight server reaches the client with its traceback; so all of
them run within `told`, and their streams within `told_all`.
"""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Iterable, Iterator
from typing import TypeVar

import pyarrow as pa
import pyarrow.flight as fl

from pipeline.service.answers import scrub
from schemas.errors import BusyError, OutOfTimeError, PenstockError, PutError, TransientError
from schemas.pulls import Fault

logger = logging.getLogger(__name__)
_T = TypeVar("_T")
_CLASSES: dict[str, type[fl.FlightError]] = {
    "unauthenticated": fl.FlightUnauthenticatedError,
    "forbidden": fl.FlightUnauthorizedError,
    "timeout": fl.FlightTimedOutError,
}


def flight_error(error: Exception, episode_id: str | None = None) -> fl.FlightError:
    """Returns what a client is told of an error.

    Args:
        error: any; one that is none of our tree is logged, and told by an id alone.
        episode_id: of the put that it is about.
    """
    if isinstance(error, fl.FlightError):
        return error
    if isinstance(error, MemoryError | pa.ArrowMemoryError):
        error = BusyError("Expected room in memory for this, there is none; send less at a time.")
    fault = fault_of(error, episode_id)
    is_transient = isinstance(error, TransientError) and not isinstance(error, OutOfTimeError)
    kind_of = fl.FlightUnavailableError if is_transient else fl.FlightServerError
    return _CLASSES.get(fault.kind, kind_of)(fault.message, extra_info=fault.encoded())


def fault_of(error: Exception, episode_id: str | None = None) -> Fault:
    """Returns what a client is told of an error, as a document; see `flight_error`."""
    if isinstance(error, PenstockError):
        kind, message = error.kind, scrub(error.message)
    else:
        request = uuid.uuid4().hex
        logger.error("fault", extra={"request": request}, exc_info=error)
        kind = "bug"
        message = f"The service met a fault of its own; its log says more of the request {request}."
    wait = getattr(error, "retry_after", 1.0 if isinstance(error, TransientError) else None)
    return Fault(kind=kind, message=message, retry_after=wait, episode_id=episode_id)


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Makes every error within one that a client may see."""
    try:
        yield
    except fl.FlightError:
        raise
    except Exception as error:
        raise flight_error(error) from None


def told_all(items: Iterable[_T]) -> Iterator[_T]:
    """Yields items; errors on the way become such that a client may see."""
    with told():
        yield from items


def unreadable(error: Exception) -> Exception:
    """Returns what it means that a stream of puts could not be read."""
    if isinstance(error, MemoryError | pa.ArrowMemoryError):
        return error
    return PutError(f"Expected an Arrow stream of record batches, came {str(error)[:200]}.")
