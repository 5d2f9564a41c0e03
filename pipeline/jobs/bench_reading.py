"""What `penstock bench ingest` calls reading alone: the bytes of a dataset, nothing kept."""

from __future__ import annotations

from connectors.samples import read_alone


def convert(source: str, target: str) -> None:
    """Reads a dataset given as `format:where`; writes nothing to `target`."""
    format, _, where = source.partition(":")
    read_alone(where, format)
