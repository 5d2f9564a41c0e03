"""What a store keeps of data that stays where it is: which episodes of which source's files.

A linked block is a description in place of arrays. It names one unit of a source as connectors know
it, the episodes it takes from that in the order of their rows, with the digests they had, and the
files of the source as they were.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from schemas.document import Document


class SourceFile(Document):
    """One file of a source as it was when its episodes were read."""

    name: str
    """Relative to the source; empty for the source itself, where that is a file."""
    bytes: int = Field(ge=0)
    stamp: str
    """Changes when the file is written: its time of writing in nanoseconds, or at a URL an etag
    or what else the far side has."""
    is_link: bool = False
    """A symbolic link; only a source that was named by one is."""


class SourceFiles(Document):
    """All files of a source; the blocks that one job linked to it share them."""

    format: Literal["penstock-source"] = "penstock-source"
    where: str
    """Absolute path or URL."""
    files: tuple[SourceFile, ...]


class LinkedUnit(Document):
    """A unit of a source, as its connector reads it."""

    format: str
    where: str
    """Absolute path or URL."""
    start: int
    stop: int
    steps: int
    options: Mapping[str, Any] = {}


class Link(Document):
    """A linked block."""

    format: Literal["penstock-link"] = "penstock-link"
    block: str
    unit: LinkedUnit
    layout: Mapping[str, Any]
    """Row layout, see `schemas.arrow.layout_to_json`."""
    keys: tuple[str | None, ...]
    """What the connector calls each episode, in the order of their rows; None where it was erased
    and its rows are padding."""
    lengths: tuple[int, ...]
    """Steps of each; T+1 rows."""
    digests: tuple[str, ...]
    """SHA-256 of each one's content; empty where it was erased."""
