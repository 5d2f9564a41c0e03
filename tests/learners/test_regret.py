"""Regret of training episodes, in each of its forms, and of a real fine-tuning."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from learners.finetune import FinetuneConfig, finetune
from learners.regret import Regret, Tally, tally_of
from learners.runlog import read_table
from learners.train import TrainConfig, train
from pipeline.cli.main import main
from pipeline.store.store import open_store
from tests.learners.homing import ENVIRONMENT, demonstrations


def _regret(environment: str, *episodes: tuple[float | None, bool | None]) -> Regret | None:
    tally = Tally(environment)
    tally.add(episodes)
    return tally.regret()


def test_each_form_says_which_it_is() -> None:
    won, lost = (5.0, True), (1.0, False)
    assert _regret("A-v0", won, lost, lost, lost) == Regret(0.75, "success", 4)
    assert _regret("A-v0", won, (3.0, None)) == Regret(1.0, "best_return", 2)
    random, expert = -20.272305, 3234.3
    half = _regret("Hopper-v5", (random, None), (expert, None))
    assert half == Regret(pytest.approx(0.5), "normalized", 2)
    assert _regret("A-v0") is None
    assert _regret("A-v0", (None, None)) is None
    assert _regret("A-v0", (None, True)) == Regret(0.0, "success", 1)


@pytest.mark.usefixtures("homing")
def test_only_rollouts_of_the_run_count(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store", create=True)
    stamps = ["live:5", "live:9", "other:5", None, "lively:5"]
    given = zip(demonstrations(5), stamps, [True, False, False, True, True], strict=True)
    store.append([one.replace(policy_version=said, success=won) for one, said, won in given])
    found = tally_of(store.version(), ENVIRONMENT, "policy_version", "live:")
    assert found.regret() == Regret(0.5, "success", 2)
    assert tally_of(store.version(), ENVIRONMENT, "policy_version", "none:").regret() is None


@pytest.mark.usefixtures("homing")
def test_fine_tuning_tells_its_regret_also_when_it_went_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = open_store(tmp_path / "store", create=True)
    store.append(demonstrations(20))
    settings = {"hidden": (8, 8)}
    train(
        TrainConfig(
            algo="iql", data=(store.url,), out=str(tmp_path / "run"), steps=5, settings=settings
        )
    )

    def tuned(env_steps: int, resume: bool) -> Regret | None:
        config = FinetuneConfig(
            run=str(tmp_path / "run"),
            environment=ENVIRONMENT,
            into=store.url,
            branch="online",
            env_steps=env_steps,
            round_steps=50,
            tensorboard=True,
            resume=resume,
        )
        return finetune(config).regret

    tuned(100, resume=False)
    found = tuned(200, resume=True)
    episodes = store.version("online").episodes(columns=["success"])["success"].to_pylist()
    assert 0 < sum(episodes) < len(episodes)
    failed = 1.0 - sum(episodes) / len(episodes)
    assert found == Regret(failed, "success", len(episodes))
    rows = read_table(tmp_path / "run" / "finetune" / "metrics.csv")
    assert float(rows[-1]["regret"]) == failed
    assert len({row["regret"] for row in rows}) > 1
    asked = ["finetune", str(tmp_path / "run"), "--env", ENVIRONMENT, "--into", store.url]
    small = ["--env-steps", "30", "--episodes", "2", "--tensorboard"]
    assert main([*asked, *small, "--out", str(tmp_path / "told"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["regret"]
    assert told["kind"] == "success"
    assert told["episodes"] >= 3
    assert (tmp_path / "told" / "tensorboard" / "evaluations").is_dir()
    assert main([*asked, *small, "--out", str(tmp_path / "said")]) == 0
    assert "(share of training episodes that failed)" in capsys.readouterr().out
    (written,) = (tmp_path / "run" / "finetune" / "tensorboard" / "metrics").iterdir()
    assert b"regret" in written.read_bytes()
