"""What runs that go on from an offline run have in common is stated once, and kept as it was."""

from __future__ import annotations

from learners.finetune import FinetuneConfig
from learners.going_on import GoingOnConfig, folder_of
from learners.online_run import OnlineConfig

COMMON = {
    "run": "r",
    "environment": "Pendulum-v1",
    "out": None,
    "env_steps": 10_000,
    "offline_fraction": 0.5,
    "updates_per_step": 1.0,
    "exploration": "policy",
    "noise": 1.0,
    "settings": {},
    "stream": {},
    "seed": 0,
    "device": "cpu",
    "threads": 1,
    "evaluate_episodes": 10,
    "tensorboard": False,
    "resume": False,
}
ALONE = {
    **COMMON,
    "into": "s",
    "branch": None,
    "join_successes": False,
    "warmup_steps": 0,
    "round_steps": 250,
    "evaluate_every": 0,
}
BESIDE = {
    **COMMON,
    "service": "a",
    "into": None,
    "name": None,
    "warmup_steps": 500,
    "ahead_steps": 1000,
    "follow_every": 250,
    "publish_every": 250,
    "checkpoint_every": 1000,
    "max_policy_lag": None,
    "max_age": None,
    "starve_seconds": 120.0,
    "actors": 1,
    "log_every": 200,
    "log_rows": False,
}
"""As `config.json` of runs and their checkpoints have it, with every default."""


def test_configurations_are_kept_in_the_form_that_they_had() -> None:
    alone = FinetuneConfig(run="r", environment="Pendulum-v1", into="s")
    beside = OnlineConfig(run="r", environment="Pendulum-v1", service="a")
    assert alone.model_dump(mode="json") == ALONE
    assert beside.model_dump(mode="json") == BESIDE
    assert FinetuneConfig.model_validate(ALONE) == alone
    assert OnlineConfig.model_validate(BESIDE) == beside


def test_a_field_of_both_is_stated_once() -> None:
    common = GoingOnConfig.model_fields.keys()
    assert common == COMMON.keys()
    for kind in (FinetuneConfig, OnlineConfig):
        assert not common & vars(kind).get("__annotations__", {}).keys(), kind


def test_a_run_without_a_folder_lies_in_the_one_that_it_goes_on_from() -> None:
    asked = FinetuneConfig(run="runs/a", environment="E", into="s")
    assert str(folder_of(asked, "finetune")) == "runs/a/finetune"
    assert str(folder_of(asked.model_copy(update={"out": "b"}), "finetune")) == "b"
