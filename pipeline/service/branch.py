"""What a log asks of the branch that its episodes go to, before it acknowledges one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from pipeline.service.fitting import Joins
from pipeline.store.ids import Seen
from schemas.episode import Episode


class Branch(Protocol):
    """A branch of a store, and what waits to join it."""

    def seen(self, episode_id: str, content: str) -> Seen:
        """Says whether an id is known, and with which digest."""
        ...

    def knows(self, episode_id: str) -> bool:
        """True if an id is known, with whatever content."""
        ...

    def check_spec(self, episode: Episode, checked: object = None) -> object:
        """Raises `SpecMismatchError` for an episode that would not fit.

        Args:
            episode: which.
            checked: what was returned for it before: if nothing changed since, that is all.
        """
        ...

    def take_spec(self, episode: Episode) -> None:
        """Counts an episode that was checked just now among those that wait."""
        ...

    def begin_again(self, waiting: Iterable[Joins]) -> None:
        """Says anew which episodes wait."""
        ...
