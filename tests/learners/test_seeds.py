"""Runs of several seeds, side by side in one process: each is the run that it would be alone."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from learners.batches import joined
from learners.checkpoint import load_checkpoint, restore
from learners.data import Sampling, open_stream, pin
from learners.evaluate import evaluate
from learners.replay import replay
from learners.run import Progress
from learners.runlog import read_table
from learners.train import TrainConfig, train, train_seeds
from pipeline.cli.main import app
from pipeline.store.store import Store, open_store
from schemas.errors import ConfigError, NameTakenError
from tests.learners.homing import ENVIRONMENT, demonstrations

pytestmark = pytest.mark.usefixtures("homing")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = open_store(tmp_path / "store", create=True)
    made.append(demonstrations(20))
    return made


def _config(store: Store, out: Path, steps: int = 30, **changes: Any) -> TrainConfig:
    given: dict[str, Any] = {
        "algo": "td3_bc",
        "data": (store.url,),
        "out": str(out),
        "steps": steps,
        "settings": {"hidden": (16, 16)},
        "batch_size": 16,
        "discount": 0.9,
        "log_every": 5,
        "checkpoint_every": 10,
    }
    return TrainConfig(**{**given, **changes})


def _assert_near(one: Path, two: Path) -> None:
    """Compares runs; products of several agents at once may round otherwise than of one."""
    left, right = load_checkpoint(one), load_checkpoint(two)
    assert left.step == right.step
    assert left.tensors.keys() == right.tensors.keys()
    for name, tensor in left.tensors.items():
        torch.testing.assert_close(tensor, right.tensors[name], rtol=1e-4, atol=1e-5)
    assert left.document["stream"] == right.document["stream"]
    for mine, theirs in zip(*(read_table(run / "metrics.csv") for run in (one, two)), strict=True):
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            close = pytest.approx(float(theirs[name]), rel=1e-3, abs=1e-5, nan_ok=True)
            assert float(value) == close, name


def _assert_same(one: Path, two: Path) -> None:
    left, right = load_checkpoint(one), load_checkpoint(two)
    for name, tensor in left.tensors.items():
        assert torch.equal(tensor, right.tensors[name]), name
    assert read_table(one / "metrics.csv") == read_table(two / "metrics.csv")


@pytest.mark.parametrize("algo", ["td3_bc", "iql", "rebrac"])
def test_each_seed_is_as_alone(tmp_path: Path, store: Store, algo: str) -> None:
    together = train_seeds(_config(store, tmp_path / "all", seed=3, algo=algo), 3)
    for number, result in zip((3, 4, 5), together, strict=True):
        out = tmp_path / f"alone-{number}"
        alone = train(_config(store, out, seed=number, algo=algo))
        assert result.run == str(tmp_path / "all" / f"seed-{number}")
        assert (result.steps, result.data) == (alone.steps, alone.data)
        _assert_near(Path(result.run), out)
        document = json.loads((Path(result.run) / "run.json").read_text())
        assert document["config"]["seed"] == number
    weights = [load_checkpoint(Path(one.run)).tensors for one in together]
    assert not torch.equal(
        weights[0]["policy/trunk.weights.0"], weights[1]["policy/trunk.weights.0"]
    )


def test_each_seed_reads_batches_in_an_order_of_its_own(tmp_path: Path, store: Store) -> None:
    train_seeds(_config(store, tmp_path / "all", 5), 2)
    drawn = [replay(str(tmp_path / "all" / f"seed-{k}"), 4).batch["indices"] for k in (0, 1)]
    assert not np.array_equal(drawn[0], drawn[1])
    for seed, indices in enumerate(drawn):
        stream = open_stream(pin([store.url]), Sampling(16, seed, 0.9, "cpu"))
        batch = next(itertools.islice(stream, 4, None))
        np.testing.assert_array_equal(indices, batch["indices"])


def test_seeds_that_stopped_go_on_together_or_alone(tmp_path: Path, store: Store) -> None:
    def stop(progress: Progress) -> None:
        if progress.done == 25:
            raise InterruptedError

    whole = train_seeds(_config(store, tmp_path / "whole"), 2)
    with pytest.raises(InterruptedError):
        train_seeds(_config(store, tmp_path / "half"), 2, stop)
    assert [load_checkpoint(tmp_path / "half" / f"seed-{k}").step for k in (0, 1)] == [20, 20]
    store.append(demonstrations(2, first=50))  # the runs keep what they began with
    train_seeds(_config(store, tmp_path / "half", resume=True), 2)
    for k in (0, 1):
        _assert_same(Path(whole[k].run), tmp_path / "half" / f"seed-{k}")
    alone = _config(store, tmp_path / "half" / "seed-1", 40, seed=1, resume=True)
    assert train(alone).steps == 40
    again = train_seeds(_config(store, tmp_path / "half", 50, resume=True), 3)
    assert [one.steps for one in again] == [50, 50, 50]
    assert len({one.data for one in again}) == 1  # one that begins later reads the same versions
    steps = [row["step"] for row in read_table(tmp_path / "half" / "seed-0" / "metrics.csv")]
    assert steps == [str(step) for step in range(5, 55, 5)]
    whole = train_seeds(_config(store, tmp_path / "long", 50, data=(_pinned(again[0]),)), 3)
    for k in range(3):
        _assert_near(Path(whole[k].run), tmp_path / "half" / f"seed-{k}")


def _pinned(result: Any) -> str:
    return f"{result.data[0].store}@{result.data[0].version}"


def test_seeds_of_other_beginnings_do_not_go_on_together(tmp_path: Path, store: Store) -> None:
    train(_config(store, tmp_path / "runs" / "seed-0", 10))
    with pytest.raises(NameTakenError, match="seed-0"):
        train_seeds(_config(store, tmp_path / "runs", 10), 2)
    assert not (tmp_path / "runs" / "seed-1").exists()
    store.append(demonstrations(2, first=50))
    train(_config(store, tmp_path / "runs" / "seed-1", 10, seed=1))
    with pytest.raises(ConfigError, match="resume each alone"):
        train_seeds(_config(store, tmp_path / "runs", 20, resume=True), 2)


def test_each_seed_is_judged(tmp_path: Path, store: Store) -> None:
    config = _config(store, tmp_path / "all", 10, environment=ENVIRONMENT, evaluate_episodes=3)
    for number, result in enumerate(train_seeds(config, 2)):
        learner = restore(load_checkpoint(tmp_path / "all" / f"seed-{number}"))
        assert result.evaluation == evaluate(learner, ENVIRONMENT, 3)
        assert len(read_table(Path(result.run) / "evaluations.csv")) == 1


def test_seeds_from_the_command_line(tmp_path: Path, store: Store) -> None:
    command = ["train", "bc", "--data", store.url, "--out", str(tmp_path / "runs"), "--steps", "3"]
    said = CliRunner().invoke(
        app, [*command, "--seeds", "2", "--batch-size", "8", "--set", "hidden=[4]", "--json"]
    )
    assert said.exit_code == 0, said.output
    runs = json.loads(said.output)["runs"]
    assert [Path(one["run"]).name for one in runs] == ["seed-0", "seed-1"]


def test_batches_are_joined_agent_by_agent() -> None:
    one = {"a": torch.ones(2, 3), "o": {"x": torch.zeros(2)}, "t": (torch.ones(2),), "ids": "no"}
    two = {"a": torch.zeros(2, 3), "o": {"x": torch.ones(2)}, "t": (torch.zeros(2),), "ids": "no"}
    both = joined([one, two])
    assert both["a"].tolist() == [[1.0] * 3] * 2 + [[0.0] * 3] * 2
    assert both["o"]["x"].tolist() == [0, 0, 1, 1]
    assert both["t"][0].tolist() == [1, 1, 0, 0]
    assert "ids" not in both
