"""How runs are begun, gone on with, and refused at the door."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from learners.base import make_learner
from learners.checkpoint import load_checkpoint, restore
from learners.finetune import FinetuneConfig, finetune
from learners.runlog import read_table
from learners.train import TrainConfig, train
from pipeline.cli.main import main
from pipeline.store.store import Store, open_store
from schemas.episode import Episode
from schemas.errors import ConfigError, DivergedError, NotFoundError, SpecMismatchError
from tests.learners.homing import ENVIRONMENT, demonstrations
from tests.learners.test_checkpoint import NORMALISER

pytestmark = pytest.mark.usefixtures("homing")

SMALL = {"hidden": (8, 8)}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = open_store(tmp_path / "store", create=True)
    made.append(demonstrations(20))
    return made


def config_of(data: str, out: Path, steps: int = 10, **changes: Any) -> TrainConfig:
    given = {"algo": "iql", "settings": SMALL, "batch_size": 16, "log_every": 5}
    return TrainConfig(data=(data,), out=str(out), steps=steps, **{**given, **changes})


def without(name: str, episodes: list[Episode]) -> list[Episode]:
    return [dataclasses.replace(one, **{name: None}) for one in episodes]


# -- data that lack something ----------------------------------------------------------------------


@pytest.mark.parametrize("algo", ["iql", "td3_bc", "dt", "cql"])
def test_data_without_rewards_are_refused_where_they_are_read(tmp_path: Path, algo: str) -> None:
    bare = open_store(tmp_path / "bare", create=True)
    bare.append(without("rewards", demonstrations(5)))
    settings = {"target_return": 0.0} if algo == "dt" else {}
    with pytest.raises(SpecMismatchError, match=f"rewards for {algo}.*learn with bc"):
        train(config_of(bare.url, tmp_path / "run", algo=algo, settings=settings))
    assert not (tmp_path / "run").exists()
    assert train(config_of(bare.url, tmp_path / "bc", algo="bc")).steps == 10


def test_episodes_without_rewards_are_counted(tmp_path: Path, store: Store) -> None:
    store.append(without("rewards", demonstrations(3, first=50)))
    with pytest.raises(SpecMismatchError, match=r"came 3 episodes without.*is not null"):
        train(config_of(store.url, tmp_path / "run"))
    store.version().where("episode_return is not null").commit("whole")
    assert train(config_of(f"{store.url}@whole", tmp_path / "run")).steps == 10


def test_data_without_actions_are_refused(tmp_path: Path) -> None:
    bare = open_store(tmp_path / "bare", create=True)
    bare.append(without("actions", demonstrations(5)))
    with pytest.raises(SpecMismatchError, match="steps with actions for bc"):
        train(config_of(bare.url, tmp_path / "run", algo="bc"))


def test_a_run_whose_losses_are_no_numbers_ends(tmp_path: Path, store: Store) -> None:
    settings = {**SMALL, "critic_rate": 1e30}
    with pytest.raises(DivergedError, match="critic_loss") as caught:
        train(config_of(store.url, tmp_path / "run", 500, settings=settings))
    assert caught.value.kind == "diverged"
    assert load_checkpoint(tmp_path / "run").step == 0


def test_a_policy_that_rests_now_and_then_has_not_diverged(tmp_path: Path, store: Store) -> None:
    result = train(config_of(store.url, tmp_path / "run", 15, algo="td3_bc"))
    losses = read_table(tmp_path / "run" / "metrics.csv")
    assert result.steps == 15
    assert losses[0]["policy_loss"] == "nan"  # of the fifth update


# -- going on --------------------------------------------------------------------------------------


def test_a_run_that_goes_on_for_longer_still_moves_its_policy(tmp_path: Path, store: Store) -> None:
    out = tmp_path / "run"
    train(config_of(store.url, out, 10))
    before = load_checkpoint(out)
    train(config_of(store.url, out, 30, resume=True))
    train(config_of(store.url, out, 40, resume=True))
    after = load_checkpoint(out)
    assert (before.settings["policy_decay"], after.settings["policy_decay"]) == (10, 40)
    moved = [
        not torch.equal(tensor, after.tensors[name])
        for name, tensor in before.tensors.items()
        if name.startswith("policy/")
    ]
    assert moved
    assert all(moved)


def test_a_decay_that_was_set_stays(tmp_path: Path, store: Store) -> None:
    asked = {"settings": {**SMALL, "policy_decay": 15}}
    train(config_of(store.url, tmp_path / "run", 10, **asked))
    train(config_of(store.url, tmp_path / "run", 20, resume=True, **asked))
    assert load_checkpoint(tmp_path / "run").settings["policy_decay"] == 15


def test_all_settings_of_a_run_stand_in_its_document(tmp_path: Path, store: Store) -> None:
    train(config_of(store.url, tmp_path / "run"))
    told = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]
    assert (told["expectile"], told["hidden"], told["policy_decay"]) == (0.7, [8, 8], 10)


def test_noise_of_another_kind_of_device_goes_on(tmp_path: Path) -> None:
    """A GPU's generator has a state of another size; acting on a CPU needs none of it."""
    learner = make_learner("td3_bc", {"hidden": (8,)}, NORMALISER)
    state = dict(learner.state())
    state["noise"] = torch.arange(16, dtype=torch.uint8)
    drawn = []
    for _ in range(2):
        other = make_learner("td3_bc", {"hidden": (8,)}, NORMALISER, seed=1)
        other.load_state(state)
        drawn.append(other.agents.noise.normal(4, 2))
    assert torch.equal(*drawn)
    state["noise"] = torch.arange(1, 17, dtype=torch.uint8)
    other.load_state(state)
    assert not torch.equal(other.agents.noise.normal(4, 2), drawn[0])


