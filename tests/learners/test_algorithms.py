"""What holds for every algorithm: agents side by side, and runs through real stores and streams."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from learners.base import ALGORITHMS
from learners.checkpoint import load_checkpoint, restore
from learners.data import Pinned, Sampling, open_stream, pin
from learners.finetune import FinetuneConfig, finetune
from learners.growing import Growing, open_growing
from learners.replay import replay
from learners.rlpd import in_parts
from learners.run import Progress
from learners.runlog import read_table
from learners.settings import StreamNeeds
from learners.train import TrainConfig, train
from pipeline.store.store import Store, open_store
from schemas.errors import ConfigError
from tests.learners.homing import ENVIRONMENT, demonstrations
from tests.learners.worked import learner, rows, windows

pytestmark = pytest.mark.usefixtures("homing")

SETTINGS: dict[str, dict[str, Any]] = {
    "bc": {"dropout": 0.1},
    "iql": {"dropout": 0.1},
    "td3_bc": {},
    "rebrac": {"policy_layer_norm": True},
    "cql": {"policy_hidden": (8,), "samples": 2},
    "cal_ql": {"policy_hidden": (8,), "samples": 2, "failed_reward": 0.0},
    "rlpd": {"updates": 2, "members": 3},
    "dt": {"target_return": 5.0, "context": 3, "longest": 20, "width": 8, "blocks": 1},
    "cqn": {"levels": 2, "bins": 3, "atoms": 11},
    "arsq": {"levels": 2, "bins": 3},
}


def test_all_algorithms_are_here() -> None:
    assert SETTINGS.keys() == ALGORITHMS.keys()


@pytest.mark.parametrize("algo", SETTINGS)
def test_agents_side_by_side_are_as_alone(algo: str) -> None:
    both = learner(algo, (3, 8), **SETTINGS[algo])
    alone = [learner(algo, seed, **SETTINGS[algo]) for seed in (3, 8)]
    make = windows if algo in ("rebrac", "dt") else rows
    for step in range(3):
        batches = [make(10 * step + number) for number in range(2)]
        joined = {name: torch.cat([one[name] for one in batches]) for name in batches[0]}
        found = both.update(joined)
        for number, (one, batch) in enumerate(zip(alone, batches, strict=True)):
            for name, loss in one.update(batch).items():
                torch.testing.assert_close(
                    found[name][number], loss[0], rtol=1e-4, atol=1e-5, equal_nan=True
                )
    for number, one in enumerate(alone):
        mine, theirs = both.state(number), one.state()
        assert mine.keys() == theirs.keys()
        for name, tensor in mine.items():
            torch.testing.assert_close(tensor, theirs[name], rtol=1e-4, atol=1e-5)


# -- runs ------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = open_store(tmp_path / "store", create=True)
    made.append(demonstrations(12))
    return made


def _config(algo: str, store: Store, out: Path, **changes: Any) -> TrainConfig:
    given: dict[str, Any] = {
        "algo": algo,
        "data": (store.url,),
        "out": str(out),
        "steps": 30,
        "settings": SETTINGS[algo] if algo == "dt" else {"hidden": (8, 8), **SETTINGS[algo]},
        "batch_size": 16,
        "discount": 0.9,
        "log_every": 5,
        "checkpoint_every": 10,
    }
    return TrainConfig(**{**given, **changes})


@pytest.mark.parametrize("algo", sorted(SETTINGS.keys() - {"bc", "iql"}))
def test_a_run_trains_resumes_exactly_and_is_fine_tuned(
    tmp_path: Path, store: Store, algo: str
) -> None:
    train(_config(algo, store, tmp_path / "whole"))

    def stop(progress: Progress) -> None:
        if progress.done == 20 and progress.stage == "train":
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train(_config(algo, store, tmp_path / "half"), stop)
    train(_config(algo, store, tmp_path / "half", resume=True))
    whole, half = (load_checkpoint(tmp_path / name) for name in ("whole", "half"))
    assert whole.step == half.step == 30
    for name, tensor in whole.tensors.items():
        assert torch.equal(tensor, half.tensors[name]), name
    tables = [read_table(tmp_path / name / "metrics.csv") for name in ("whole", "half")]
    assert tables[0] == tables[1]
    assert [row["step"] for row in tables[0]] == ["5", "10", "15", "20", "25", "30"]

    drawn = replay(str(tmp_path / "whole"), 3)
    learned = restore(whole)
    learned.update({name: torch.as_tensor(array) for name, array in _nested(drawn.batch).items()})

    result = finetune(
        FinetuneConfig(
            run=str(tmp_path / "whole"),
            environment=ENVIRONMENT,
            into=store.url,
            env_steps=40,
            round_steps=20,
            updates_per_step=0.5,
        )
    )
    assert result.steps > 45
    tuned = load_checkpoint(tmp_path / "whole" / "finetune")
    assert not torch.equal(tuned.tensors["updates"], whole.tensors["updates"])
    if algo == "cal_ql":
        assert tuned.settings["discount"] == 0.9
    again = replay(str(tmp_path / "whole" / "finetune"), 2)
    assert len(again.batch["mask"]) == 16 * (2 if algo == "rlpd" else 1)


def _nested(batch: Any) -> dict[str, Any]:
    return {name: array for name, array in batch.items() if name != "episode_ids"}


def test_next_actions_are_those_of_the_next_step(store: Store) -> None:
    """What ReBRAC is given of a stream, against the episodes themselves."""
    sampling = Sampling(200, 0, 0.9, "cpu", needs=StreamNeeds(window=2), episode_ids=True)
    batch = next(iter(open_stream(pin((store.url,)), sampling)))
    episodes = {one.episode_id: one for one in demonstrations(12)}
    seen = set()
    for row in range(200):
        episode = episodes[batch["episode_ids"][row]]
        state = (
            batch["observations"][row, 0].numpy().astype(episode.observations["observations"].dtype)
        )
        at = int(abs(episode.observations["observations"] - state).sum(axis=1)[:-1].argmin())
        is_last = at == episode.length - 1
        seen.add(is_last)
        assert batch["mask"][row].tolist() == [1.0, 0.0 if is_last else 1.0]
        if not is_last:
            assert batch["actions"][row, 1].tolist() == pytest.approx(
                episode.flat_actions["actions"][at + 1].tolist(), abs=1e-6
            )
    assert seen == {True, False}


def test_each_part_of_rlpds_batches_holds_both_sources_evenly(store: Store) -> None:
    online = store.append(demonstrations(6, first=50), branch="online")
    sampling = Sampling(16, 0, 0.9, "cpu", needs=StreamNeeds(batches=4), episode_ids=True)
    mixture = open_growing((Pinned(store.url, store.version().id),), Growing(online, 0.5), sampling)
    old = set(store.version().episodes()["episode_id"].to_pylist())
    made = learner("rlpd", updates=4)
    for _ in range(5):
        batch = next(mixture)
        is_old = torch.tensor([float(name in old) for name in batch["episode_ids"]])
        assert len(is_old) == 64
        parts = in_parts(made.transitions({**rows(0, 64), "rewards": is_old}), 4)
        assert [part.rewards.sum().item() for part in parts] == [8.0] * 4


def test_the_best_episodes_are_whole_ones(tmp_path: Path, store: Store) -> None:
    """Filtered cloning reads exactly the episodes chosen by return, whatever their lengths."""
    episodes = store.version().episodes(columns=["episode_id", "episode_return", "length"])
    rows_of_episodes = sorted(episodes.to_pylist(), key=lambda row: -row["episode_return"])
    assert len({row["length"] for row in rows_of_episodes}) > 1
    best = rows_of_episodes[:3]
    least = best[-1]["episode_return"]
    store.version().where(f"episode_return >= {least!r}").commit("best")
    sampling = Sampling(400, 0, 0.9, "cpu", episode_ids=True)
    stream = open_stream(pin((f"{store.url}@best",)), sampling)
    assert set(next(iter(stream))["episode_ids"]) == {row["episode_id"] for row in best}
    run = train(_config("bc", store, tmp_path / "run", data=(f"{store.url}@best",), steps=3))
    assert run.steps == 3


def test_windows_of_an_algorithm_go_with_weights(tmp_path: Path, store: Store) -> None:
    ids = store.version().episodes()["episode_id"].to_pylist()
    grades = pa.table({"episode_id": ids, "grade": [float(k < 2) for k in range(len(ids))]})
    version = store.version().annotate(grades)
    data = (f"{store.url}@{version.id}",)
    weighted = {"sampler": "weighted", "stream": {"weights": "grade"}}
    train(_config("rebrac", store, tmp_path / "run", data=data, steps=3, **weighted))
    drawn = replay(str(tmp_path / "run"), 2).batch
    assert drawn["actions"].shape == (16, 2, 1)
    assert set(drawn["episode_ids"]) <= set(ids[:2])


def test_settings_that_an_algorithm_makes_itself_are_refused(tmp_path: Path, store: Store) -> None:
    with pytest.raises(ConfigError, match="'window', which it sets to 2 itself"):
        train(_config("rebrac", store, tmp_path / "run", stream={"window": 3}, sampler="window"))
    settings = {**SETTINGS["cal_ql"], "discount": 0.5}
    with pytest.raises(ConfigError, match="use --discount"):
        train(_config("cal_ql", store, tmp_path / "run", settings=settings))
    assert not (tmp_path / "run").exists()


def test_windows_are_rows_to_those_that_take_rows(tmp_path: Path, store: Store) -> None:
    stream = {"window": 3}
    train(_config("cal_ql", store, tmp_path / "run", sampler="window", stream=stream, steps=3))
    assert load_checkpoint(tmp_path / "run").step == 3
