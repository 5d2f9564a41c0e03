"""Learning beside a service that really runs: an actor plays, a learner learns, exactly."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from learners.acting import ActingConfig, act
from learners.actors import Actors
from learners.checkpoint import load_checkpoint, restore
from learners.online import learn_online
from learners.online_run import OnlineConfig
from learners.policy import decode_policy, encode_policy
from learners.replay import replay
from learners.runlog import read_table
from pipeline.store import policies, runs
from pipeline.store.store import Store, open_store
from pipeline.stream.online import OnlineSource
from schemas.errors import (
    ConfigError,
    NameTakenError,
    NotFoundError,
    OutOfTimeError,
    UntrustedError,
    UsageError,
)
from tests.learners.playing import ENVIRONMENT, demonstrations, offline_run
from tests.service.servers import Server, serving


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, Path, Server]]:
    folder = tmp_path_factory.mktemp("online")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PENSTOCK_CACHE", str(folder / "cache"))
        store = demonstrations(folder / "s", 3)
        run = offline_run(store, folder / "run")
        with serving(folder / "s", "--seal-every", "200ms", "--new-spec", "play") as server:
            yield store, run, server


def config(world: tuple[Store, Path, Server], name: str, **changes: object) -> OnlineConfig:
    _, run, server = world
    settings: dict[str, object] = {
        "run": str(run),
        "environment": ENVIRONMENT,
        "service": server.data,
        "out": str(run.parent / name),
        "name": name,
        "env_steps": 2000,
        "warmup_steps": 400,
        "ahead_steps": 200,
        "updates_per_step": 0.05,
        "follow_every": 10,
        "publish_every": 20,
        "checkpoint_every": 30,
        "actors": 0,
        "log_rows": True,
        "evaluate_episodes": 1,
        "starve_seconds": 30.0,
    }
    return OnlineConfig(**{**settings, **changes})  # type: ignore[arg-type]


class Playing:
    """An actor in a thread, while the context lasts."""

    def __init__(self, server: Server, run: str, **changes: object) -> None:
        self.stop = threading.Event()
        self.error: BaseException | None = None
        settings = {"environment": ENVIRONMENT, "policy": run, "service": server.control}
        self._config = ActingConfig(**{**settings, "slots": 1, "seed": 1, **changes})  # type: ignore[arg-type]
        self._token = server.token
        self._thread = threading.Thread(target=self._play)

    def _play(self) -> None:
        try:
            self.done = act(self._config, self._token, self.stop)
        except BaseException as error:
            self.error = error

    def __enter__(self) -> Playing:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive()
        assert self.error is None


def test_an_actor_plays_and_a_learner_learns(world: tuple[Store, Path, Server]) -> None:
    store, _, server = world
    asked = config(world, "live", max_policy_lag=60)
    with Playing(server, "live") as actor:
        result = learn_online(asked, server.token)
    assert result.steps == 40 + 80
    until = time.monotonic() + 30
    source = OnlineSource(store, "main", "live")
    while source.inserted() < actor.done.steps and time.monotonic() < until:
        time.sleep(0.1)  # what ended last is sealed
    rollouts = store.version("main").episodes(columns=["episode_id", "policy_version"])
    stamps = [one for one in rollouts["policy_version"].to_pylist() if one.startswith("live:")]
    assert len(stamps) == actor.done.episodes >= 6
    assert {"live:40"} < set(stamps)  # newer policies played, too
    assert int(actor.done.policy_version.partition(":")[2]) > 40
    assert policies.steps(store.catalog, "live")[-1] == 120
    table = read_table(Path(asked.out) / "metrics.csv")
    assert 0.05 * 16 * 0.5 < float(table[-1]["samples_per_insert"]) < 0.05 * 16 * 2
    assert result.regret is not None
    assert (result.regret.kind, table[-1]["regret"] != "") == ("best_return", True)
    assert 1 <= result.regret.episodes <= actor.done.episodes
    _same_batches(Path(asked.out), 80)
    references = runs.references(store.catalog, "live")
    assert len({one.versions[-1].id for one in references}) > 1


def test_a_learner_that_reaches_the_service_alone(
    world: tuple[Store, Path, Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Demonstrations, rollouts, selections, policies and references go through it."""
    store, _, server = world
    monkeypatch.setenv("PENSTOCK_TOKEN", server.token or "")
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path / "cache"))
    run = offline_run(open_store(server.data), tmp_path / "run")
    assert load_checkpoint(run).document["data"][0]["store"] == server.data
    learner = restore(load_checkpoint(run))
    policies.publish(store.catalog, "other", 40, encode_policy(learner, "other", 40))
    with Playing(server, "other", episodes=2) as actor:
        actor._thread.join(60)
    asked = config(
        world, "far", run=str(run), out=str(tmp_path / "far"), env_steps=1000, max_policy_lag=60
    )
    with Playing(server, "far"):
        result = learn_online(asked, server.token)
    assert result.steps == 40 + 30
    assert policies.steps(store.catalog, "far")[-1] == 70
    assert (
        0 < len(store.version("far-rollouts")) < len(store.version("main"))
    )  # not those of others
    _same_batches(Path(asked.out or ""), 30)
    told = load_checkpoint(Path(asked.out or "")).document["config"]["into"]
    assert told == server.data


