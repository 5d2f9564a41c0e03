"""A small store for the checks of views: a point that is driven to the origin, by noisy rules.

Needs Penstock's folder on PYTHONPATH and what `views.txt` lists, nothing of the rest.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.store.reader import Version
from pipeline.store.store import open_store
from schemas.episode import Episode
from schemas.packed import Packed, Rows
from schemas.spec import FieldSpec

STEPS = 30
ENDS = ("terminated", "truncated", "lost")


def version(folder: Path, episodes: int = 30, *, pictures: bool = False) -> Version:
    """Returns a version of episodes that end in all three ways, in turn."""
    store = open_store(folder, create=True)
    return store.append(made(number, pictures=pictures) for number in range(episodes))


def made(number: int, *, pictures: bool) -> Episode:
    """One episode; a `lost` one was cut off and has no final observation."""
    rng = np.random.default_rng(number)
    state, states, actions, rewards = rng.uniform(-1, 1, 3), [], [], []
    for _ in range(STEPS):
        action = np.clip(-0.5 * state[:2] + 0.1 * rng.normal(size=2), -1, 1)
        states.append(state)
        actions.append(action)
        rewards.append(-float(np.abs(state).sum()))
        state = np.array([*(state[:2] + 0.3 * action), 0.9 * state[2]])
    end = ENDS[number % 3]
    states += [] if end == "lost" else [state]
    observations: dict[str, Rows] = {"observations": np.array(states, np.float32)}
    if pictures:
        observations = {
            "observations/state": observations["observations"],
            "observations/images/top": Packed.of(
                FieldSpec("|u1", (32, 32, 3), "frames"), [_picture(one) for one in states]
            ),
        }
    return Episode(
        f"e{number}",
        observations,
        np.array(actions, np.float32),
        np.array(rewards, np.float32),
        terminated=end == "terminated",
        truncated=end != "terminated",
        task="drive to the origin",
        fps=10.0,
    )


def _picture(state: np.ndarray) -> bytes:
    pixels = np.zeros((32, 32, 3), np.uint8)
    x, y = (np.clip(state[:2] * 15 + 16, 0, 31)).astype(int)
    pixels[y, x] = 255
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()
