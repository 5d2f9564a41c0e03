"""`penstock actor` that writes down each episode it heard is safe: `-m ... FILE`, then its options.

The id is in the file before the actor plays on, so what a killed actor was told is known.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import Future
from typing import Any

import learners.acting
from pipeline.cli.main import run
from pipeline.service.client.client import RolloutClient
from schemas.episode import Episode


def main(file: str) -> None:
    """Acts as the command does, with its arguments."""
    line = os.open(file, os.O_CREAT | os.O_APPEND | os.O_WRONLY)

    class Telling(RolloutClient):
        def push_async(self, episode: Episode, timeout: float | None = None) -> Future[Any]:
            told: Future[Any] = Future()

            def tell(done: Future[Any]) -> None:
                error = done.exception()
                if error is not None:
                    told.set_exception(error)
                    return
                os.write(line, f"{episode.episode_id}\n".encode())
                told.set_result(done.result())

            super().push_async(episode, timeout).add_done_callback(tell)
            return told

    learners.acting.RolloutClient = Telling  # type: ignore[attr-defined]
    run()


if __name__ == "__main__":
    name = sys.argv.pop(1)
    main(name)
