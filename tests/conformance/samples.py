"""Episodes for other libraries to read, and what they must read of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from connectors.lerobot_encode import PSNR
from schemas.episode import Episode
from schemas.packed import Packed

Truth = dict[str, np.ndarray]

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


def lerobot() -> tuple[list[Episode], Truth]:
    """Fields of every kind, and LeRobot's names of them."""
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
    return episodes, truth


def _arm(seed: int, steps: int, *, final: bool = True, **changes: Any) -> Episode:
    random = np.random.default_rng(seed)
    arrays: dict[str, Any] = {
        "observations": {
            "arm": random.normal(size=(steps + final, 3)).astype(np.float32),
            "object": random.normal(size=(steps + final, 2)),
        },
        "actions": random.uniform(-1, 1, (steps, 2)).astype(np.float32),
        "rewards": random.normal(size=steps).astype(np.float32),
        "truncated": True,
        **changes,
    }
    return Episode("", **arrays)


def _two() -> list[Episode]:
    ended = {"terminated": True, "truncated": False, "success": True}
    return [
        _arm(1, 5, labels={"split": "train"}, task="lift"),
        _arm(2, 7, labels={"split": "val"}, task="lift", **ended),
    ]


def _joined(episodes: list[Episode], name: str, rows: slice = slice(None)) -> np.ndarray:
    return np.concatenate([np.asarray(e.arrays[name])[rows] for e in episodes])


def minari() -> tuple[list[Episode], Truth]:
    """T+1 observations in a Dict space."""
    episodes, truth = _two(), {}
    for number, e in enumerate(episodes):
        named = {n: np.asarray(a) for n, a in e.arrays.items()}
        named |= {"terminations": e.terminated, "truncations": e.truncated}
        truth |= {f"{number}/{name}": rows for name, rows in named.items()}
    return episodes, truth


def robomimic() -> tuple[list[Episode], Truth]:
    """Demonstrations under filter keys, with next observations."""
    episodes = _two()
    truth = {name: _joined(episodes, name) for name in ("actions", "rewards")}
    truth["dones"] = np.concatenate([e.terminated for e in episodes]).astype(np.int64)
    for key in ("arm", "object"):
        truth[f"obs/{key}"] = _joined(episodes, f"observations/{key}", slice(-1))
        truth[f"next_obs/{key}"] = _joined(episodes, f"observations/{key}", slice(1, None))
    truth["val"] = np.array([1])
    return episodes, truth


def replay_zarr() -> tuple[list[Episode], Truth]:
    """Observations per step, pictures among them."""
    random = np.random.default_rng(3)

    def observed(steps: int) -> dict[str, np.ndarray]:
        pictures = random.integers(0, 255, (steps, 32, 32, 3), np.uint8)
        return {"state": random.normal(size=(steps, 4)).astype(np.float32), "camera": pictures}

    changes = {"truncated": False, "final": False, "rewards": None}
    episodes = [_arm(seed, n, observations=observed(n), **changes) for seed, n in enumerate((6, 9))]
    truth = {f"data/{key}": _joined(episodes, f"observations/{key}") for key in ("state", "camera")}
    truth["data/action"] = _joined(episodes, "actions")
    truth["meta/episode_ends"] = np.array([6, 15])
    return episodes, truth


def ogbench() -> tuple[list[Episode], Truth]:
    """One plain array of observations."""
    episodes = [
        e.replace(observations={"observations": e.observations["observations/arm"]}, rewards=None)
        for e in _two()
    ]
    lasts = [np.arange(e.length) == e.length - 1 for e in episodes]
    return episodes, {
        "observations": _joined(episodes, "observations", slice(-1)),
        "next_observations": _joined(episodes, "observations", slice(1, None)),
        "actions": _joined(episodes, "actions"),
        "terminals": np.concatenate(lasts).astype(np.float32),
    }


def rlds() -> tuple[list[Episode], Truth]:
    """T+1 steps, the last one with padding; two splits."""
    episodes, truth = _two(), {}
    for e in episodes:
        rows, place = e.length + 1, f"{e.labels['split']}/0"
        steps = {
            f"observation/{key}": np.asarray(e.observations[f"observations/{key}"])
            for key in ("arm", "object")
        }
        padded = {"action": e.flat_actions["actions"], "reward": np.asarray(e.rewards)}
        steps |= {n: np.concatenate([a, np.zeros_like(a[:1])]) for n, a in padded.items()}
        steps["is_first"] = np.arange(rows) == 0
        steps["is_last"] = np.arange(rows) == e.length
        steps["is_terminal"] = steps["is_last"] & e.is_terminated
        steps["language_instruction"] = np.array([e.task] * rows)
        truth |= {f"{place}/steps/{name}": values for name, values in steps.items()}
    return episodes, truth


def rlds_real_last() -> tuple[list[Episode], Truth]:
    """T steps, all of them real, as in Open X-Embodiment."""
    episodes = [_arm(5, 4, final=False), _arm(6, 6, final=False)]
    truth = {
        f"train/{at}/steps/{name}": np.asarray(e.arrays[ours])
        for at, e in enumerate(episodes)
        for ours, name in (
            ("observations/arm", "observation/arm"),
            ("actions", "action"),
            ("rewards", "reward"),
        )
    }
    return episodes, truth
