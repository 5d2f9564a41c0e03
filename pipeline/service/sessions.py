"""Browsers that signed in: a random cookie stands for a token that the browser never keeps.

Sessions live in memory alone, so a restart signs everybody out. A session lasts no longer than its
token: each request asks the book again.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from pipeline.service.token_book import TokenBook
from pipeline.service.tokens import Token, digest
from schemas.errors import UnauthenticatedError

COOKIE = "penstock_session"
MAX_SESSIONS = 10_000


class Sessions:
    """Who is signed in; safe to use from several threads."""

    def __init__(
        self, book: TokenBook, seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Args: the tokens, how long a session lasts, and a clock in seconds."""
        self._book = book
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._known: OrderedDict[str, tuple[str, float]] = OrderedDict()
        """Digest of a cookie: its token's id, and when it ends. The oldest first."""

    def begin(self, token_text: str) -> tuple[Token, str]:
        """Returns the token that a text is, and the cookie of a new session.

        Raises:
            UnauthenticatedError: if it is none.
        """
        token = self._book.verify(token_text)
        cookie = secrets.token_urlsafe(32)
        with self._lock:
            self._known[digest(cookie)] = (token.id, self._clock() + self._seconds)
            while len(self._known) > MAX_SESSIONS:
                self._known.popitem(last=False)
        return token, cookie

    def verify(self, cookie: str) -> Token:
        """Returns the token of a session.

        Raises:
            UnauthenticatedError: if there is no such session, or it or its token has ended.
        """
        with self._lock:
            token_id, ends = self._known.get(digest(cookie), ("", 0.0))
        if not token_id or ends <= self._clock():
            self.end(cookie)
            raise UnauthenticatedError("Expected to be signed in, came an ended session; sign in.")
        return self._book.by_id(token_id)

    def end(self, cookie: str) -> None:
        """Ends a session, if there is one."""
        with self._lock:
            self._known.pop(digest(cookie), None)
