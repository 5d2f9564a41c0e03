"""Plays one world to a process that has not got its simulator: JSON lines in, JSON lines out.

    {"reset": SEED or null}  ->  {"observation": [...], "success": null}
    {"action": [...]}        ->  {"observation": [...], "reward": r, "terminated": b,
                                  "truncated": b, "success": b or null}

The first line says what the spaces are. Numbers survive exactly: JSON holds all digits of a double.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from typing import Any

import numpy as np

from benchmarks.simulators.trajectories import seed_everything
from benchmarks.simulators.worlds import make_world


def serve(name: str) -> None:
    """Answers until there are no more questions."""
    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what simulators print is no answer
    world = make_world(name)
    box, actions = world.observation_space, world.action_space
    _say(
        answers,
        {
            "observation": list(box.shape or ()),
            "low": np.asarray(actions.low, np.float64).tolist(),
            "high": np.asarray(actions.high, np.float64).tolist(),
        },
    )
    for line in sys.stdin:
        asked = json.loads(line)
        if "reset" in asked:
            if asked["reset"] is not None:
                seed_everything(asked["reset"] % 2**32)  # some worlds draw from global numbers
            seen, info = world.reset(seed=asked["reset"])
            answer: dict[str, Any] = {"success": None}
        else:
            action = np.array(asked["action"], np.float32)
            seen, reward, terminated, truncated, info = world.step(action)
            said = info.get("success")
            answer = {
                "reward": float(reward),
                "terminated": bool(terminated),
                "truncated": bool(truncated),
                "success": None if said is None else bool(said),
            }
        _say(answers, {**answer, "observation": np.asarray(seen, np.float64).tolist()})


def _say(answers: Any, what: dict[str, Any]) -> None:
    answers.write(json.dumps(what) + "\n")
    answers.flush()


if __name__ == "__main__":
    serve(sys.argv[1])
