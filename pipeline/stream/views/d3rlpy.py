"""A version as d3rlpy's replay buffer, its episodes in memory as d3rlpy holds them.

d3rlpy has no place for a final observation: the last step of an episode that was not terminated is
no transition there, whether or not the store knows what came after it.
"""

from __future__ import annotations

import numpy as np

from pipeline.store.reader import Version
from pipeline.stream.views.episodes import acted, as_dtype, kept, learnable, missing
from schemas.episode import Episode
from schemas.errors import UsageError
from schemas.packed import plain

try:
    from d3rlpy.constants import ActionSpace
    from d3rlpy.dataset import Episode as TheirEpisode
    from d3rlpy.dataset import InfiniteBuffer, ReplayBuffer
except ImportError as error:
    raise missing("d3rlpy", error) from error


def view(version: Version, *, dtype: str | None) -> ReplayBuffer:
    """Returns a replay buffer of all episodes; see `Version.as_d3rlpy`."""
    spec = learnable(version)
    actions = [field for name, field in spec.fields.items() if name.startswith("actions")]
    if len(actions) != 1 or len(actions[0].shape) > 1:
        came = ", ".join(map(str, actions))
        raise UsageError(f"Expected actions as one vector or number per step, came {came}.")
    is_discrete = actions[0].numpy_dtype.kind in "iub"
    shown = kept(version).with_steps()
    return ReplayBuffer(
        InfiniteBuffer(),
        episodes=[_episode(episode, dtype) for episode in shown.read()],
        action_space=ActionSpace.DISCRETE if is_discrete else ActionSpace.CONTINUOUS,
    )


def _episode(episode: Episode, dtype: str | None) -> TheirEpisode:
    actions, rewards = acted(episode)
    if episode.terminated[:-1].any():
        raise UsageError(
            f"Expected only last steps to be terminated, {episode.episode_id!r} goes on after one; "
            f"d3rlpy cannot hold it.",
            where=episode.episode_id,
        )
    steps = episode.length
    rows = [plain(array[:steps]) for _, array in sorted(episode.observations.items())]
    observations = [as_dtype(array, dtype) for array in rows]
    return TheirEpisode(
        observations=observations[0] if len(observations) == 1 else tuple(observations),
        actions=as_dtype(next(iter(actions.values())), dtype).reshape(steps, -1),
        rewards=rewards.astype(np.float32).reshape(steps, 1),
        terminated=episode.is_terminated,
    )
