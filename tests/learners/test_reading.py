"""What a learner asks of streams: the fields that it reads, and no others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

from learners.data import Sampling, fields_read, fit, open_stream, pin
from learners.finetune import FinetuneConfig, finetune
from learners.train import TrainConfig, train
from pipeline.store.store import Store, open_store
from schemas.episode import Episode
from schemas.packed import Packed
from schemas.spec import FieldSpec
from tests.learners.dots import ENVIRONMENT, SIZE, Dots, demonstrations

READ = ("actions", "observations/step", "rewards")


@pytest.fixture(autouse=True)
def dots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path / "cache"))
    gym.register(ENVIRONMENT, entry_point=Dots, max_episode_steps=10)
    yield
    del gym.registry[ENVIRONMENT]


def _broken(episode: Episode) -> Episode:
    """The same with pictures that nobody can decode."""
    spec = FieldSpec("|u1", (SIZE, SIZE, 3), "frames")
    rows = Packed.of(spec, [b"no picture"] * (episode.length + 1))
    return episode.replace(observations={**episode.observations, "observations/camera": rows})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = open_store(tmp_path / "store", create=True)
    made.append(demonstrations(5))
    return made


def _config(store: Store, out: Path, **changes: object) -> TrainConfig:
    config = TrainConfig(
        algo="iql",
        data=(store.url,),
        out=str(out),
        steps=4,
        batch_size=8,
        settings={"hidden": (8,)},
    )
    return config.model_copy(update=changes)


def test_pictures_that_nobody_reads_are_not_decoded(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store", create=True)
    store.append(map(_broken, demonstrations(3)))
    train(_config(store, tmp_path / "run"))
    with pytest.raises(Exception, match="picture"):
        train(_config(store, tmp_path / "all", stream={"fields": [*READ, "observations/camera"]}))


def test_fine_tuning_reads_as_training_did(tmp_path: Path, store: Store) -> None:
    train(_config(store, tmp_path / "run"))
    config = FinetuneConfig(
        run=str(tmp_path / "run"),
        environment=ENVIRONMENT,
        into=store.url,
        env_steps=20,
        round_steps=10,
        updates_per_step=0.2,
        evaluate_episodes=1,
    )
    assert finetune(config).steps == 8
    packed = sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert packed < 7 * 11 * SIZE * SIZE * 3  # less than the pictures alone would have


def test_what_is_read_comes_as_from_a_stream_of_all(store: Store) -> None:
    pinned = pin((store.url,))
    reads = fit(pinned, False).reads
    whole, mine = (
        next(iter(open_stream(pinned, Sampling(16, 0, 0.99, "cpu", reads=read))))
        for read in (None, reads)
    )
    assert mine["observations"].keys() == {"step"}
    assert whole["observations"].keys() == {"camera", "step"}
    assert torch.equal(mine["observations"]["step"], whole["observations"]["step"])
    for name in ("actions", "rewards", "discounts", "mask", "indices"):
        assert torch.equal(mine[name], whole[name]), name


def test_a_stream_is_asked_for_fields_where_some_are_unread_alone(store: Store) -> None:
    version = store.version("main")
    assert fields_read(version, ("observations/step",)) == READ
    assert fields_read(version, ("observations/step", "observations/camera")) is None
    assert fields_read(version, None) is None


def test_rewards_that_were_added_are_read(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store", create=True)
    store.append(episode.replace(rewards=None) for episode in demonstrations(2))
    version = store.version("main")
    ids = version.episodes(columns=["episode_id"])["episode_id"].to_pylist()
    version.annotate_steps("rewards", {name: np.arange(10.0) for name in ids})
    pinned = pin((store.url,))
    reads = fit(pinned, False).reads
    batch = next(iter(open_stream(pinned, Sampling(16, 0, 0.99, "cpu", reads=reads))))
    assert batch["rewards"].max() > 5
