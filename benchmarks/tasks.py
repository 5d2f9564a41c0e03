"""The suite: what is learned from, by whom, under which settings, and what was published.

`full` is what papers ran (their steps, networks and batches); `small` is what two cores do in
minutes, for orderings only. Published numbers are success in percent, or D4RL scores, of the last
checkpoint: OGBench's from the FQL paper (a million updates, data by the same procedure), D4RL's
from CORL (other data and environment versions, so for orderings).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Size = Literal["small", "full"]


@dataclass(frozen=True)
class Scale:
    """How much of everything."""

    episodes: int
    """Trajectories of data; environment steps where learners make the data."""
    steps: int
    """Updates offline."""
    hidden: tuple[int, ...]
    evaluation_episodes: int
    env_steps: int = 0
    """Steps of fine-tuning."""
    batch_size: int = 256


@dataclass(frozen=True)
class Entry:
    """One row of a table: a learner, and what it was published to reach."""

    algo: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    small: Mapping[str, Any] = field(default_factory=dict)
    """Settings that a few thousand updates need in place of these."""
    online: Mapping[str, Any] | None = None
    """Settings of fine-tuning; None learns offline only."""
    published: str = ""
    published_online: str = ""
    data: str = ""
    """Which of the task's data, where it has several."""


@dataclass(frozen=True)
class Task:
    """One task of the suite."""

    world: str
    """Where policies are judged."""
    maker: str
    """Module that makes the data; empty where a learner of ours makes them."""
    sizes: Mapping[Size, Scale]
    entries: Mapping[str, Entry]
    orders: tuple[tuple[str, str], ...] = ()
    """Pairs of rows of which the second is expected above the first."""
    discount: float = 0.99
    is_return: bool = False
    """Judged by D4RL's score instead of success."""
    grid: tuple[float, ...] = ()
    """Noise levels, of the policy and of the system, whose pairs are datasets of their own."""


# Fast rates for short runs; published ones are the learners' defaults.
FAST_CRITIC = {"critic_rate": 1e-3, "policy_rate": 1e-3, "tau": 0.01}
FAST_IQL = {**FAST_CRITIC, "value_rate": 1e-3}
MANIPULATION_IQL = {"expectile": 0.9, "hidden": (256,) * 4}


def _manipulation(
    world: str,
    temperature: float,
    penalties: tuple[float, float],
    published: Mapping[str, str],
    online: Mapping[str, str] | None = None,
) -> Task:
    """A single-task environment of OGBench with the FQL paper's settings.

    Its networks have GELU; ours of BC, IQL and RLPD have ReLU. IQL's temperature on puzzle-4x4 is
    not in what we have of the paper: it is the learner's default.
    """
    actor, critic = penalties
    rebrac = {"policy_penalty": actor, "critic_penalty": critic, "activation": "gelu"}
    entries = {
        "bc": Entry("bc", small={"learning_rate": 1e-3}, published=published["bc"]),
        "iql": Entry(
            "iql",
            {**MANIPULATION_IQL, "temperature": temperature},
            small=FAST_IQL,
            published=published["iql"],
        ),
        "rebrac": Entry("rebrac", rebrac, small=FAST_CRITIC, published=published["rebrac"]),
    }
    for name, reached in (online or {}).items():
        base = entries.get(name) or Entry(name, _ONLINE[name])
        entries[f"{name} online"] = Entry(
            base.algo,
            base.settings,
            base.small,
            online={"updates_per_step": 1.0, "warmup_steps": 5_000 if name == "rlpd" else 0},
            published=base.published,
            published_online=reached,
        )
    return Task(
        world=f"ogbench/{world}",
        maker="make_ogbench",
        sizes={
            "small": Scale(100, 15_000, (128, 128), 20, env_steps=5_000),
            "full": Scale(1000, 1_000_000, (512,) * 4, 50, env_steps=1_000_000),
        },
        entries=entries,
        orders=(("bc", "iql"),),
    )


# "RLPD" of that paper: two critics, one update for a step.
_ONLINE: dict[str, dict[str, Any]] = {
    "rlpd": {"updates": 1, "members": 2, "minimum_of": 2},
    "cal_ql": {},  # a reward here counts subtasks that are left: failures have no one reward
}
_MAZE_IQL = {"expectile": 0.9, "temperature": 10.0}


