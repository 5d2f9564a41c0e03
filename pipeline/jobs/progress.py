"""Progress of a job, for whoever watches it in the same process.

Workers elsewhere have no listener, and nothing happens; no engine needs to know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Listener = Callable[[int, int], None]
"""Called with the episodes and steps just done."""

_listeners: dict[str, Listener] = {}


@contextmanager
def watch(run_id: str, listener: Listener | None) -> Iterator[None]:
    """Sends the progress of a run to a listener while the context lasts."""
    if listener is not None:
        _listeners[run_id] = listener
    try:
        yield
    finally:
        _listeners.pop(run_id, None)


def advance(run_id: str, episodes: int, steps: int) -> None:
    """Reports work done."""
    listener = _listeners.get(run_id)
    if listener is not None:
        listener(episodes, steps)
