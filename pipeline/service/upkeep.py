"""What a server does beside: joining the small parts that sealing makes, one server at a time."""

from __future__ import annotations

import logging
import threading

from pipeline.service.logs import facts_of
from pipeline.store.store import Store
from schemas.errors import LockHeldError, NotFoundError, PenstockError

logger = logging.getLogger(__name__)


class Upkeep:
    """The thread that compacts a branch every so often."""

    def __init__(self, store: Store, branch: str, every: float) -> None:
        """Begins.

        Args:
            store: whose parts are joined, under the store's own turn of maintainers.
            branch: of which.
            every: seconds between two rounds.
        """
        self._store = store
        self._branch = branch
        self._every = every
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="penstock-upkeep", daemon=True)
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Ends after the round that goes on, or leaves it behind: a commit is made whole or not."""
        self._is_over.set()
        self._thread.join(timeout)

    def _run(self) -> None:
        while not self._is_over.wait(self._every):
            try:
                done = self._store.compact(self._branch)
                if done.commits:
                    parts = {"before": done.parts_before, "after": done.parts_after}
                    logger.info("parts joined", extra=parts)
            except (LockHeldError, NotFoundError):
                continue  # another maintainer is at work, or there is nothing yet
            except PenstockError as error:
                logger.warning("parts were not joined, they will be", extra=facts_of(error))
            except Exception:
                logger.exception("parts were not joined")