def _maze(world: str, maker: str, published: str, online: str) -> Task:
    return Task(
        world=world,
        maker=maker,
        sizes={
            "small": Scale(50, 6_000, (64, 64), 20, env_steps=6_000),
            "full": Scale(1000, 1_000_000, (256, 256), 100, env_steps=1_000_000),
        },
        entries={
            "bc": Entry("bc", small={"learning_rate": 1e-3}, published=published.split()[0]),
            "iql": Entry("iql", _MAZE_IQL, FAST_IQL, published=published.split()[1]),
            "iql online": Entry(
                "iql",
                _MAZE_IQL,
                FAST_IQL,
                online={"updates_per_step": 0.5},
                published=published.split()[1],
                published_online=online,
            ),
        },
        orders=(("bc", "iql"), ("iql", "iql online")),
    )


def _replay(world: str, published: Mapping[str, str]) -> Task:
    """A replay of our own soft actor-critic, from its beginning to where it was stopped."""
    fast = {"standardise": True}
    entries = {
        "bc": Entry("bc", small={"learning_rate": 1e-3}, published=published["bc"]),
        "td3_bc": Entry(
            "td3_bc", small={**FAST_CRITIC, "tau": 0.005}, published=published["td3_bc"]
        ),
        "iql": Entry("iql", small={**FAST_IQL, **fast}, published=published["iql"]),
    }
    return Task(
        world=world,
        maker="",
        sizes={
            "small": Scale(20_000, 10_000, (64, 64), 10),
            "full": Scale(200_000, 1_000_000, (256, 256), 50),
        },
        entries=entries,
        orders=(("bc", "td3_bc"), ("bc", "iql")),
        is_return=True,
    )


TASKS: dict[str, Task] = {
    "cube-single": _manipulation(
        "cube-single-singletask-task2-v0",
        1.0,
        (1.0, 0.0),
        {"bc": "3 ± 1", "iql": "85 ± 8", "rebrac": "92 ± 4"},
    ),
    "scene": _manipulation(
        "scene-singletask-task2-v0",
        10.0,
        (0.1, 0.01),
        {"bc": "1", "iql": "12", "rebrac": "50"},
        {"iql": "10", "rebrac": "100", "cal_ql": "50", "rlpd": "100"},
    ),
    "puzzle-3x3": _manipulation(
        "puzzle-3x3-singletask-task1-v0",
        10.0,
        (0.3, 0.01),
        {"bc": "5", "iql": "33", "rebrac": "97"},
    ),
    "puzzle-4x4": _manipulation(
        "puzzle-4x4-singletask-task4-v0",
        3.0,
        (0.3, 0.01),
        {"bc": "0", "iql": "5", "rebrac": "10"},
        {"iql": "1", "rebrac": "14", "cal_ql": "0", "rlpd": "100"},
    ),
    "pointmaze-navigate": _maze(
        "ogbench/pointmaze-medium-singletask-v0", "make_ogbench", "- -", "-"
    ),
    "umaze": _maze("pointmaze/umaze", "make_pointmaze", "17* 77*", "96.5*"),
    "hopper-replay": _replay("Hopper-v5", {"bc": "29.8*", "td3_bc": "64.4*", "iql": "97.4*"}),
    "halfcheetah-replay": _replay(
        "HalfCheetah-v5", {"bc": "35.7*", "td3_bc": "44.8*", "iql": "44.5*"}
    ),
    "button-press": Task(
        world="metaworld/button-press-topdown-v3",
        maker="make_metaworld",
        sizes={
            "small": Scale(10, 3_000, (128, 128), 20),
            "full": Scale(50, 10_000, (256, 256), 50),
        },
        entries={"bc": Entry("bc", small={"learning_rate": 1e-3})},
        grid=(0.0, 0.3, 0.6, 1.0),
    ),
}
"""Published numbers with a star are of another environment version or other data: CORL's
antmaze-umaze for `umaze`, D4RL's -v2 sets for the replays."""
