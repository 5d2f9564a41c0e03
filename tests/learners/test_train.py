"""Training and fine-tuning through a real store and real streams."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from learners.checkpoint import load_checkpoint, restore
from learners.data import Pinned, Sampling, open_stream, pin
from learners.evaluate import evaluate
from learners.finetune import FinetuneConfig, finetune
from learners.replay import replay
from learners.run import Progress
from learners.runlog import read_table
from learners.train import TrainConfig, train
from pipeline.store import runs
from pipeline.store.store import Store, open_store
from pipeline.stream.mixture import Mixture
from pipeline.stream.seen import could_draw
from schemas.errors import (
    ConfigError,
    NameTakenError,
    NotFoundError,
    SpecMismatchError,
    UnknownNameError,
    UsageError,
)
from tests.learners.homing import ENVIRONMENT, demonstrations

pytestmark = pytest.mark.usefixtures("homing")

SMALL = {"hidden": (16, 16)}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = open_store(tmp_path / "store", create=True)
    made.append(demonstrations(40))
    return made


def test_a_resumed_run_equals_an_unbroken_one(tmp_path: Path, store: Store) -> None:
    settings = {**SMALL, "dropout": 0.2, "policy_decay": 60}
    whole = train(_train_config(store, tmp_path / "whole", 60, settings=settings))
    with pytest.raises(InterruptedError):
        train(_train_config(store, tmp_path / "half", 60, settings=settings), _stop_at(50))
    assert load_checkpoint(tmp_path / "half").step == 45
    store.append(demonstrations(3, first=40))  # main moves on; the run does not
    resumed = train(_train_config(store, tmp_path / "half", 60, settings=settings, resume=True))
    assert (resumed.steps, resumed.data) == (60, whole.data)
    _assert_same_run(tmp_path / "whole", tmp_path / "half")


def test_a_run_leaves_what_it_says(tmp_path: Path, store: Store) -> None:
    said: list[Progress] = []
    config = _train_config(
        store, tmp_path / "run", 50, environment=ENVIRONMENT, evaluate_every=20, evaluate_episodes=4
    )
    result = train(config, said.append)
    metrics = read_table(tmp_path / "run" / "metrics.csv")
    judged = read_table(tmp_path / "run" / "evaluations.csv")
    assert [row["step"] for row in metrics] == ["10", "20", "30", "40", "50"]
    assert [row["step"] for row in judged] == ["20", "40", "50"]
    assert {"value_loss", "policy_loss", "critic_loss"} < metrics[0].keys()
    packed = [one for one in said if one.stage == "pack"]
    assert [one.done for one in packed] == list(range(1, len(packed) + 1))
    assert said[: len(packed)] == packed
    assert [one.done for one in said[len(packed) :]] == [10, 20, 30, 40, 50]
    document = json.loads((tmp_path / "run" / "run.json").read_text())
    assert document["config"]["batch_size"] == 64
    assert document["data"][0]["version"] == store.version().id
    assert result.algo == "iql"
    assert result.updates_per_second > 0
    assert result.data == (Pinned(store.url, store.version().id),)
    learner = restore(load_checkpoint(tmp_path / "run"))
    assert result.evaluation == evaluate(learner, ENVIRONMENT, 4)


def test_the_policys_rate_decays_over_the_run_unless_told(tmp_path: Path, store: Store) -> None:
    train(_train_config(store, tmp_path / "one", 10))
    train(_train_config(store, tmp_path / "two", 10, settings={**SMALL, "policy_decay": 0}))
    assert load_checkpoint(tmp_path / "one").settings["policy_decay"] == 10
    assert load_checkpoint(tmp_path / "two").settings["policy_decay"] == 0


def test_several_versions_are_mixed_by_weight(tmp_path: Path, store: Store) -> None:
    other = open_store(tmp_path / "other", create=True)
    other.append(demonstrations(5, first=100))
    data = (f"{store.url}@main=3", other.url)
    result = train(_train_config(store, tmp_path / "run", 10, data=data))
    assert [one.weight for one in result.data] == [3.0, 1.0]
    assert load_checkpoint(tmp_path / "run").document["stream"]["weights"] == ["3/4", "1/4"]


def test_a_run_is_not_overwritten(tmp_path: Path, store: Store) -> None:
    train(_train_config(store, tmp_path / "run", 10))
    with pytest.raises(NameTakenError, match="resume it or choose another folder"):
        train(_train_config(store, tmp_path / "run", 10))


def test_a_resumed_run_keeps_its_settings(tmp_path: Path, store: Store) -> None:
    train(_train_config(store, tmp_path / "run", 10))
    with pytest.raises(ConfigError, match="seed = 0"):
        train(_train_config(store, tmp_path / "run", 20, seed=1, resume=True))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"algo": "iqll"}, UnknownNameError),
        ({"settings": {"expectil": 0.9}}, UnknownNameError),
        ({"sampler": "transitions"}, UnknownNameError),
        ({"data": ()}, UsageError),
        ({"data": ("/nowhere",)}, NotFoundError),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(
    tmp_path: Path, store: Store, change: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        train(_train_config(store, tmp_path / "run", 10, **change))
    assert not (tmp_path / "run").exists()


def test_references_are_pinned(store: Store) -> None:
    first = store.version()
    second = store.append(demonstrations(1, first=90))
    assert pin([store.url]) == (Pinned(store.url, second.id, 1.0),)
    assert pin([f"{store.url}@main:1=2.5"]) == (Pinned(store.url, first.id, 2.5),)
    with pytest.raises(UsageError, match="positive weight"):
        pin([f"{store.url}=0"])


def test_fine_tuning_commits_its_rollouts_and_learns_from_both(
    tmp_path: Path, store: Store
) -> None:
    base = train(_train_config(store, tmp_path / "run", 300, environment=ENVIRONMENT))
    offline = store.version()
    config = _finetune_config(store, tmp_path / "run", env_steps=600, branch="online")
    result = finetune(config)
    online = store.version("online")
    assert store.version().id == offline.id
    assert result.data == (*base.data, Pinned(store.url, online.id))
    lengths = online.episodes(columns=["length", "kind", "policy_version", "policy"]).to_pydict()
    assert 600 <= sum(lengths["length"]) < 610
    assert set(lengths["kind"]) == {"rollout"}
    # The policy of the first two rounds is the same: warm-up earns no updates.
    assert len(set(lengths["policy_version"])) == len(store.log("online")) - 1
    assert online.specs == offline.specs
    assert result.steps == 300 + sum(lengths["length"]) - 50
    assert base.evaluation is not None
    assert result.evaluation is not None
    assert result.evaluation.mean_return > base.evaluation.mean_return
    checkpoint = load_checkpoint(tmp_path / "run" / "finetune")
    assert checkpoint.document["stream"]["weights"] == ["1/2", "1/2"]
    assert checkpoint.settings["policy_decay"] == 0
    assert load_checkpoint(tmp_path / "run").step == 300


def test_any_share_of_several_offline_versions(tmp_path: Path, store: Store) -> None:
    other = open_store(tmp_path / "other", create=True)
    other.append(demonstrations(5, first=100))
    data = (f"{store.url}=0.1", f"{other.url}=0.3")
    train(_train_config(store, tmp_path / "run", 5, data=data))
    for fraction, weights in ((0.0, ["0", "0", "1"]), (0.8, ["1/5", "3/5", "1/5"])):
        out = tmp_path / str(fraction)
        finetune(
            _finetune_config(store, tmp_path / "run", 70, offline_fraction=fraction, out=str(out))
        )
        assert load_checkpoint(out).document["stream"]["weights"] == weights


def test_a_fine_tuned_run_can_be_fine_tuned(tmp_path: Path, store: Store) -> None:
    train(_train_config(store, tmp_path / "run", 5))
    first = finetune(_finetune_config(store, tmp_path / "run", 70))
    second = finetune(_finetune_config(store, Path(first.run), 70))
    assert first.steps + 20 <= second.steps < first.steps + 30
    assert second.data[:-1] == first.data[:-1]
    assert second.data[-1] != first.data[-1]


@pytest.mark.parametrize("loses_checkpoint", [False, True])
def test_resumed_fine_tuning_equals_an_unbroken_one(
    tmp_path: Path, store: Store, loses_checkpoint: bool
) -> None:
    """Also where the last round's commit is there, and its checkpoint is not."""
    train(_train_config(store, tmp_path / "run", 20))

    def config(name: str, env_steps: int, **more: Any) -> FinetuneConfig:
        out = str(tmp_path / name)
        return _finetune_config(
            store, tmp_path / "run", env_steps=env_steps, out=out, branch=name, **more
        )

    finetune(config("whole", 200))
    finetune(config("half", 100))
    folder = tmp_path / "half" / "checkpoints"
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    finetune(config("half", 150, resume=True))
    if loses_checkpoint:
        for path in folder.iterdir():
            path.unlink()
        for name, data in kept.items():
            (folder / name).write_bytes(data)
    finetune(config("half", 200, resume=True))
    _assert_same_run(tmp_path / "whole", tmp_path / "half")
    whole, half = (store.version(name).episodes().to_pydict() for name in ("whole", "half"))
    assert whole["length"] == half["length"]
    assert whole["episode_return"] == half["episode_return"]


