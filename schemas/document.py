"""What every document at a border has in common, and the record of one immutable file."""

from __future__ import annotations

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
