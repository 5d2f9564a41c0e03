"""Runs judged by the last checkpoint, alone and as seeds of one group, from the command line."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from learners.checkpoint import load_checkpoint, restore
from learners.evaluate import evaluate
from learners.judge import RECORD, Judging, find_runs, judge, normalized, summarise
from learners.train import TrainConfig, train
from pipeline.cli.main import main
from pipeline.cli.progress import learning_bar, newest
from pipeline.store.store import open_store
from schemas.errors import NotFoundError, UntrustedError
from tests.learners.homing import ENVIRONMENT, demonstrations

pytestmark = pytest.mark.usefixtures("homing")


@pytest.fixture
def seeds(tmp_path: Path) -> Path:
    """A folder of three seeds of one run, and beside it a run of another algorithm."""
    store = open_store(tmp_path / "store", create=True)
    store.append(demonstrations(20))
    for algo, name, seed in (
        *(("bc", f"seeds/seed-{seed}", seed) for seed in (2, 10, 1)),
        ("td3_bc", "other", 1),
    ):
        train(
            TrainConfig(
                algo=algo,
                data=(store.url,),
                out=str(tmp_path / name),
                steps=3,
                seed=seed,
                settings={"hidden": (8, 8)},
            )
        )
    return tmp_path / "seeds"


def test_runs_are_found_where_they_are(seeds: Path) -> None:
    names = [run.name for run in find_runs([seeds, seeds / "seed-2"])]
    assert names == ["seed-1", "seed-2", "seed-10"]
    (file,) = (seeds / "seed-1" / "checkpoints").iterdir()
    assert find_runs([file]) == (file,)
    with pytest.raises(NotFoundError, match="folder of such runs"):
        find_runs([seeds.parent / "store"])


def test_a_run_is_judged_and_recorded(seeds: Path) -> None:
    run, how = seeds / "seed-1", Judging(ENVIRONMENT, episodes=5)
    found = judge(run, how)
    learner = restore(load_checkpoint(run))
    assert found.evaluation == evaluate(learner, ENVIRONMENT, 5)
    (told,) = json.loads((run / RECORD).read_bytes())["evaluations"]
    assert told["returns"] == list(found.evaluation.returns)
    assert (told["step"], told["environment"], told["episodes"]) == (3, ENVIRONMENT, 5)
    judge(run, Judging(ENVIRONMENT, episodes=2))
    judge(run, how)
    assert len(json.loads((run / RECORD).read_bytes())["evaluations"]) == 2


def test_what_was_recorded_is_taken_over_only_for_the_same_checkpoint(seeds: Path) -> None:
    run, how = seeds / "seed-1", Judging(ENVIRONMENT, episodes=3)
    first = judge(run, how)
    record = json.loads((run / RECORD).read_bytes())
    record["evaluations"][0]["returns"] = [1.0, 2.0, 3.0]
    (run / RECORD).write_text(json.dumps(record))
    assert judge(run, how, reuse=True).evaluation.returns == (1.0, 2.0, 3.0)
    assert judge(run, how) == first
    (run / RECORD).write_text(
        json.dumps({"evaluations": [{**record["evaluations"][0], "run": "x"}]})
    )
    assert judge(run, how, reuse=True) == first
    (run / RECORD).write_text("{")
    with pytest.raises(UntrustedError, match="remove the file"):
        judge(run, how)


def test_seeds_are_one_group_and_other_algorithms_are_not(seeds: Path) -> None:
    runs = find_runs([seeds, seeds.parent / "other"])
    judged = [judge(run, Judging(ENVIRONMENT, episodes=4)) for run in runs]
    ours, other = summarise(judged)
    assert [len(ours.runs), len(other.runs)] == [3, 1]
    returns = np.array([one.evaluation.returns for one in judged[:3]])
    assert ours.returns.mean == pytest.approx(returns.mean())
    assert ours.returns.seeds == pytest.approx(returns.mean(axis=1))
    assert ours.success is not None
    assert ours.normalized is None


def test_single_returns_are_normalised_as_their_mean_is() -> None:
    scores = normalized(np.array([[-20.272305, 3234.3]]), "Hopper-v5")
    assert scores is not None
    np.testing.assert_allclose(scores, [[0.0, 100.0]], atol=1e-9)
    assert normalized(np.zeros((1, 1)), ENVIRONMENT) is None


def _told(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main([*arguments, "--env", ENVIRONMENT, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_the_command_judges_one_run_and_several(
    seeds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = _told(capsys, "evaluate", str(seeds / "seed-1"), "--episodes", "4", "--copies", "3")
    assert {"run", "algo", "steps", "updates_per_second", "returns", "mean_return"} < one.keys()
    assert len(one["returns"]) == len(one["lengths"]) == one["episodes"] == 4
    assert one["normalized_score"] is None
    low, high = one["success_interval"]
    assert low <= one["success"] <= high
    all_of_them = _told(capsys, "evaluate", str(seeds), "--episodes", "4")
    assert all_of_them["runs"][0] == one
    means = [run["mean_return"] for run in all_of_them["runs"]]
    assert all_of_them["mean_return"] == pytest.approx(np.mean(means))
    assert all_of_them["over_seeds"]["return"]["seeds"] == pytest.approx(means)
    assert (all_of_them["seeds"], len(all_of_them["groups"])) == (3, 1)
    mixed = _told(capsys, "evaluate", str(seeds), str(seeds.parent / "other"), "--episodes", "2")
    assert [group["algo"] for group in mixed["groups"]] == ["bc", "td3_bc"]
    assert "mean_return" not in mixed


def test_the_command_says_it_in_words(seeds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(seeds), "--env", ENVIRONMENT, "--episodes", "2"]) == 0
    said = capsys.readouterr().out
    assert "bc over 3 seeds, last checkpoints: return" in said
    assert main(["evaluate", str(seeds / "none"), "--env", ENVIRONMENT]) == 2
    assert main(["evaluate", str(seeds), "--env", "Homing-v1"]) == 2


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_shows_step_rate_and_newest_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm")
    with learning_bar("iql seed 0", 2000) as advance:
        for step in (200, 400, 1200):
            advance("iql seed 0", step, 2000, {"env_steps": 7.0, "policy_loss": step / 3})
    shown = screen.getvalue()
    assert "1,200/2,000" in shown
    assert "policy_loss 400  env_steps 7" in shown
    assert "/s" in shown
    assert newest({}) == ""
