"""Opens a dataset that Penstock wrote with Minari itself and compares it with what went in.

    python check_minari.py FOLDER TRUTH.npz

The truth holds arrays named `<episode>/<name>`: `observations/<key>` (T+1 rows), `actions`,
`rewards`, `terminations`, `truncations`. Ends with 0 where all agrees, else with 1.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
from differences import report


def main(folder: str, truth: str) -> int:
    """Compares; returns the exit code."""
    place = Path(folder).absolute()
    os.environ["MINARI_DATASETS_PATH"] = str(place.parent)
    import minari

    found: dict[str, np.ndarray] = {}
    for episode in minari.load_dataset(place.name).iterate_episodes():
        for key, rows in episode.observations.items():
            found[f"{episode.id}/observations/{key}"] = rows
        for name in ("actions", "rewards", "terminations", "truncations"):
            found[f"{episode.id}/{name}"] = getattr(episode, name)
    return report(truth, found)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
