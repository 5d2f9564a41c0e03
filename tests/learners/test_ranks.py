"""Processes that `torchrun` starts train as one, and end together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from learners.base import make_learner
from learners.checkpoint import load_checkpoint
from learners.noise import Noise
from learners.ranks import ALONE, Ranks, joined
from learners.runlog import read_table
from learners.train import TrainConfig, train
from pipeline.store.store import Store, open_store
from schemas.errors import ConfigError
from tests.learners.homing import demonstrations
from tests.learners.worked import B, normaliser, rows, windows

ROOT = Path(__file__).resolve().parents[2]
STEPS, BATCH = 10, 24


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = open_store(tmp_path / "store", create=True)
    made.append(demonstrations(20))
    return made


def _run_ranks(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
    command += ["--local-addr", "127.0.0.1", *arguments]
    there = {**os.environ, "PENSTOCK_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=there, timeout=300, check=False
    )


def _command(store: Store, algo: str, out: Path, steps: int = STEPS) -> list[str]:
    command = ["-m", "penstock", "train", algo, "--data", store.url, "--out", str(out), "--json"]
    command += ["--steps", str(steps), "--batch-size", str(BATCH), "--set", "hidden=[16,16]"]
    return [*command, "--discount", "0.9"]


def _config(store: Store, algo: str, out: Path, steps: int = STEPS) -> TrainConfig:
    return TrainConfig(
        algo=algo,
        data=(store.url,),
        out=str(out),
        steps=steps,
        settings={"hidden": (16, 16)},
        batch_size=BATCH,
        discount=0.9,
    )


def _assert_near(one: Path, two: Path) -> None:
    left, right = load_checkpoint(one), load_checkpoint(two)
    assert left.step == right.step
    for name, tensor in left.tensors.items():
        torch.testing.assert_close(tensor, right.tensors[name], rtol=1e-4, atol=1e-5, msg=name)
    mine, theirs = (read_table(run / "metrics.csv")[-1] for run in (one, two))
    for name, value in mine.items():
        close = pytest.approx(float(theirs[name]), rel=1e-3, abs=1e-5, nan_ok=True)
        assert float(value) == close, name


@pytest.mark.usefixtures("homing")
def test_two_ranks_are_one_process_and_a_run_goes_on_without_them(
    tmp_path: Path, store: Store
) -> None:
    ended = _run_ranks(tmp_path, *_command(store, "td3_bc", tmp_path / "two"), "--seeds", "2")
    assert ended.returncode == 0, ended.stderr
    (said,) = (line for line in ended.stdout.splitlines() if line.startswith("{"))
    assert [one["steps"] for one in json.loads(said)["runs"]] == [STEPS, STEPS]
    for seed in (0, 1):
        out = tmp_path / f"one-{seed}"
        train(_config(store, "td3_bc", out).model_copy(update={"seed": seed}))
        _assert_near(tmp_path / "two" / f"seed-{seed}", out)
    config = _config(store, "td3_bc", tmp_path / "two" / "seed-0", 2 * STEPS)
    train(config.model_copy(update={"resume": True}))
    train(_config(store, "td3_bc", tmp_path / "long", 2 * STEPS))
    _assert_near(tmp_path / "two" / "seed-0", tmp_path / "long")


UNEVEN: dict[str, dict[str, Any]] = {
    "bc": {},
    "iql": {},
    "td3_bc": {"policy_every": 1},
    "cql": {"samples": 2, "lagrange": 1.0, "policy_hidden": (8,)},
    "rlpd": {"updates": 2, "members": 2},
    "dt": {
        "target_return": 5.0,
        "context": 2,
        "longest": 20,
        "width": 8,
        "blocks": 1,
        "dropout": 0,
    },
    "cqn": {"levels": 2, "bins": 3, "atoms": 11},
    "arsq": {"levels": 2, "bins": 3},
}
"""Learners, and settings that keep them small."""


def uneven(algo: str, step: int) -> dict[str, torch.Tensor]:
    """A batch of which the first half has few rows that count, and fewer demonstrations."""
    batch = windows(step) if algo == "dt" else rows(step)
    half, places = B // 2, torch.arange(B)
    counts = (places % 5 == 0) | (places >= half)
    batch["mask"] = batch["mask"] * counts.view(-1, *[1] * (batch["mask"].ndim - 1))
    batch["is_demonstration"] = (places % 10 == 0) | (places > half + 4)
    return batch


def updated(algo: str, ranks: Ranks) -> dict[str, torch.Tensor]:
    """A learner's state after some updates on its share of uneven batches."""
    sizes = {} if algo == "dt" else {"hidden": (8, 8)}
    made = make_learner(algo, {**sizes, **UNEVEN[algo]}, normaliser(), 3, ranks=ranks)
    for step in range(5):
        mine = ranks.share(B)
        made.update({name: value[mine] for name, value in uneven(algo, step).items()})
    return made.state()


