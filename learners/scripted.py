"""A scripted controller of known quality, for demonstrations where no person is at hand.

It balances the double pendulum of `InvertedDoublePendulum-v5` on its cart with linear feedback, and
has one deliberate flaw: its gain on the cart's position has the wrong sign. It holds the poles up
well but steers the cart away from the middle, and drops them after about a hundred of 1000 steps,
at a tenth of the return that is possible. All it does is worth imitating but for that flaw, and
noise of known size on its actions makes demonstrations of known quality.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

ENVIRONMENT = "InvertedDoublePendulum-v5"

NOISE_LEVELS = (0.0, 0.1, 0.2, 0.3)
"""Standard deviations of action noise that still leave it standing for a while; actions reach
from -1 to 1."""

# Linear-quadratic regulator of the dynamics linearised about the upright state (state cost 1 on
# positions, 0.01 on velocities, action cost 10), on cart position, pole angles, cart velocity and
# pole velocities; doubled, which it tolerates and which makes it less sensitive to noise.
SOUND_GAINS = (0.28888, 1.69608, 7.22223, 0.37971, 1.03292, 1.07675)


FLAW = -1.0
"""Factor on the gain on cart position."""


@dataclass(frozen=True)
class PoleBalancer:
    """Linear feedback with Gaussian noise; usable as a policy and as an actor."""

    noise: float = 0.0
    """Standard deviation of the noise on each action."""
    is_flawed: bool = True
    """False gives the sound controller, which never drops the poles while it acts cleanly."""

    @property
    def name(self) -> str:
        """Says which controller this is."""
        return f"pole-balancer-{'flawed' if self.is_flawed else 'sound'}-{self.noise:g}"

    def act(self, observations: Any) -> np.ndarray:
        """Returns the clean actions (B, 1) for observations (B, 9)."""
        seen = np.asarray(observations, np.float64)
        gains = np.array(SOUND_GAINS)
        gains[0] *= FLAW if self.is_flawed else 1
        angles = np.arctan2(seen[:, 1:3], seen[:, 3:5])
        state = np.concatenate([seen[:, :1], angles, seen[:, 5:8]], axis=1)
        actions: np.ndarray = np.clip(-state @ gains, -1, 1)[:, None]
        return actions

    def __call__(self, observation: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Returns one noisy action (1,) float32 for one observation (9,), within the bounds."""
        action = self.act(observation[None])[0] + self.noise * rng.standard_normal(1)
        bounded: np.ndarray = np.clip(action, -1, 1).astype(np.float32)
        return bounded
