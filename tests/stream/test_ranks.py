"""A program that torchrun starts: its ranks together do what one process does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import penstock
from pipeline.store.store import Store
from pipeline.stream.ranks import stream_ranks
from schemas.errors import UsageError
from tests.stream.ranks_program import BATCH, loss_of
from tests.stream.references import take

PROGRAM = Path(__file__).with_name("ranks_program.py")
ROOT = Path(__file__).resolve().parents[2]


def run_ranks(world_size: int, *arguments: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(world_size)]
    command += ["--master-addr", "127.0.0.1", "--master-port", "0", "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1", str(PROGRAM)]
    ended = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, cwd=ROOT, timeout=120, check=False
    )
    assert ended.returncode == 0, ended.stderr


def together(out: Path, world_size: int, name: str) -> np.ndarray:
    """The ranks' shares of each batch put together, (steps, rows)."""
    parts = [np.load(out / f"{rank}.npz")[name] for rank in range(world_size)]
    return np.concatenate(parts, axis=1)


def test_ranks_together_are_one_process(store: Store, cache_dir: Path, tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    out = tmp_path / "two"
    out.mkdir()
    run_ranks(2, store.url, str(cache_dir), str(out), "6", str(state))

    alone = penstock.Stream(store.url, batch_size=BATCH, seed=5)
    prioritised = penstock.Stream(store.url, batch_size=BATCH, seed=5, sampler="prioritised")
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    gradients = [np.load(out / f"{rank}.npz")["gradients"] for rank in range(2)]
    rows, chosen = together(out, 2, "rows"), together(out, 2, "prioritised")
    for step in range(6):
        batch = next(alone)
        np.testing.assert_array_equal(rows[step], batch["indices"])
        model.zero_grad()
        loss_of(model, batch, 1).backward()
        assert model.weight.grad is not None
        for mine in gradients:
            np.testing.assert_allclose(mine[step], model.weight.grad, rtol=1e-5)
        batch = next(prioritised)
        np.testing.assert_array_equal(chosen[step], batch["indices"])
        prioritised.update_priorities(batch["indices"], batch["rewards"].abs())
    assert json.loads(state.read_text()) == alone.state_dict()

    # On with another number of ranks: one in this process, told the state of two.
    again = penstock.Stream(store.url, batch_size=BATCH, seed=5)
    again.load_state_dict(json.loads(state.read_text()))
    split = [
        penstock.Stream(store.url, batch_size=BATCH, seed=5, rank=rank, world_size=3)
        for rank in range(3)
    ]
    for rank in split:
        rank.load_state_dict(json.loads(state.read_text()))
    for batch, mine in zip(take(alone, 5), take(again, 5), strict=True):
        np.testing.assert_array_equal(mine["indices"], batch["indices"])
        shares = [next(rank)["indices"] for rank in split]
        np.testing.assert_array_equal(np.concatenate(shares), batch["indices"])


def test_ranks_are_those_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert stream_ranks() == {"rank": 0, "world_size": 1}
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert stream_ranks() == {"rank": 2, "world_size": 4}
    monkeypatch.setenv("RANK", "two")
    with pytest.raises(UsageError, match="'two'"):
        stream_ranks()