def test_rollouts_that_do_not_fit_are_refused(tmp_path: Path, store: Store) -> None:
    train(_train_config(store, tmp_path / "run", 5))
    with pytest.raises(SpecMismatchError):
        finetune(_finetune_config(store, tmp_path / "run", 50, environment="InvertedPendulum-v5"))


def _stop_at(step: int) -> Callable[[Progress], None]:
    def report(progress: Progress) -> None:
        if progress.done == step:
            raise InterruptedError

    return report


def _train_config(store: Store, out: Path, steps: int, **changes: Any) -> TrainConfig:
    given: dict[str, Any] = {
        "algo": "iql",
        "data": (store.url,),
        "out": str(out),
        "steps": steps,
        "settings": SMALL,
        "batch_size": 64,
        "discount": 0.9,
        "log_every": 10,
        "checkpoint_every": 15,
    }
    return TrainConfig(**{**given, **changes})


def _finetune_config(store: Store, run: Path, env_steps: int, **changes: Any) -> FinetuneConfig:
    given: dict[str, Any] = {
        "run": str(run),
        "environment": ENVIRONMENT,
        "into": store.url,
        "env_steps": env_steps,
        "warmup_steps": 50,
        "round_steps": 50,
        "exploration": "gaussian",
        "noise": 0.3,
    }
    return FinetuneConfig(**{**given, **changes})