LEARNING = """
import os, sys
sys.path.insert(0, os.getcwd())
import torch
from tests.learners.test_ranks import UNEVEN, updated
from learners.ranks import joined
torch.set_num_threads(1)
with joined("cpu", 2) as ranks:
    found = {algo: updated(algo, ranks) for algo in UNEVEN}
    if ranks.is_first:
        torch.save(found, sys.argv[1])
"""


def test_rows_that_do_not_count_leave_the_others_alike_on_all_ranks(tmp_path: Path) -> None:
    (tmp_path / "learning.py").write_text(LEARNING)
    ended = _run_ranks(tmp_path, str(tmp_path / "learning.py"), str(tmp_path / "found.pt"))
    assert ended.returncode == 0, ended.stderr
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    for algo in UNEVEN:
        for name, expected in updated(algo, ALONE).items():
            if name != "noise":
                said = f"{algo}: {name}"
                torch.testing.assert_close(
                    found[algo][name], expected, rtol=1e-3, atol=2e-6, msg=said
                )


DYING = """
import os, sys
sys.path.insert(0, os.getcwd())
from learners import train
config = train.TrainConfig.model_validate_json(sys.argv[1])
def die(progress):
    if progress.stage == "train" and progress.done >= 4:
        os._exit(17)
train.train(config, die)
"""


@pytest.mark.usefixtures("homing")
def test_a_rank_that_dies_ends_the_others(tmp_path: Path, store: Store) -> None:
    (tmp_path / "dying.py").write_text(DYING)
    config = _config(store, "bc", tmp_path / "run", 10**7).model_copy(update={"log_every": 2})
    ended = _run_ranks(tmp_path, str(tmp_path / "dying.py"), config.model_dump_json())
    assert ended.returncode != 0
    assert "exitcode  : 17" in ended.stderr
    assert load_checkpoint(tmp_path / "run").step == 0


def test_a_rank_takes_the_random_numbers_of_its_rows() -> None:
    whole = Noise([1, 2], "cpu", ALONE)
    halves = [Noise([1, 2], "cpu", Ranks(rank, 2)) for rank in (0, 1)]
    for shape in ((6, 3), (4, 6, 3)):
        expected = whole.normal(*shape)
        mine = [one.normal(*shape[:-2], 3, 3) for one in halves]
        assert torch.equal(torch.cat(mine, dim=-2), expected)
    assert all(torch.equal(whole.get_state(1), one.get_state(1)) for one in halves)


def test_ranks_share_batches_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="2 ranks share evenly, came 25"), joined("cpu", 25):
        pass


def test_one_alone_waits_for_nobody() -> None:
    value: Any = torch.ones(2)
    assert ALONE.average(value) is value
    assert ALONE.told("mine") == "mine"
    assert ALONE.is_first
    assert ALONE.device("cuda") == "cuda"
