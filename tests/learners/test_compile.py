"""Updates that are compiled, or captured on a GPU, against the same as they are written."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from learners.base import Batch, Learner, make_learner
from learners.batches import STAGED_BYTES, Staged, byte_count, held_at_once
from learners.checkpoint import load_checkpoint
from learners.engine import STAGED, Compile, Compiled, engine
from learners.normaliser import Normaliser
from learners.train import TrainConfig, train
from pipeline.store.store import open_store
from schemas.errors import ConfigError
from tests.learners.homing import demonstrations
from tests.learners.worked import SMALL, A, O, rows, windows

SETTINGS: dict[str, dict[str, Any]] = {
    "iql": {"policy_decay": 20},
    "td3_bc": {},
    "bc": {"loss": "likelihood"},
    "rebrac": {"policy_layer_norm": True},
    "cql": {"policy_hidden": (8,), "samples": 2},
    "cal_ql": {"policy_hidden": (8,), "samples": 2, "failed_reward": 0.0},
    "rlpd": {"updates": 2, "members": 3},
    "dt": {"target_return": 5.0, "context": 2, "longest": 20, "width": 8, "blocks": 1},
    "cqn": {"levels": 2, "bins": 3, "atoms": 11},
    "arsq": {"levels": 2, "bins": 3},
}

SHORT = ("arsq", "iql", "td3_bc")
"""Those that are traced in the short form of the tests: of several kinds, five seconds each."""

Way = Compile | Literal["traced"]
"""`traced`: what torch.compile makes of an update, by torch's own kernels, made in seconds."""

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here")


def _learner(algo: str, seeds: tuple[int, ...], device: str = "cpu") -> Learner:
    zeros, ones = np.zeros(O, np.float32), np.ones(O, np.float32)
    normaliser = Normaliser(("observations",), zeros, ones, np.ones(A, np.float32))
    sizes = {} if algo == "dt" else SMALL
    return make_learner(algo, {**sizes, **SETTINGS[algo]}, normaliser, seeds, device)


def _batches(seed: int, algo: str, device: str = "cpu") -> Iterator[Batch]:
    make = windows if algo in ("rebrac", "dt") else rows
    for number in itertools.count(1000 * seed):
        yield {name: value.to(device) for name, value in make(number).items()}


def _trained(
    algo: str, way: Way, seeds: tuple[int, ...], device: str = "cpu"
) -> tuple[Learner, dict[str, Tensor]]:
    """A learner after 20 updates, asked for in two parts, and the last values."""
    made = _learner(algo, seeds, device)
    takes = Compiled(made, "aot_eager") if way == "traced" else engine(made, way)
    streams = [_batches(seed, algo, device) for seed in seeds]
    takes.take(streams, 13)
    return made, dict(takes.take(streams, 7))


def _assert_alike(algo: str, way: Way, seeds: tuple[int, ...], device: str = "cpu") -> None:
    eager, values = _trained(algo, "none", seeds, device)
    other, found = _trained(algo, way, seeds, device)
    assert eager.agents.updates == other.agents.updates == 20
    for name, value in values.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4, equal_nan=True)
    for agent in range(len(seeds)):
        left, right = eager.state(agent), other.state(agent)
        for name, tensor in left.items():
            torch.testing.assert_close(right[name], tensor, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, about its own parts
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
@pytest.mark.parametrize("algo", SETTINGS)
def test_traced_updates_are_as_written(algo: str) -> None:
    """Nothing that changes from update to update is traced anew each time, either."""
    if algo not in SHORT and os.environ.get("PENSTOCK_LONG") != "1":
        pytest.skip("seconds for each; PENSTOCK_LONG=1 runs all")
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        _assert_alike(algo, "traced", (3, 8) if algo == "td3_bc" else (3,))


@needs_compiler
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # as above
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
def test_compiled_updates_are_as_written() -> None:
    _assert_alike("bc", "step", (3, 8))


def test_a_run_says_how_its_updates_were_taken(
    tmp_path: Path, homing: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path / "store", create=True)
    store.append(demonstrations(5))
    config = TrainConfig(
        algo="bc",
        data=(store.url,),
        out=str(tmp_path / "run"),
        steps=2,
        settings={"hidden": (4,)},
        batch_size=8,
        compile="graph",
    )
    with pytest.raises(ConfigError, match="--device cuda"):
        train(config)
    monkeypatch.setenv("CXX", "no-compiler-has-this-name")
    with pytest.raises(ConfigError, match="no-compiler-has-this-name"):
        train(config.model_copy(update={"compile": "step", "resume": True}))
    train(config.model_copy(update={"compile": "none", "resume": True}))
    assert load_checkpoint(tmp_path / "run").document["config"]["compile"] == "none"


def test_a_compiler_is_asked_for_before_anything_is_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CXX", "no-compiler-has-this-name")
    with pytest.raises(ConfigError, match="compiler of C"):
        Compiled(_learner("bc", (0,)))


def test_staged_batches_are_the_next_ones_of_all_agents() -> None:
    seeds, staged = (1, 2), Staged(4)
    streams = [_batches(seed, "iql") for seed in seeds]
    alone = [_batches(seed, "iql") for seed in seeds]
    for wanted, count in ((4, 4), (1, 1), (3, 3), (9, 4)):
        assert staged.fill(streams, wanted) == count
        for _ in range(count):
            batch = staged.current()
            staged.advance()
            expected = [next(stream) for stream in alone]
            for name in expected[0]:
                whole = torch.cat([one[name] for one in expected])
                assert torch.equal(batch[name], whole), name


def test_large_batches_are_staged_by_fewer() -> None:
    rows_of_pictures = 256 * 2 * 84 * 84 * 9  # observations and the next ones, of three frames
    assert held_at_once(30_000, STAGED) == STAGED
    assert held_at_once(rows_of_pictures, STAGED) == STAGED_BYTES // rows_of_pictures == 8
    assert held_at_once(2 * STAGED_BYTES, STAGED) == 1
    batch = {"observations": {"camera": torch.zeros(5, 4, dtype=torch.uint8)}, "ids": ["a"]}
    assert byte_count({**batch, "rewards": torch.zeros(5)}) == 20 + 20
    size = byte_count(next(_batches(1, "iql")))
    staged, stream, alone = Staged(64, 3 * size), _batches(1, "iql"), _batches(1, "iql")
    for wanted, count in ((7, 3), (4, 3), (1, 1)):
        assert staged.fill([stream], wanted) == count
        for _ in range(count):
            assert torch.equal(staged.current()["rewards"], next(alone)["rewards"])
            staged.advance()


# -- on a GPU --------------------------------------------------------------------------------------


@needs_gpu
@pytest.mark.parametrize("algo", SETTINGS)
@pytest.mark.parametrize("seeds", [(3,), (3, 8)])
def test_captured_updates_are_as_written(algo: str, seeds: tuple[int, ...]) -> None:
    _assert_alike(algo, "graph", seeds, "cuda")


@needs_gpu
def test_captured_updates_go_on_across_staged_batches() -> None:
    count = 2 * STAGED + 5
    learners = [_learner("td3_bc", (3,), "cuda") for _ in range(2)]
    for made, way in zip(learners, ("none", "graph"), strict=True):
        engine(made, way).take([_batches(3, "td3_bc", "cuda")], count)  # type: ignore[arg-type]
    left, right = (made.state() for made in learners)
    for name, tensor in left.items():
        torch.testing.assert_close(right[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
