"""Writes datasets with our LeRobot sink, each with the truth that `check_lerobot.py` compares.

    python make_lerobot.py FOLDER

Makes `FOLDER/lerobot_<version>_<pictures or videos>` and the same with `.npz`; numbers of every
number of axes, texts and extras are in all. LeRobot 0.4.4 reads v3.0, LeRobot 0.3.3 reads v2.1.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from connectors.lerobot_encode import PSNR
from connectors.lerobot_sink import LerobotSink
from schemas.episode import Episode
from schemas.packed import Packed

LENGTHS = (7, 1, 12)
FEATURES = {
    "observations/state": "observation.state",
    "observations/grid": "observation.grid",
    "observations/cube": "observation.cube",
    "observations/is_held": "observation.is_held",
    "observations/images/top": "observation.images.top",
    "actions": "action",
    "rewards": "next.reward",
    "extras/note": "note",
    "extras/complementary_info/index": "complementary_info.index",
    "extras/timestamp": "extras.timestamp",
}


def make_episode(steps: int, seed: int) -> Episode:
    """One episode with a field of every kind that LeRobot holds."""
    random = np.random.default_rng(seed)
    ramp = np.add.outer(np.arange(64), np.arange(66)).astype(np.uint8)
    pictures = [np.stack([ramp + 5 * t, ramp - 3 * t, ramp + seed], axis=-1) for t in range(steps)]
    return Episode(
        episode_id="",
        observations={
            "state": random.normal(size=(steps, 3)).astype(np.float32),
            "grid": random.normal(size=(steps, 2, 3)).astype(np.float32),
            "cube": random.integers(0, 9, (steps, 2, 2, 2)),
            "is_held": random.random(steps) < 0.5,
            "images": {"top": np.stack(pictures)},
        },
        actions=random.normal(size=(steps, 1)).astype(np.float32),
        rewards=random.normal(size=steps).astype(np.float32),
        terminated=True,
        final_observation="missing",
        task=f"task {seed % 2}",
        fps=20.0,
        success=bool(seed % 2),
        extras={
            "note": Packed.texts(f"step {t} é" for t in range(steps)),
            "complementary_info/index": np.arange(steps, dtype=np.int64),
            "timestamp": np.arange(steps, dtype=np.float32) / 3,
            **({} if seed else {"dropped": np.zeros(steps)}),
        },
    )


def main() -> None:
    place = Path(sys.argv[1])
    episodes = [make_episode(steps, seed) for seed, steps in enumerate(LENGTHS)]
    truth = {
        feature: np.concatenate([np.asarray(e.arrays[name]) for e in episodes])
        for name, feature in FEATURES.items()
    }
    truth["next.done"] = np.concatenate([e.terminated for e in episodes])
    truth["next.success"] = np.concatenate([e.terminated & bool(e.success) for e in episodes])
    truth["lengths"] = np.array(LENGTHS)
    truth["tasks"] = np.concatenate([[str(e.task)] * e.length for e in episodes])
    truth["psnr"] = np.array(PSNR)
    for version in ("v3.0", "v2.1"):
        for kind in ("pictures", "videos"):
            name = f"lerobot_{version}_{kind}"
            metadata = {"codebase_version": version, "use_videos": kind == "videos"}
            LerobotSink().write(episodes, str(place / name), metadata)
            np.savez(place / f"{name}.npz", **truth)


if __name__ == "__main__":
    main()
