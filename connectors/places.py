"""Sources at URLs: connectors read local paths only, so they read a copy, under the URL's name.

What connectors say about the copy (units, episodes, errors) is said about the URL instead, so that
engines ship URLs to workers, and a unit carries the state it was planned for: a worker that finds
another state refuses it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from connectors import spool
from connectors.base import Found, Listing, Source, Unit
from connectors.urls import is_url, local_path
from schemas.errors import EpisodeError, PenstockError

T = TypeVar("T")
URL_STATE = "url_state"
"""Option of a unit: the state of the URL's files that it was planned for."""


class PlacedSource:
    """A connector that reads URLs too, through copies."""

    def __init__(self, inner: Source) -> None:
        self.inner = inner

    def guesses(self) -> tuple[str, ...]:
        """See `connectors.base.Source`."""
        return self.inner.guesses()

    def discover(self, where: str) -> Listing:
        """See `connectors.base.Source`; where and units name the URL."""
        if not is_url(where):
            return self.inner.discover(where)
        path = local_path(where)
        if path != where:
            with _speaking_of(where, path):
                return _placed(self.inner.discover(path), where, path, None)
        with spool.SPOOL.borrow(where) as (path, state), _speaking_of(where, path):
            return _placed(self.inner.discover(path), where, path, state)

    def read(self, unit: Unit) -> Iterator[Found]:
        """See `connectors.base.Source`."""
        if not is_url(unit.where):
            yield from self.inner.read(unit)
            return
        path = local_path(unit.where)
        if path != unit.where:
            with _speaking_of(unit.where, path):
                for found in self.inner.read(replace(unit, where=path)):
                    yield _renamed(found, unit.where, path)
            return
        options = {name: value for name, value in unit.options.items() if name != URL_STATE}
        with (
            spool.SPOOL.borrow(unit.where, unit.options.get(URL_STATE)) as (path, _),
            _speaking_of(unit.where, path),
        ):
            for found in self.inner.read(replace(unit, where=path, options=options)):
                yield _renamed(found, unit.where, path)


def _placed(listing: Listing, url: str, path: str, state: str | None) -> Listing:
    extra: dict[str, Any] = {} if state is None else {URL_STATE: state}
    return replace(
        listing,
        where=url,
        units=tuple(
            replace(unit, where=url, options={**unit.options, **extra}) for unit in listing.units
        ),
        fingerprint=listing.fingerprint if state is None else state,
        guesses=tuple(guess.replace(path, url) for guess in listing.guesses),
    )


def _renamed(found: Found, url: str, path: str) -> Found:
    episode, fault = found.episode, found.fault
    if episode is not None and episode.source and path in episode.source:
        episode = episode.replace(source=episode.source.replace(path, url))
    if fault is not None:
        where = fault.where and fault.where.replace(path, url)
        fault = EpisodeError(fault.message.replace(path, url), code=fault.code, where=where)
    return replace(found, episode=episode, fault=fault)


@contextmanager
def _speaking_of(url: str, path: str) -> Iterator[None]:
    """Lets errors about a copy name its URL."""
    try:
        yield
    except PenstockError as error:
        error.message = error.message.replace(path, url)
        error.args = (error.message,)
        error.where = error.where and error.where.replace(path, url)
        raise


def on_copy(where: str, work: Callable[[str], T]) -> T:
    """Returns what some work on a path gives, on a copy where `where` is a URL."""
    path = local_path(where)
    if not is_url(path):
        with _speaking_of(where, path):
            return work(path)
    with spool.SPOOL.borrow(where) as (copy, _), _speaking_of(where, copy):
        return work(copy)
