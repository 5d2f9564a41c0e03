"""What every document at a border has in common, and the record of one immutable file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Document(BaseModel):
    """A document at the border: frozen, strict about unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=True)


class DataFile(Document):
    """One immutable file, and how to know that it is whole."""

    key: str
    bytes: int = Field(ge=0)
    crc32: str = Field(pattern=r"\A[0-9a-f]{8}\z")
    """Of the whole file. Not crc32c: a file of pieces that each end in their own crc32c has one
    and the same crc32c whatever the pieces hold, so it could be exchanged unseen."""


def keys_at(document: type[Document], path: Sequence[str | int]) -> list[str]:
    """Returns the keys that a document knows at a place, such as where pydantic found a fault."""
    at: type[Document] | None = document
    for part in path:
        if at is not None and part in at.model_fields:  # else an index, or a key of a mapping
            at = _document_within(at.model_fields[str(part)].annotation)
    return [] if at is None else list(at.model_fields)


def _document_within(annotation: Any) -> type[Document] | None:
    if isinstance(annotation, type) and issubclass(annotation, Document):
        return annotation
    found = (_document_within(part) for part in getattr(annotation, "__args__", ()))
    return next((one for one in found if one is not None), None)
