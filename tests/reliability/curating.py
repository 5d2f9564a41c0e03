"""A curator as a process: `-m tests.reliability.curating CONTROL DATA TOKEN_FILE`.

It reads and curates through the service alone, until it is ended. Each round it leaves every third
rollout out, on a branch of its own, and says so in a line of JSON: the version that it made, and of
which, or the kind of the error that it met. An error that is no kind of waiting ends it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from pipeline.service.client.control import ControlClient
from pipeline.store.store import open_store
from schemas.errors import NotFoundError, PenstockError, TransientError

BRANCH = "chosen"
EVERY = 3
PAUSE = 0.3  # seconds


def left_out(ids: list[str]) -> list[str]:
    """Which of a version's episodes it leaves out."""
    return ids[1::EVERY]


def main(control: str, data: str, token: str) -> None:
    """Curates until the process is ended."""
    client = ControlClient(control, token)
    options = {"token": token, "retry_seconds": 1.0}
    while True:
        try:
            base = str(client.head("main")["version"])
            version = open_store(data, storage_options=options).version(base)
            ids = version.episodes(columns=["episode_id"])["episode_id"].to_pylist()
            if len(ids) > 1:
                made = client.curate(base, left_out(ids), BRANCH, "some left out")
                _tell(version=made, base=base)
        except (TransientError, NotFoundError) as error:  # it restarts; no rollouts yet
            _tell(error=error.kind)
        except PenstockError as error:
            _tell(error=error.kind, says=str(error))
            raise
        time.sleep(PAUSE)


def _tell(**what: Any) -> None:
    line = json.dumps({"life": os.getpid(), **what}) + "\n"
    os.write(sys.stdout.fileno(), line.encode())  # whole, whenever it is killed


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]).read_text().strip())
