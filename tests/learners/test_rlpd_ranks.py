"""RLPD on two processes takes the updates of one, each part of a batch shared among both."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from learners.checkpoint import load_checkpoint
from learners.train import TrainConfig, train
from pipeline.store.store import open_store
from tests.learners.homing import demonstrations

ROOT = Path(__file__).resolve().parents[2]
STEPS, BATCH, PARTS = 8, 12, 4
SETTINGS = {"hidden": (16, 16), "updates": PARTS, "members": 3}


@pytest.mark.usefixtures("homing")
def test_two_ranks_take_the_updates_of_one(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store", create=True)
    store.append(demonstrations(20))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
    command += ["--local-addr", "127.0.0.1", "-m", "penstock", "train", "rlpd"]
    command += ["--data", store.url, "--out", str(tmp_path / "two"), "--steps", str(STEPS)]
    command += ["--batch-size", str(BATCH), "--set", "hidden=[16,16]"]
    command += ["--set", f"updates={PARTS}", "--set", "members=3"]
    there = {**os.environ, "PENSTOCK_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=there, timeout=300, check=False
    )
    assert ended.returncode == 0, ended.stderr
    train(
        TrainConfig(
            algo="rlpd",
            data=(store.url,),
            out=str(tmp_path / "one"),
            steps=STEPS,
            settings=SETTINGS,
            batch_size=BATCH,
        )
    )
    two, one = (load_checkpoint(tmp_path / name).tensors for name in ("two", "one"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-5, msg=name)
