"""What forms and addresses of pages say, read into documents; empty fields say nothing."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar
from urllib.parse import parse_qsl

from fastapi import Request
from pydantic import BeforeValidator, Field, ValidationError

from pipeline.service.bodies import read_whole, said
from schemas.document import Document
from schemas.errors import UsageError

FORM = "application/x-www-form-urlencoded"
MAX_FIELDS = 32
PAGE_ROWS = 50
"""Rows of a table on one page."""


def or_none(value: Any) -> Any:
    """An empty field as nothing."""
    return None if isinstance(value, str) and not value.strip() else value


Column = Annotated[str | None, Field(max_length=256), BeforeValidator(or_none)]
Text = Annotated[str | None, Field(max_length=16384), BeforeValidator(or_none)]
Id = Annotated[str, Field(max_length=16384)]
PageNumber = Annotated[int, Field(ge=1, le=10**9)]
_Asked = TypeVar("_Asked", bound=Document)


async def read_form(request: Request, document: type[_Asked]) -> _Asked:
    """Returns a form as a document.

    Raises:
        UsageError: if it is not that.
    """
    came = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if came != FORM:
        raise UsageError(f"Expected Content-Type: {FORM}, came {came[:64] or 'none'!r}.")
    body = await read_whole(request)
    try:
        text = body.decode("ascii")
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=MAX_FIELDS, errors="strict")
    except ValueError:
        raise UsageError("Expected a form of this service's pages, came something else.") from None
    if len(dict(pairs)) < len(pairs):
        raise UsageError("Expected each field of a form once, came one twice.")
    try:
        return document.model_validate(dict(pairs))
    except ValidationError as error:
        raise UsageError(f"Expected a form as its page has it, came {said(error)}.") from None


class Pages:
    """Which part of many rows a page shows."""

    def __init__(self, number: int, count: int, rows: int = PAGE_ROWS) -> None:
        """Args: the page, from 1; how many rows there are; how many a page shows."""
        self.count = count
        self.last = max(1, -(-count // rows))
        self.number = min(number, self.last)
        self.start = (self.number - 1) * rows
        self.stop = min(self.start + rows, count)
