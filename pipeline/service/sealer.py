"""The thread that seals: every so often, earlier when much waits, again when it did not work."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from pipeline.service.logs import facts_of
from schemas.errors import PenstockError

logger = logging.getLogger(__name__)


class Sealer:
    """Calls for a seal again and again, until it is stopped."""

    def __init__(self, seal: Callable[[], object], every: float) -> None:
        """Begins.

        Args:
            seal: what to do; an error of our tree means that it is done again later.
            every: seconds between two seals, at most.
        """
        self._seal = seal
        self._every = every
        self._wanted = threading.Event()
        self._is_over = False
        self.error: PenstockError | None = None
        """Why the last seal did not work."""
        self._thread = threading.Thread(target=self._run, name="penstock-seal", daemon=True)
        self._thread.start()

    def hurry(self) -> None:
        """Seals as soon as possible."""
        self._wanted.set()

    def stop(self) -> None:
        """Ends after the seal that goes on."""
        self._is_over = True
        self._wanted.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            self._wanted.wait(self._every)
            self._wanted.clear()
            if self._is_over:
                return
            try:
                self._seal()
                self.error = None
            except PenstockError as error:
                logger.warning(
                    "episodes were not sealed, they stay in the log", extra=facts_of(error)
                )
                self.error = error
            except Exception:
                # Nothing is lost: the log has it all, and a later seal may work.
                logger.exception("episodes stay in the log, unsealed")
