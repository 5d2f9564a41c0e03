"""Bodies of requests, read after it is known that the sender may send them."""

from __future__ import annotations

from typing import TypeVar

from fastapi import Request
from pydantic import ConfigDict, ValidationError
from starlette.requests import ClientDisconnect

from schemas.document import Document
from schemas.errors import UsageError

JSON = "application/json"
OCTETS = "application/octet-stream"
ARROW = ("application/vnd.apache.arrow.stream", OCTETS)


class Asked(Document):
    """What a request asks for in JSON: no unknown keys, no other types, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


_Asked = TypeVar("_Asked", bound=Document)


async def read_json(request: Request, document: type[_Asked]) -> _Asked:
    """Returns the body as a document.

    A page of another site could send other content types without asking, so those are refused.

    Raises:
        UsageError: if it is not that.
    """
    _check_type(request, (JSON,))
    data = await read_whole(request)
    try:
        return document.model_validate_json(data)
    except ValidationError as error:
        raise UsageError(f"Expected a JSON object as documented, came {said(error)}.") from None


async def read_octets(request: Request) -> bytes:
    """Returns the body as it came.

    Raises:
        UsageError: if it does not say that it is bytes.
    """
    _check_type(request, (OCTETS,))
    return await read_whole(request)


async def read_arrow(request: Request) -> bytes:
    """Returns the body as it came.

    Raises:
        UsageError: if it does not say that it is an Arrow stream.
    """
    _check_type(request, ARROW)
    return await read_whole(request)


async def read_whole(request: Request) -> bytes:
    """Returns the body, of any kind.

    Raises:
        UsageError: if the connection ends before it does.
    """
    try:
        return await request.body()
    except ClientDisconnect:  # nobody hears this, but the log
        raise UsageError("Expected a whole body, the connection ended before.") from None


def said(error: ValidationError) -> str:
    """Returns the first thing that is wrong, without the value that was sent."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    at = ".".join(str(part)[:64] for part in first["loc"])
    return f"{at or 'something else'}: {first['msg'][:200]}"


def _check_type(request: Request, known: tuple[str, ...]) -> None:
    came = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if came not in known:
        raise UsageError(f"Expected Content-Type: {known[0]}, came {came[:64] or 'none'!r}.")
