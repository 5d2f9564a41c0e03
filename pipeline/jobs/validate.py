"""Reading a source without writing: every episode that would be refused, and why."""

from __future__ import annotations

from typing import Any

from connectors import registry
from pipeline.steps.validate import fault_of


def problems_of(source: str, format: str | None) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Returns what a source is and the faults of its episodes.

    Raises:
        SourceError: if the source cannot be trusted whole.
    """
    named, where = registry.parse(source)
    name = format or named or registry.detect(where)
    reader = registry.source(name)
    listing = reader.discover(where)
    problems = []
    for unit in listing.units:
        for found in reader.read(unit):
            fault = found.fault or (fault_of(found.episode) if found.episode else None)
            if fault is not None:
                problems.append({"where": found.key, "code": fault.code, "message": fault.message})
    facts = {
        "format": listing.format,
        "where": listing.where,
        "identity": listing.identity,
        "episodes": listing.episodes,
        "steps": listing.steps,
        "guesses": list(listing.guesses),
    }
    return facts, problems
