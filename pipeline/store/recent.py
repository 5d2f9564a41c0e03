"""A bounded memory of values that were expensive to make, safe to use from several threads."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class Recent:
    """Keeps the values asked for most recently; for files that never change."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._values: OrderedDict[str, Any] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str, make: Callable[[], T]) -> T:
        """Returns the value of a key, made if it is not there.

        Two threads may make the same value at once; one of the two is kept.
        """
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                known: T = self._values[key]
                return known
        value = make()
        self.put(key, value)
        return value

    def put(self, key: str, value: Any) -> None:
        """Keeps a value."""
        with self._lock:
            self._values[key] = value
            while len(self._values) > self._keep:
                self._values.popitem(last=False)

    def __contains__(self, key: str) -> bool:
        with self._lock:
            return key in self._values
