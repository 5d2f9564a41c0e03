"""Data that keep the same things in another way than the environment gives them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch

from learners.acting import ActingConfig, act
from learners.checkpoint import load_checkpoint, restore
from learners.evaluate import evaluate
from learners.finetune import FinetuneConfig, finetune
from learners.layout import laid_out
from learners.online import learn_online
from learners.online_run import OnlineConfig
from learners.policy import decode_policy, encode_policy
from learners.rollout import Collection, Facts, collect
from learners.train import TrainConfig, train
from pipeline.store.store import Store, open_store
from schemas.episode import Episode
from schemas.errors import SpecMismatchError
from tests.service.servers import serving

ENVIRONMENT = "Buttons-v0"


class Buttons(gym.Env[np.ndarray, np.int64]):
    """Two buttons; the one on whose side the light is earns 1. Five steps."""

    observation_space: ClassVar[Any] = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space: ClassVar[Any] = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self._next(), {}

    def step(self, action: np.int64) -> Any:
        earned = float(action == (self.light[0] > 0))
        return self._next(), earned, False, False, {}

    def _next(self) -> np.ndarray:
        self.light = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self.light


class Watcher:
    """Presses where the light is, but now and then."""

    def act(self, observations: Any) -> np.ndarray:
        seen = np.asarray(observations)
        return ((seen[:, 0] > 0) ^ (seen[:, 1] > 0.9)).astype(np.int64)


def _other_way(episode: Episode) -> Episode:
    """Named observations, and actions as arrays of one of a narrower integer."""
    return episode.replace(
        observations={"flat": episode.observations["observations"]},
        actions=np.asarray(episode.actions, np.int32)[:, None],
    )


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path / "cache"))
    gym.register(ENVIRONMENT, entry_point=Buttons, max_episode_steps=5)
    plan = Collection(ENVIRONMENT, episodes=60)
    played = collect(Watcher(), plan, Facts(namespace="demo", kind="demonstration"))
    store = open_store(tmp_path / "store", create=True)
    store.append(map(_other_way, played), branch="demos")
    yield store
    del gym.registry[ENVIRONMENT]


def _run(store: Store, out: Path, algo: str = "bc", steps: int = 20, **settings: Any) -> Path:
    config = TrainConfig(
        algo=algo,
        data=(f"{store.url}@demos",),
        out=str(out),
        steps=steps,
        batch_size=32,
        settings={"hidden": (16, 16), **settings},
        environment=ENVIRONMENT,
        evaluate_episodes=2,
    )
    train(config)
    return out


@pytest.mark.parametrize("algo", ["bc", "iql", "cql"])
def test_what_data_keep_otherwise_is_learned_played_and_mixed(
    world: Store, tmp_path: Path, algo: str
) -> None:
    run = _run(world, tmp_path / "run", algo)
    found = finetune(
        FinetuneConfig(
            run=str(run),
            environment=ENVIRONMENT,
            into=world.url,
            env_steps=20,
            round_steps=10,
            updates_per_step=0.5,
            evaluate_episodes=1,
        )
    )
    assert found.steps == 30
    rollouts = world.version(found.data[-1].version)
    assert rollouts.specs == world.version("demos").specs
    played = rollouts.episode(rollouts.episodes()["episode_id"][0].as_py())
    assert (played.actions.dtype, played.actions.shape) == (np.int32, (5, 1))
    assert list(played.observations) == ["observations/flat"]


def test_what_was_learned_of_it_is_done(world: Store, tmp_path: Path) -> None:
    learner = restore(load_checkpoint(_run(world, tmp_path / "run", steps=300, learning_rate=3e-3)))
    assert evaluate(learner, ENVIRONMENT, 10).mean_return > 4
    assert learner.act(np.array([[-0.5, 0.0], [0.5, 0.0]], np.float32)).tolist() == [0, 1]


@contextmanager
def _playing(config: ActingConfig, token: str | None) -> Iterator[None]:
    """An actor in a thread."""
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(act, config, token, stop)
        try:
            yield
        finally:
            stop.set()
            done.result(60)


@pytest.mark.slow  # a service starts, and an actor beside a learner
def test_actors_push_as_the_data_are(world: Store, tmp_path: Path) -> None:
    run = _run(world, tmp_path / "run")
    with serving(Path(world.url), "--seal-every", "100ms") as server:
        acting = ActingConfig(
            environment=ENVIRONMENT,
            policy=str(run),
            service=server.control,
            episodes=8,
            seed=1,
        )
        assert act(acting, server.token).episodes == 8
        online = OnlineConfig(
            run=str(run),
            environment=ENVIRONMENT,
            service=server.data,
            out=str(tmp_path / "online"),
            name="buttons",
            env_steps=60,
            warmup_steps=20,
            follow_every=5,
            publish_every=5,
            updates_per_step=0.5,
            evaluate_episodes=1,
            actors=0,
            starve_seconds=20.0,
        )
        acting = acting.model_copy(update={"policy": "buttons", "episodes": 16})
        with _playing(acting, server.token):
            result = learn_online(online, server.token)
    assert result.steps == 20 + 20


def test_a_published_policy_knows_its_data(world: Store, tmp_path: Path) -> None:
    learner = restore(load_checkpoint(_run(world, tmp_path / "run")))
    taken, _ = decode_policy(encode_policy(learner, "r", 1), "r")
    (spec,) = world.version("demos").specs.values()
    assert taken.normaliser.spec == spec


def test_only_what_is_beyond_doubt_is_taken_as_the_same(world: Store) -> None:
    (spec,) = world.version("demos").specs.values()
    plan = Collection(ENVIRONMENT, episodes=1)
    (played,) = collect(Watcher(), plan, Facts(namespace="x"))
    assert laid_out(played, spec).spec == spec
    assert laid_out(laid_out(played, spec), spec).spec == spec
    bare = played.observations["observations"]
    for doubtful in (
        {"other": bare},  # another name
        np.concatenate([bare, bare], axis=1),  # another shape
        np.zeros_like(bare, np.int64),  # another kind
    ):
        kept = played.replace(observations=doubtful)
        assert laid_out(kept, spec).observations.keys() == kept.observations.keys()
    pairs = played.replace(actions=np.zeros((5, 2), np.int64))
    assert laid_out(pairs, spec).spec.fields["actions"].shape == (2,)


def test_another_name_is_refused_with_the_nearest(world: Store, tmp_path: Path) -> None:
    learner = restore(load_checkpoint(_run(world, tmp_path / "run")))
    with pytest.raises(SpecMismatchError, match="did you mean 'observations/flap'"):
        learner.act({"flap": np.zeros((1, 2), np.float32)})
    with pytest.raises(SpecMismatchError, match="of 2 numbers, came 3"):
        learner.act(np.zeros((1, 3), np.float32))
    with pytest.raises(SpecMismatchError, match="observations/flat, came observations;"):
        learner.act(torch.zeros((1, 2), dtype=torch.int64))
