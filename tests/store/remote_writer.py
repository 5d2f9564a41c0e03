"""One writer of a race: a real process that appends its own episodes, and those all others offer.

Run as `python -m tests.store.remote_writer URL WHO BATCHES EPISODES`; starts with a line on stdin.
"""

from __future__ import annotations

import sys

from pipeline.store.store import open_store
from schemas.episode import Episode
from tests.episodes import episode


def main(url: str, who: str, batches: int, episodes: int) -> None:
    """Appends batches of own episodes, each with a few that every writer offers."""
    store = open_store(url)
    _say("ready")
    sys.stdin.readline()
    for batch in range(batches):
        version = store.append(offered(who, batch, episodes))
        _say(str(version.number))


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def offered(who: str, batch: int, episodes: int) -> list[Episode]:
    """One batch of one writer."""
    own = [episode(f"{who}-{batch}-{n}", length=1) for n in range(episodes)]
    return [*own, *(episode(f"all-{batch}-{n}", length=1) for n in range(10))]


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