def _assert_same_run(one: Path, two: Path) -> None:
    left, right = load_checkpoint(one), load_checkpoint(two)
    assert left.step == right.step
    assert left.tensors.keys() == right.tensors.keys()
    for name, tensor in left.tensors.items():
        assert torch.equal(tensor, right.tensors[name]), name
    assert read_table(one / "metrics.csv") == read_table(two / "metrics.csv")


# -- what a run read, again ------------------------------------------------------------------------


def test_a_batch_of_training_is_made_again(tmp_path: Path, store: Store) -> None:
    config = _train_config(store, tmp_path / "run", steps=12)
    pinned = pin(config.data)
    train(config)
    store.append(demonstrations(3, first=100))  # the run's version stays what it was
    sampling = Sampling(config.batch_size, config.seed, config.discount, "cpu")
    batches = list(itertools.islice(open_stream(pinned, sampling), 12))
    for step in (0, 7, 11):
        made = replay(str(tmp_path / "run"), step)
        for name, array in made.batch.items():
            if name != "episode_ids":
                np.testing.assert_array_equal(array, batches[step][name].numpy(), name)
        assert len(made.batch["episode_ids"]) == config.batch_size
    with pytest.raises(UsageError, match="from 0 to 11"):
        replay(str(tmp_path / "run"), 12)


def test_batches_of_fine_tuning_are_made_again_over_growing_data(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(_train_config(store, tmp_path / "run", steps=5))
    seen: list[np.ndarray] = []

    def watched(self: Mixture) -> Any:
        batch = drawn(self)
        seen.append(np.asarray(batch["indices"]))
        return batch

    drawn = Mixture.__next__
    monkeypatch.setattr(Mixture, "__next__", watched)
    finetune(_finetune_config(store, tmp_path / "run", 120))
    monkeypatch.setattr(Mixture, "__next__", drawn)
    assert len(seen) > 20
    run = str(tmp_path / "run" / "finetune")
    for step in (0, len(seen) // 2, len(seen) - 1):
        np.testing.assert_array_equal(replay(run, step).batch["indices"], seen[step])


def test_stores_know_what_runs_read(tmp_path: Path, store: Store) -> None:
    train(_train_config(store, tmp_path / "run", steps=5))
    (name,) = runs.runs(store.catalog)
    (reference,) = runs.references(store.catalog, name)
    assert reference.versions == (store.version().commit.ref,)
    finetune(_finetune_config(store, tmp_path / "run", 120))
    tuned = next(run for run in runs.runs(store.catalog) if run != name)
    steps = [reference.step for reference in runs.references(store.catalog, tuned)]
    assert steps[0] == 0
    assert steps == sorted(set(steps))
    assert len(steps) > 1
    first = store.version().episodes(columns=["episode_id"])["episode_id"][0].as_py()
    assert {row["run"] for row in could_draw(store, first)} == {name, tuned}
    with pytest.raises(NotFoundError, match="nobody"):
        could_draw(store, "nobody")
