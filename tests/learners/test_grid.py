"""What CQN and ARSQ share: which rows are demonstrations, through stores and streams; pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from learners.base import Learner, make_learner
from learners.checkpoint import load_checkpoint, restore
from learners.data import Sampling, open_stream, pin
from learners.finetune import FinetuneConfig, finetune
from learners.normaliser import Normaliser, Picture
from learners.policy import decode_policy, encode_policy
from learners.ranks import Ranks
from learners.replay import replay
from learners.sampling import rows_of
from learners.settings import StreamNeeds
from learners.train import TrainConfig, train
from pipeline.store.store import Store, open_store
from schemas.errors import ConfigError
from tests.learners.homing import ENVIRONMENT, demonstrations
from tests.learners.worked import B, differ, learner, normaliser, rows

SMALL: dict[str, dict[str, Any]] = {
    "cqn": {"hidden": (8,), "levels": 2, "bins": 3, "atoms": 5},
    "arsq": {"hidden": (8,), "levels": 2, "bins": 3},
}
ALGORITHMS = sorted(SMALL)


@pytest.fixture
def store(tmp_path: Path, homing: None) -> Store:
    """Episodes on `main` and others, called elsewhere, on `more`."""
    made = open_store(tmp_path / "store", create=True)
    made.append(demonstrations(6))
    made.append(demonstrations(6, first=100), branch="more")
    return made


def _config(store: Store, out: Path, algo: str, **changes: Any) -> TrainConfig:
    given: dict[str, Any] = {
        "algo": algo,
        "data": (f"{store.url}@main=0.25", f"{store.url}@more=0.75"),
        "out": str(out),
        "steps": 4,
        "batch_size": 16,
        "settings": SMALL[algo],
    }
    return TrainConfig(**{**given, **changes})


def _ids(store: Store, branch: str) -> set[str]:
    return set(store.version(branch).episodes(columns=["episode_id"])["episode_id"].to_pylist())


# -- which rows are of demonstrations --------------------------------------------------------------


def test_offline_all_sources_are_demonstrations_or_the_first_ones(
    tmp_path: Path, store: Store
) -> None:
    train(_config(store, tmp_path / "all", "cqn"))
    assert replay(str(tmp_path / "all"), 2).batch["is_demonstration"].all()
    settings = {**SMALL["cqn"], "demonstrations": 1}
    train(_config(store, tmp_path / "first", "cqn", settings=settings))
    batch = replay(str(tmp_path / "first"), 2).batch
    is_first = [name in _ids(store, "main") for name in batch["episode_ids"]]
    assert batch["is_demonstration"].tolist() == is_first
    assert sum(is_first) == 4


def test_a_lone_source_is_of_demonstrations() -> None:
    made = learner("arsq")
    found, weight = made.demonstrated(rows(0), torch.ones(1, B))
    assert found.tolist() == [[1.0] * B]
    assert weight.tolist() == [1.0]


@pytest.mark.parametrize("count", [2, 1])
def test_more_sources_of_demonstrations_than_of_data_are_refused(
    tmp_path: Path, store: Store, count: int
) -> None:
    settings = {**SMALL["arsq"], "demonstrations": count + 1}
    data = _config(store, tmp_path / "run", "arsq").data[:count]
    with pytest.raises(ConfigError, match=rf"there are of data, {count}, came {count + 1}"):
        train(_config(store, tmp_path / "run", "arsq", settings=settings, data=data))


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_on_rollouts_only_those_that_succeeded_are_demonstrations(
    tmp_path: Path, store: Store, algo: str
) -> None:
    settings = {**SMALL[algo], "demonstrations": 1}
    train(_config(store, tmp_path / "run", algo, settings=settings))
    result = finetune(
        FinetuneConfig(
            run=str(tmp_path / "run"),
            environment=ENVIRONMENT,
            into=store.url,
            branch="rollouts",
            env_steps=160,
            round_steps=40,
            updates_per_step=0.25,
            exploration="gaussian",
            noise=0.5,
            offline_fraction=0.75,
            join_successes=True,
        )
    )
    assert result.steps > 20
    succeeded, rollouts = _ids(store, "rollouts-successes"), _ids(store, "rollouts")
    assert succeeded < rollouts
    folder = tmp_path / "run" / "finetune"
    drawn = load_checkpoint(folder).document["stream"]["step"]
    named = []
    for step in range(drawn - 8, drawn):
        batch = replay(str(folder), step).batch
        named += list(zip(batch["episode_ids"], batch["is_demonstration"].tolist(), strict=True))
    assert {flag for name, flag in named if name in _ids(store, "main")} == {True}
    assert {flag for name, flag in named if name in _ids(store, "more")} == {False}
    # Those that succeeded are drawn among the demonstrations, and among all rollouts, too.
    assert {flag for name, flag in named if name in rollouts - succeeded} == {False}
    assert {flag for name, flag in named if name in succeeded} == {True, False}


def test_the_steps_of_a_window_are_of_a_demonstration_together(store: Store) -> None:
    needs = StreamNeeds(demonstrations=1)
    sampling = Sampling(8, 0, 0.9, "cpu", stream={"window": 3}, needs=needs, episode_ids=True)
    references = (f"{store.url}@main", f"{store.url}@more")
    windows = open_stream(pin(references), sampling)
    batch = next(iter(windows))
    is_first = [name in _ids(store, "main") for name in batch["episode_ids"]]
    (found,) = rows_of(iter([batch]), needs)
    assert found["is_demonstration"].tolist() == [flag for flag in is_first for _ in range(3)]
    made = learner("cqn", **{**SMALL["cqn"], "hidden": (8, 8)})
    flags, _ = made.demonstrated(found, found["mask"][None])
    assert flags.sum() == (found["mask"] * found["is_demonstration"]).sum()


@dataclass(frozen=True)
class Told(Ranks):
    """One of two processes, told what the averages over both are."""

    means: Iterator[float] = field(default_factory=lambda: iter(()))

    def average(self, mine: Tensor) -> Tensor:
        """Returns the next one."""
        return torch.full_like(mine, next(self.means))


def test_means_over_demonstrations_are_those_of_all_processes() -> None:
    values, flags = torch.arange(8.0), torch.tensor([1, 1, 1, 0, 0, 1, 0, 0])
    mask = torch.tensor([1.0, 1, 1, 1, 1, 1, 0, 0])
    wanted = (values * flags * mask).sum() / (flags * mask).sum()
    total = torch.zeros(())
    for half, share in ((slice(0, 4), 4 / 3), (slice(4, 8), 2 / 3)):  # of the six rows that count
        told = Told(0, 2, iter([3.0, 2.0]))
        made = make_learner("cqn", SMALL["cqn"], normaliser(), ranks=told)
        batch = {"is_demonstration": flags[half].bool()}
        found, weight = made.demonstrated(batch, mask[None, half])  # type: ignore[attr-defined]
        own = (values[half] * found).sum() / found.sum()
        total = total + share * weight[0] * own / 2
    assert total.item() == pytest.approx(wanted.item())


def test_without_demonstrations_nothing_is_asked_of_them() -> None:
    made = learner("cqn")
    batch = {**rows(0), "is_demonstration": torch.zeros(B, dtype=torch.bool)}
    found, weight = made.demonstrated(batch, torch.ones(1, B))
    assert (found.sum().item(), weight.item()) == (0.0, 0.0)


# -- what acts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_a_published_policy_acts_as_its_learner(algo: str) -> None:
    ranged = np.array([[-1.0, -0.5], [0.25, 1.0]], np.float32)
    fitted = dataclasses.replace(normaliser(), action_range=ranged)
    made = make_learner(algo, {**SMALL[algo], "action_high": 2.0}, fitted)
    made.update(rows(0))
    acting, step = decode_policy(encode_policy(made, "run", 7), "run")
    assert step == 7
    states = rows(1)["observations"]
    noise = torch.randn(B, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(acting.act(states), made.act(states))
    assert torch.equal(acting.explore(states, noise), made.explore(states, noise))


# -- pictures --------------------------------------------------------------------------------------

SEEN = Picture("observations/rgb", (12, 12, 3))


def _seeing(algo: str, seed: Any = 0, **changes: Any) -> Learner:
    ones = np.ones(2, np.float32)
    fitted = Normaliser(("observations/at",), 0 * ones, ones, ones, pictures=(SEEN,))
    settings = {**SMALL[algo], "pixels": True, "encoder": "small", "feature": 6, "shift": 1}
    return make_learner(algo, {**settings, **changes}, fitted, seed)


def _seen(seed: int, count: int = 8) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)

    def observed() -> dict[str, Tensor]:
        pixels = torch.randint(0, 256, (count, 12, 12, 3), generator=generator, dtype=torch.uint8)
        return {"rgb": pixels, "at": torch.randn(count, 2, generator=generator)}

    batch: dict[str, Any] = rows(seed, count)
    return {**batch, "observations": observed(), "next_observations": observed()}


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_learns_from_pictures_through_an_encoder(algo: str) -> None:
    made, start = _seeing(algo, (3, 8)), _seeing(algo, (3, 8))
    alone = [_seeing(algo, seed) for seed in (3, 8)]
    batches = [_seen(seed) for seed in (0, 1)]
    joined = {
        name: torch.cat([one[name] for one in batches])
        for name in batches[0]
        if not isinstance(batches[0][name], dict)
    }
    for name in ("observations", "next_observations"):
        joined[name] = {
            part: torch.cat([one[name][part] for one in batches]) for part in ("rgb", "at")
        }
    made.update(joined)
    assert differ(made, start, "encoder")
    for number, (one, batch) in enumerate(zip(alone, batches, strict=True)):
        one.update(batch)
        for name, tensor in one.state().items():
            torch.testing.assert_close(made.state(number)[name], tensor, rtol=1e-4, atol=1e-5)
    acted = made.act(batches[0]["observations"], agent=1)
    torch.testing.assert_close(acted, alone[1].act(batches[0]["observations"]))
    assert acted.shape == (8, 2)


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_frames_are_asked_of_the_stream_beside_demonstrations(algo: str) -> None:
    made = _seeing(algo, frames=3, demonstrations=2)
    needs = made.needs(made.settings)
    assert (needs.frame_stack, needs.demonstrations) == (3, 2)
    assert "demonstrations" not in needs.stream()
    plain = learner(algo)
    assert plain.needs(plain.settings).stream() == {}


def test_a_restored_learner_keeps_the_cells_of_its_data(tmp_path: Path, store: Store) -> None:
    train(_config(store, tmp_path / "run", "cqn"))
    made: Any = restore(load_checkpoint(tmp_path / "run"))
    actions = np.concatenate(
        [e.flat_actions["actions"] for first in (0, 100) for e in demonstrations(6, first)]
    )
    assert made.codec.low.tolist() == pytest.approx([float(actions.min())], abs=1e-6)
    assert made.codec.high.tolist() == pytest.approx([float(actions.max())], abs=1e-6)