# -- fine-tuning -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"policy_decay": 10}, "policy_decay, which has ended"),
        ({"standardise": True}, "standardise, which was settled"),
        ({"hidden": (4, 4)}, "leave the networks as they were trained"),
    ],
)
def test_what_a_run_cannot_change_any_more_is_refused(
    tmp_path: Path, store: Store, settings: dict[str, Any], says: str
) -> None:
    train(config_of(store.url, tmp_path / "run"))
    asked = {"run": str(tmp_path / "run"), "environment": ENVIRONMENT, "into": store.url}
    with pytest.raises(ConfigError, match=says):
        finetune(FinetuneConfig(**asked, env_steps=20, settings=settings))
    assert not (tmp_path / "run" / "finetune").exists()
    changed = restore(load_checkpoint(tmp_path / "run"), changes={"expectile": 0.9})
    assert changed.settings.model_dump()["expectile"] == 0.9


def test_a_folder_of_seeds_is_said_to_be_one(
    tmp_path: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "runs")
    small = ["--steps", "3", "--batch-size", "8", "--set", "hidden=8,8"]
    asked = ["train", "iql", "--data", store.url, "--out", out, *small]
    assert main([*asked, "--seeds", "2", "--checkpoint-every", "2"]) == 0
    with pytest.raises(NotFoundError, match="name one of them \\(seed-0, seed-1\\)"):
        load_checkpoint(Path(out))
    assert main(["finetune", out, "--env", ENVIRONMENT, "--into", store.url]) == 2
    assert "seed-0, seed-1" in capsys.readouterr().err


def test_an_evaluation_on_the_way(
    tmp_path: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--steps", "4", "--batch-size", "8", "--set", "hidden=8,8", "--episodes", "2"]
    asked = ["train", "iql", "--data", store.url, "--out", str(tmp_path / "run"), *small]
    assert main([*asked, "--env", ENVIRONMENT, "--evaluate-every", "2"]) == 0
    capsys.readouterr()
    rows = (tmp_path / "run" / "evaluations.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["step", "2", "4"]


def test_a_setting_without_a_value_is_asked_for(
    tmp_path: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["train", "dt", "--data", store.url, "--out", str(tmp_path / "run"), "--steps", "2"]
    code = main(asked)
    said = capsys.readouterr().err
    assert code == 2
    assert "target_return" in said
    assert "set target_return=VALUE" in said


def test_a_package_that_is_missing_is_named(store: Store) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; from pipeline.cli.main import main; "
        f"sys.exit(main(['train', 'bc', '--data', {store.url!r}, '--out', 'run']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'penstock[learners]'" in done.stderr
    assert "Traceback" not in done.stderr
