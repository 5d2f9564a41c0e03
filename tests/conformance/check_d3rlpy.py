"""Writes a replay buffer with d3rlpy itself, and what d3rlpy reads of it again.

    python check_d3rlpy.py FILE TRUTH.npz

d3rlpy is read here, not written: the truth, arrays named `<episode>/<name>`, is what our reading of
the file is compared with.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from d3rlpy.dataset import Episode, InfiniteBuffer, ReplayBuffer


def main(file: str, truth: str) -> int:
    """Writes both; returns the exit code."""
    rng = np.random.default_rng(0)
    episodes = [
        Episode(
            rng.normal(size=(steps, 3)).astype(np.float32),
            rng.normal(size=(steps, 2)).astype(np.float32),
            rng.normal(size=(steps, 1)).astype(np.float32),
            terminated=bool(steps % 2),
        )
        for steps in (5, 8, 3)
    ]
    with Path(file).open("w+b") as out:
        ReplayBuffer(InfiniteBuffer(), episodes=episodes).dump(out)
    found = {}
    with Path(file).open("rb") as written:
        for number, episode in enumerate(ReplayBuffer.load(written, InfiniteBuffer()).episodes):
            for name in ("observations", "actions", "rewards"):
                found[f"{number}/{name}"] = np.asarray(getattr(episode, name))
            found[f"{number}/terminated"] = np.array(episode.terminated)
    np.savez(truth, **found)
    sys.stdout.write(f"{len(episodes)} episodes\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
