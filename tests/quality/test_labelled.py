"""Real simulator demonstrations with known noise: the scores rank it."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy.stats import spearmanr

from schemas.episode import Episode
from tests.quality.systems import measure_all


@pytest.fixture(scope="module")
def labelled(shared_data: Path) -> list[Episode]:
    path = shared_data / "metaworld" / "robomimic_labelled.hdf5"
    if not path.is_file():
        pytest.skip(f"no {path.name} among the real datasets")
    with h5py.File(path) as file:
        names = sorted(file["data"], key=lambda name: int(name.split("_")[1]))
        return [read(name, file["data"][name]) for name in names]


def read(name: str, group: h5py.Group) -> Episode:
    success = bool(group.attrs["success"])
    return Episode(
        episode_id=name,
        observations={"flat": group["obs/flat"][:]},
        actions=group["actions"][:],
        rewards=group["rewards"][:],
        terminated=success,
        truncated=not success,
        final_observation="missing",
        task=str(group.attrs["task"]),
        labels={"kind": str(group.attrs["kind"]), "sigma": float(group.attrs["sigma"])},
    )


def odds_of_ranking(high: np.ndarray, low: np.ndarray) -> float:
    """Area under the ROC curve."""
    above = (high[:, None] > low).mean() + 0.5 * (high[:, None] == low).mean()
    return float(above)


@pytest.mark.parametrize("seed", [0, 1])
def test_divergence_ranks_policy_noise_and_not_system_noise(
    labelled: list[Episode], seed: int
) -> None:
    columns, values, _ = measure_all(labelled, seed=seed)
    tasks = np.array([e.task for e in labelled])
    kinds = np.array([e.labels["kind"] for e in labelled])
    sigmas = np.array([e.labels["sigma"] for e in labelled], float)
    scores = columns["action_divergence"]
    correlations = []
    for task in np.unique(tasks):
        noisy = (tasks == task) & (kinds == "policy")
        correlations.append(spearmanr(scores[noisy], sigmas[noisy]).statistic)
        assert correlations[-1] >= 0.90, task
        against = scores[(tasks == task) & (kinds == "system")]
        assert odds_of_ranking(scores[noisy & (sigmas >= 0.3)], against) >= 0.98, task
    assert np.mean(correlations) >= 0.94
    assert values["action_divergence"].coverage == 1.0
    assert values["transition_diversity"].coverage == 1.0


def test_half_of_the_episodes_rank_as_well(labelled: list[Episode]) -> None:
    half = labelled[::2]
    scores = measure_all(half)[0]["action_divergence"]
    for task in {e.task for e in half}:
        noisy = [i for i, e in enumerate(half) if e.task == task and e.labels["kind"] == "policy"]
        sigmas = [half[i].labels["sigma"] for i in noisy]
        assert spearmanr(scores[noisy], sigmas).statistic >= 0.85, task


def test_uniform_random_actions_diverge_by_their_whole_variance(shared_data: Path) -> None:
    path = shared_data / "hopper-random" / "d4rl.hdf5"
    if not path.is_file():
        pytest.skip("no random Hopper rollouts among the real datasets")
    with h5py.File(path) as file:
        states, actions = file["observations"][:], file["actions"][:]
        terminated, timeouts = file["terminals"][:].astype(bool), file["timeouts"][:].astype(bool)
    ends = np.flatnonzero(terminated | timeouts) + 1
    episodes = [
        Episode(
            episode_id=str(start),
            observations={"observations": states[start:end]},
            actions=actions[start:end],
            terminated=terminated[start:end],
            truncated=timeouts[start:end],
            final_observation="missing",
        )
        for start, end in zip([0, *ends[:-1]], ends, strict=True)
    ]
    _, values, _ = measure_all(episodes)
    assert values["action_divergence"].value == pytest.approx(1.0, rel=0.03)
    diversity = values["transition_diversity"]
    assert diversity.value == pytest.approx(diversity.details["reference"][0]["value"], abs=1.0)
