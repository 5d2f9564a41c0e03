"""What people ask for: jobs as frozen documents with unknown keys refused."""

from __future__ import annotations

from pydantic import Field

from schemas.document import Document


class IngestJob(Document):
    """One ingestion: some sources into one branch of one store."""

    sources: tuple[str, ...] = Field(min_length=1)
    """Files, folders, or `format:where`."""
    into: str
    """The store."""
    format: str | None = None
    """Format of all sources; by default told from each source."""
    branch: str = "main"
    tag: str | None = None
    """Name for the resulting version."""
    namespace: str | None = None
    """In place of the dataset's own identity in its episodes' ids."""
    max_episodes: int | None = Field(default=None, ge=1)
    """Take only the first so many episodes of each source."""
    dry_run: bool = False
    """Read and check everything, write nothing."""
    single_writer: bool = False
    """Declares that nobody else writes to the store at the same time, for storage that lacks
    conditional writes; the store remembers it."""
    message: str | None = None
    run_id: str
    """Names this run: a retried step finds what it did before."""
