"""A point mass that must pass a round obstacle: the demonstrator's noise and the system's apart.

After the PMObstacle environment of Belkhale, Cui and Sadigh ("Data Quality in Imitation Learning",
2023), written anew: the state is ego (2), target (2) and obstacle (2); the action is a velocity in
[-1, 1]^2; the next ego is ego + 0.04 action + N(0, system^2). The scripted expert is a smooth
function of the state: it heads for the target, and around the obstacle on the nearer side. Policy
noise is N(0, policy^2) / 0.04 on its action, so that both noises move the ego alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from schemas.episode import Episode

SPEED = 0.04
STEPS = 100
RADIUS = 0.1
WIDTH = 0.12
"""How far to the side of its way the expert minds the obstacle."""
REACHED = 0.08

Policy = Callable[[np.ndarray], np.ndarray]
"""(n, 6) states to (n, 2) actions."""


@dataclass(frozen=True)
class Setting:
    """How some demonstrations are made."""

    policy: float = 0.0
    """Standard deviation of the demonstrator's noise, in units of the state per step."""
    system: float = 0.0
    """Standard deviation of the system's noise."""
    random_side: bool = False
    """True if each episode passes the obstacle on a side drawn at random."""


def starts(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, 6) first states: ego left, target right, the obstacle roughly between."""
    ego = np.stack([rng.uniform(0.0, 0.15, count), rng.uniform(0.2, 0.8, count)], 1)
    target = np.stack([rng.uniform(0.85, 1.0, count), rng.uniform(0.2, 0.8, count)], 1)
    obstacle = (ego + target) / 2 + rng.normal(0, 0.05, (count, 2))
    return np.concatenate([ego, target, obstacle], 1)


def expert(states: np.ndarray, side: np.ndarray | None = None) -> np.ndarray:
    """(n, 2) actions: toward the target at half speed, pushed sideways near the obstacle.

    Args:
        states: (n, 6).
        side: -1 or 1 forces the way around, 0 takes the nearer.
    """
    ego, target, obstacle = states[:, :2], states[:, 2:4], states[:, 4:]
    way = target - ego
    distance = np.maximum(np.linalg.norm(way, axis=1, keepdims=True), 1e-9)
    ahead = way / distance
    left = np.stack([-ahead[:, 1], ahead[:, 0]], 1)
    gap = obstacle - ego
    along, across = (gap * ahead).sum(1), (gap * left).sum(1)
    near = np.exp(-0.5 * ((across / WIDTH) ** 2 + (np.maximum(along, 0) / (2 * WIDTH)) ** 2))
    near *= 1 / (1 + np.exp(-np.clip(along / 0.03, -30, 30)))
    turn = -np.tanh(across / 0.02)
    if side is not None:
        turn = np.where(side == 0, turn, side)
    wanted = ahead + 2.0 * (near * turn)[:, None] * left
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    return np.asarray(0.5 * wanted * np.minimum(1.0, distance / 0.1))


def step(
    states: np.ndarray, actions: np.ndarray, system: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns next states, whether each reached its target, and whether it hit the obstacle."""
    after = states.copy()
    after[:, :2] += SPEED * np.clip(actions, -1, 1) + system * rng.normal(size=actions.shape)
    reached = np.linalg.norm(after[:, :2] - after[:, 2:4], axis=1) < REACHED
    hit = np.linalg.norm(after[:, :2] - after[:, 4:], axis=1) < RADIUS
    return after, reached, hit


def demonstrate(
    setting: Setting, count: int, seed: int, name: str, start: int = 0
) -> list[Episode]:
    """Returns `count` successful demonstrations; those that fail are made again."""
    rng = np.random.default_rng([seed, start, int(1e6 * setting.policy), int(1e6 * setting.system)])
    found: list[Episode] = []
    while len(found) < count:
        sides = rng.choice([-1.0, 1.0]) if setting.random_side else 0.0
        states, seen, acted = starts(rng, 1), [], []
        for _ in range(STEPS):
            noise = setting.policy / SPEED * rng.normal(size=(1, 2))
            action = np.clip(expert(states, np.array([sides])) + noise, -1, 1)
            seen.append(states[0])
            acted.append(action[0])
            states, reached, hit = step(states, action, setting.system, rng)
            if hit[0] or reached[0]:
                break
        if not reached[0] or hit[0]:
            continue
        found.append(
            Episode(
                f"{name}/{start + len(found)}",
                np.array([*seen, states[0]]),
                np.array(acted),
                np.zeros(len(acted)),
                terminated=True,
                success=True,
                fps=10.0,
            )
        )
    return found


def success_rate(policy: Policy, system: float, rollouts: int, seed: int) -> float:
    """Returns the share of rollouts that reach the target without touching the obstacle."""
    rng = np.random.default_rng([seed, 77])
    states = starts(rng, rollouts)
    alive, won = np.ones(rollouts, bool), np.zeros(rollouts, bool)
    for _ in range(STEPS):
        after, reached, hit = step(states, policy(states), system, rng)
        won |= alive & reached & ~hit
        alive &= ~(reached | hit)
        states = np.where(alive[:, None], after, states)
    return float(won.mean())
