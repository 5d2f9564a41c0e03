"""The benchmark of learners: the plain script learns what ours do; its bound counts all."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from learners.bench import ACTIONS, QUICK, STATES, Product, backward, bench_learner, products
from learners.bench_plain import FIELDS, PLAIN, Replay
from learners.bench_rates import QUICK_RATES, Case, RateBench, cases
from pipeline.cli.main import app
from schemas.errors import ConfigError, UnknownNameError
from tests.learners.worked import A, O, learner, rows


def test_products_are_counted_by_hand() -> None:
    assert backward(4, 1, (8, 8)) == [
        *(Product(4, 8), Product(8, 8), Product(8, 1)),
        *(Product(8, 8), Product(8, 1)),
    ]
    assert len(backward(4, 1, (8,), to_inputs=True)) == 4
    wide = [Product(256, 256), Product(256, 256, 2)]
    counted = {
        (algo, is_plain): sum(
            one.rows for one in products(algo, (256, 256), is_plain=is_plain) if one in wide
        )
        for algo in ("iql", "td3_bc")
        for is_plain in (True, False)
    }
    # Hidden layers forward and backward: Q' 2, V 3, V again 1 or 2, pi 3, Q 6; of TD3+BC twice
    # pi' 1, Q' 2, Q 6, then pi 3 and one or both critics 2.
    assert counted["iql", True] == 15
    assert counted["iql", False] == 16
    assert counted["td3_bc", True] == 2 * 9 + 3 + 2
    assert counted["td3_bc", False] == 2 * 9 + 3 + 4
    assert STATES == 11
    assert ACTIONS == 3


@pytest.mark.parametrize("algo", sorted(PLAIN))
def test_a_plain_script_fits_the_same_values(algo: str) -> None:
    """One batch where all ends at once: both learn its rewards."""
    batch = rows(0, 64)
    batch["discounts"], batch["rewards"] = torch.zeros(64), batch["rewards"] + 3.0
    columns = {name: batch[name].float().numpy() for name in FIELDS if name != "terminated"}
    columns["terminated"] = np.ones(64, np.float32)
    torch.manual_seed(0)
    plain = PLAIN[algo](O, A, 1000, hidden=(64, 64))
    replay = Replay(columns, seed=0)
    first = plain.update(replay.sample(64)).item()
    for _ in range(150):
        last = plain.update(replay.sample(64)).item()
    ours = learner(algo, hidden=(64, 64))
    for _ in range(150):
        found = ours.update(batch)["critic_loss"].item()
    assert last < 0.3 * first
    assert found < 0.3 * 2 * first


def test_everybody_takes_turns() -> None:
    found = bench_learner(QUICK)
    for algo in ("iql", "td3_bc"):
        result = found["results"][algo]
        assert [row["agents"] for row in result["rows"]] == [1, 2, 1]
        assert all(row["best"] >= row["median"] > 0 for row in result["rows"])
        assert result["over_plain"].keys() == {algo, f"{algo}, 2 seeds"}


@pytest.mark.skipif(
    os.environ.get("PENSTOCK_LONG") != "1" or shutil.which("g++") is None,
    reason="compiles for a minute, with g++; PENSTOCK_LONG=1",
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, about its own parts
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
def test_what_is_compiled_is_held_against_the_same_as_written() -> None:
    found = bench_learner(replace(QUICK, algos=("td3_bc",), compile="step"))["results"]["td3_bc"]
    assert found["rows"][-1]["name"] == "td3_bc, as written"
    assert found["over_written"] > 0


def test_the_command_prints_shares_of_the_bound() -> None:
    said = CliRunner().invoke(app, ["bench", "learner", "--quick", "--json"])
    assert said.exit_code == 0, said.output
    assert json.loads(said.stdout)["results"].keys() == {"iql", "td3_bc"}
    said = CliRunner().invoke(app, ["bench", "learner", "--compile", "stepp"])
    assert isinstance(said.exception, UnknownNameError)
    assert "did you mean 'step'" in str(said.exception)


def test_a_gpu_is_asked_for_each_form_seeds_and_streamed_rows() -> None:
    assert cases(RateBench(device="cuda"), torch.device("cuda", 0)) == [
        Case("none", 1, "gpu"),
        Case("step", 1, "gpu"),
        Case("graph", 1, "gpu"),
        Case("graph", 8, "gpu"),
        Case("graph", 1, "mmap"),
    ]
    assert cases(RateBench(forms=("step",), seeds=3), torch.device("cpu")) == [
        Case("step", 1, "ram"),
        Case("step", 3, "ram"),
        Case("step", 1, "mmap"),
    ]


def test_every_algorithm_has_its_rates_on_a_device() -> None:
    command = ["bench", "learner", "--quick", "--json", "--device", "cpu"]
    said = CliRunner().invoke(app, command)
    assert said.exit_code == 0, said.output
    found = json.loads(said.stdout)
    assert found["per"] == "CPU second"
    assert found["ratios"].keys() == {"iql", "td3_bc", "cal_ql", "arsq"} == set(QUICK_RATES.algos)
    for algo in QUICK_RATES.algos:
        rows = [row for row in found["rows"] if row["algo"] == algo]
        asked = [(row["compile"], row["agents"], row["data"]) for row in rows]
        assert asked == [("none", 1, "resident"), ("none", 2, "resident"), ("none", 1, "streamed")]
        assert all(row["best"] >= row["median"] > 0 < row["first_seconds"] for row in rows)
        assert found["ratios"][algo].keys() == {"streamed", "side_by_side"}


def test_rates_are_of_what_was_asked_for() -> None:
    command = ["bench", "learner", "--quick", "--device", "cpu", "--algo", "bc", "--seeds", "3"]
    said = CliRunner().invoke(app, command)
    assert said.exit_code == 0, said.output
    assert "cal_ql" not in said.stdout
    assert "streamed over resident" in said.stdout
    graph = CliRunner().invoke(app, [*command, "--compile", "graph"])
    assert isinstance(graph.exception, ConfigError)
    plain = CliRunner().invoke(app, ["bench", "learner", "--algo", "cal_ql"])
    assert isinstance(plain.exception, UnknownNameError)
    assert "--device" in str(plain.exception)
