"""A world that another process plays, as a Gymnasium environment of this one.

Simulators ask for versions of MuJoCo that do not go together, so each lives in an environment of
its own (`make suite-setup`), and observations and actions travel as lines of text.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from schemas.errors import ConfigError, NotFoundError

ROOT = Path(__file__).resolve().parents[1]
PLACES = {"ogbench": "ogbench", "pointmaze": "robotics", "metaworld": "metaworld"}
"""Where the worlds of a package live, by the first part of their names."""


def python_of(world: str) -> Path:
    """Returns the interpreter that has a world's simulator.

    Raises:
        NotFoundError: if it was not set up.
    """
    package = world.partition("/")[0]
    if package == "gymnasium":
        return Path(sys.executable)
    peers = Path(os.environ.get("PENSTOCK_PEERS", ROOT / ".peers"))
    found = peers.absolute() / f"suite-{PLACES[package]}" / "bin" / "python"
    if not found.exists():
        raise NotFoundError(
            f"Expected the simulator of {world} under {found.parent}; run `make suite-setup`.",
            where=str(found),
        )
    return found


def register(world: str) -> str:
    """Makes a world known to Gymnasium; returns its name there.

    Args:
        world: as `benchmarks.simulators.worlds` names it, or a name that Gymnasium knows already.
    """
    if "/" not in world:
        return world
    name = "Suite/" + world.replace("/", "-").removesuffix("-v0").removesuffix("-v3") + "-v0"
    if name not in gym.registry:
        gym.register(name, entry_point=Remote, kwargs={"world": world}, disable_env_checker=True)
    return name


class Remote(gym.Env[np.ndarray, np.ndarray]):  # type: ignore[misc]
    """One world in a process of its own, which ends with it.

    Args:
        world: its name.

    Raises:
        NotFoundError: if its simulator was not set up.
        ConfigError: if its process ended.
    """

    def __init__(self, world: str) -> None:
        self.world = world
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        self._process = subprocess.Popen(
            [str(python_of(world)), "-m", "benchmarks.simulators.serve", world],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            cwd=ROOT,
            text=True,
        )
        try:
            spaces = self._answer()
        except ConfigError:
            self.close()
            raise
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, spaces["observation"], np.float64)
        low, high = (np.array(spaces[name], np.float32) for name in ("low", "high"))
        self.action_space = gym.spaces.Box(low, high, dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, Any]:
        """Begins an episode; one seed, one start."""
        super().reset(seed=seed)
        answer = self._ask({"reset": seed})
        return np.array(answer["observation"], np.float64), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Acts once; `info["success"]` where the world says so."""
        answer = self._ask({"action": np.asarray(action).tolist()})
        said = {} if answer["success"] is None else {"success": answer["success"]}
        seen = np.array(answer["observation"], np.float64)
        return seen, answer["reward"], answer["terminated"], answer["truncated"], said

    def close(self) -> None:
        """Ends the process."""
        if not self._said.closed:
            self._process.communicate()  # closes its input, which ends it
            self._said.close()

    def _ask(self, what: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None, "made with a pipe"
        try:
            self._process.stdin.write(json.dumps(what) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None, "made with a pipe"
        line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        found: dict[str, Any] = json.loads(line)
        return found

    def _ended(self) -> ConfigError:
        self._process.wait()
        self._said.seek(0)
        last = self._said.read().decode("utf-8", "replace").strip().rpartition("\n")[2]
        return ConfigError(
            f"Expected the simulator of {self.world} to answer, its process ended: {last}",
            where=self.world,
        )
