"""Reading sources without writing: everything that is wrong with them, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from connectors import registry
from connectors.base import Found, Listing
from pipeline.steps.validate import faults_of
from schemas.errors import SourceError
from schemas.problems import Problem

UNTRUSTED = "source_untrusted"
"""Code of a problem that spoils a whole source."""


@dataclass(frozen=True)
class Report:
    """What was found in some sources."""

    listings: tuple[Listing, ...]
    """Of the datasets that could be listed."""
    problems: tuple[Problem, ...]

    @property
    def is_untrusted(self) -> bool:
        """True if a source cannot be trusted whole."""
        return any(problem.code == UNTRUSTED for problem in self.problems)


def validate(
    sources: Sequence[str],
    format: str | None = None,
    listener: Callable[[int, int], None] | None = None,
) -> Report:
    """Reads sources to their end and lists every problem.

    Args:
        sources: paths, URLs, patterns or `format:where`.
        format: of all of them; by default each is looked into.
        listener: called with the episodes and steps just read.

    Raises:
        UsageError: if a source is not there, or its format not known or not installed.
    """
    listings: list[Listing] = []
    problems: list[Problem] = []
    for text in sources:
        for wanted, where in registry.datasets_in(text, format):
            try:
                name = registry.identify(where, wanted)
                listing = registry.source(name).discover(where)
            except SourceError as error:
                problems.append(_untrusted(where, error, where))
                continue
            listings.append(listing)
            problems += _problems_in(listing, listener)
    return Report(tuple(listings), tuple(problems))


def _problems_in(
    listing: Listing, listener: Callable[[int, int], None] | None
) -> Iterator[Problem]:
    reader = registry.source(listing.format)
    seen: dict[str, str] = {}
    for unit in listing.units:
        try:
            for found in reader.read(unit):
                yield from _faults(listing.where, found)
                yield from _double(listing.where, found, seen)
                if listener is not None:
                    listener(1, found.episode.length if found.episode else 0)
        except SourceError as error:  # the other units may still say more
            yield _untrusted(listing.where, error, f"episodes {unit.start} to {unit.stop - 1}")


def _faults(source: str, found: Found) -> Iterator[Problem]:
    if found.fault is not None:
        yield Problem(source, found.key, found.fault.code, found.fault.message)
    elif found.episode is not None:
        for fault in faults_of(found.episode):
            yield Problem(source, found.key, fault.code, fault.message)


def _double(source: str, found: Found, seen: dict[str, str]) -> Iterator[Problem]:
    if found.native_id is None:
        return
    before = seen.setdefault(found.native_id, found.key)
    if before != found.key:
        message = f"Expected ids once, came {found.native_id!r} for {before} and {found.key}."
        yield Problem(source, found.key, "id_conflict", message)


def _untrusted(source: str, error: SourceError, where: str) -> Problem:
    return Problem(source, where, UNTRUSTED, error.message)
