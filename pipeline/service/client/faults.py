"""Errors of the wire as errors of our tree."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.flight as fl

from schemas.errors import (
    BusyError,
    EpisodeError,
    ForbiddenError,
    OutOfTimeError,
    PenstockError,
    TransientError,
    UnauthenticatedError,
    UsageError,
)
from schemas.pulls import Fault, read_said

OF_EPISODE = ("bad_put", "bad_episode", "spec_mismatch", "id_conflict", "too_large")
"""Kinds of errors that sending the same episode again meets again."""


def fault_in(error: Exception) -> Fault | None:
    """Returns what a service says of an error; None where it is not the service that speaks."""
    data = getattr(error, "extra_info", None)
    if not data:
        return None
    try:
        return read_said(Fault, bytes(data))
    except UsageError:
        return None


def error_of(error: Exception) -> PenstockError:
    """Returns what an error of Flight is."""
    if isinstance(error, PenstockError):
        return error
    fault = fault_in(error)
    if fault is not None:
        return error_of_kind(fault.kind, fault.message, fault.retry_after)
    said = str(error).partition(". gRPC client debug context")[0][:300]
    if isinstance(error, fl.FlightUnauthenticatedError):
        return UnauthenticatedError(f"The service refused the token: {said}.")
    if isinstance(error, fl.FlightUnauthorizedError):
        return ForbiddenError(f"The service refused this: {said}.")
    if isinstance(error, fl.FlightTimedOutError):
        return OutOfTimeError(f"The service did not answer in time: {said}.")
    return TransientError(
        f"Expected a service that answers, came: {said}; check the address, that it runs, and "
        f"that both sides use TLS or neither (a refused certificate looks the same: --tls-ca, "
        f"tls_root_certs or PENSTOCK_TLS_CA names its authority)."
    )


def error_of_kind(kind: str, message: str, retry_after: float | None = None) -> PenstockError:
    """Returns the error of our tree that has a kind."""
    for known in _all(PenstockError):
        if known.kind != kind:
            continue
        if issubclass(known, BusyError):
            return known(message, retry_after=retry_after or 1.0)
        if issubclass(known, EpisodeError):
            return known(message, code="refused")
        return known(message)
    return TransientError(message)


def _all(kind: type[PenstockError]) -> Iterator[type[PenstockError]]:
    for one in kind.__subclasses__():
        yield one
        yield from _all(one)


WIRE = (pa.ArrowException, fl.FlightError, OSError)
"""What Flight's client raises."""