def _same_batches(out: Path, count: int) -> None:
    """Batches made again from the store are those that the learner logged."""
    logged = read_table(out / "rows.csv")
    assert [int(row["step"]) for row in logged] == list(range(count))
    for row in logged[:: max(count // 20, 1)] + logged[-1:]:
        again = replay(str(out), int(row["step"]))
        assert again.rows == row["rows"]
        assert len(again.batch["indices"]) == 32
        assert again.batch["is_demonstration"].sum() == 16


def test_a_learner_that_died_goes_on_with_the_same_batches(
    world: tuple[Store, Path, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, server = world
    asked = config(world, "killed")
    seen: list[list[dict[str, str]]] = []

    class DeadError(Exception):
        pass

    def die(*arguments: Any) -> None:
        seen.append(read_table(Path(asked.out) / "rows.csv"))
        if len(seen) == 3:
            raise DeadError
        return module_publish(*arguments)

    import learners.online as module

    module_publish = module._publish
    monkeypatch.setattr(module, "_publish", die)
    with Playing(server, "killed"):
        with pytest.raises(DeadError):
            learn_online(asked, server.token)
        monkeypatch.undo()
        monkeypatch.setenv("PENSTOCK_CACHE", str(Path(asked.out).parent / "cache"))
        kept = load_checkpoint(Path(asked.out))
        assert kept.document["samples"] == 16 * 30
        with pytest.raises(NameTakenError):
            learn_online(asked, server.token)
        with pytest.raises(ConfigError, match="updates_per_step"):
            learn_online(
                asked.model_copy(update={"resume": True, "updates_per_step": 0.2}), server.token
            )
        learn_online(asked.model_copy(update={"resume": True}), server.token)
    before = {row["step"]: row["rows"] for row in seen[-1]}
    after = {row["step"]: row["rows"] for row in read_table(Path(asked.out) / "rows.csv")}
    assert len(before) == 40  # ten of them beyond the checkpoint
    assert before.items() <= after.items()
    _same_batches(Path(asked.out), 80)


def test_starvation_ends_a_learner(world: tuple[Store, Path, Server]) -> None:
    asked = config(world, "starved", starve_seconds=0.5)
    with pytest.raises(OutOfTimeError, match=r"Expected 400 steps .* came 0 "):
        learn_online(asked, world[2].token)


def test_a_service_that_is_away_is_said(world: tuple[Store, Path, Server]) -> None:
    away = config(world, "away", service="http://127.0.0.1:9", starve_seconds=0.5)
    with pytest.raises(OutOfTimeError, match=r"service that answers.* stayed so for 0\.5 s"):
        learn_online(away)
    gone = {"service": "http://127.0.0.1:9", "wait_seconds": 0.5, "policy": "x"}
    with pytest.raises(OutOfTimeError, match="Expected a service that answers"):
        act(ActingConfig(environment=ENVIRONMENT, **gone))  # type: ignore[arg-type]


def test_another_store_is_not_taken_for_the_services(
    world: tuple[Store, Path, Server], tmp_path: Path
) -> None:
    open_store(tmp_path / "other", create=True)
    asked = config(world, "elsewhere", into=str(tmp_path / "other"))
    with pytest.raises(NotFoundError, match="--into"):
        learn_online(asked, world[2].token)


# -- policies ------------------------------------------------------------------------------------


def test_a_published_policy_acts_as_the_learner_does(world: tuple[Store, Path, Server]) -> None:
    from learners.checkpoint import restore

    learner = restore(load_checkpoint(world[1]))
    data = encode_policy(learner, "r", 40)
    actor, step = decode_policy(data, "r")
    assert step == 40
    assert len(data) < 16_000  # neither critics nor optimisers
    seen = np.random.default_rng(0).normal(size=(7, 3))
    assert torch.equal(actor.act(seen), learner.act(seen))
    noise = np.random.default_rng(1).normal(size=(7, 1))
    assert torch.equal(actor.explore(seen, noise), learner.explore(seen, noise))


@pytest.mark.parametrize("wrong", ["flipped", "cut", "other run", "hidden", "algorithm"])
def test_a_policy_that_is_none_is_refused(world: tuple[Store, Path, Server], wrong: str) -> None:
    from learners.checkpoint import restore

    data = encode_policy(restore(load_checkpoint(world[1])), "r", 40)
    changed = {
        "flipped": data[:-1] + bytes([data[-1] ^ 1]),
        "cut": data[:-4],
        "other run": data,
        "hidden": data.replace(b"[32, 32]", b"[32, 99]"),
        "algorithm": data.replace(rb"\"algo\": \"iql\"", rb"\"algo\": \"os_\""),
    }[wrong]
    assert wrong == "other run" or changed != data
    with pytest.raises(UntrustedError):
        decode_policy(changed, "another" if wrong == "other run" else "r")


# -- actors as processes -------------------------------------------------------------------------


def test_an_actor_that_died_is_started_again_and_all_end_with_us(
    world: tuple[Store, Path, Server],
) -> None:
    server = world[2]
    where = ["--env", ENVIRONMENT, "--policy", "nobody", "--service", server.data]
    with Actors(where, 1, server.token) as actors:
        (first,) = actors.pids
        os.kill(first, signal.SIGKILL)
        until = time.monotonic() + 60
        while actors.pids in ([first], []) and time.monotonic() < until:
            actors.look()
            time.sleep(0.05)
        (second,) = actors.pids
    assert actors.pids == []
    for pid in (first, second):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_an_actor_that_was_given_something_wrong_ends_us(
    world: tuple[Store, Path, Server],
) -> None:
    _, run, server = world
    where = ["--env", "Pendulums-v1", "--policy", str(run), "--service", server.data]
    until = time.monotonic() + 120
    actors = Actors(where, 1, server.token)

    def look_on() -> None:
        with actors:
            while time.monotonic() < until:
                actors.look()
                time.sleep(0.05)

    with pytest.raises(UsageError, match="Pendulums-v1"):
        look_on()
    assert actors.pids == []
