"""Learning from pictures: a slow version, a dot to be found, stores, stacked frames, other ends."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from learners.acting import Stoppable
from learners.base import make_learner
from learners.bc import BC, BCSettings
from learners.checkpoint import load_checkpoint, restore
from learners.data import Pinned, Sampling, fit, open_stream, pin
from learners.encoders import random_shift
from learners.evaluate import evaluate
from learners.finetune import FinetuneConfig, finetune
from learners.normaliser import Normaliser, Picture
from learners.policy import decode_policy, encode_policy
from learners.rollout import Collection, Exploration, Facts, collect
from learners.settings import StreamNeeds
from learners.train import TrainConfig, train
from pipeline.store.store import Store, open_store
from schemas.errors import ConfigError, SpecMismatchError, UnknownNameError
from schemas.packed import plain
from tests.learners.dots import ENVIRONMENT, SIZE, STEPS, Dots, demonstrations, encoded
from tests.learners.slow_pixels import SlowPixelIQL
from tests.learners.worked import assert_near, assert_same

PICTURE = Picture("observations/camera", (13, 11, 3))
SEES: dict[str, Any] = {
    "pixels": True,
    "encoder": "small",
    "feature": 16,
    "shift": 0,
    "hidden": (32,),
}


@pytest.fixture(autouse=True)
def dots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The world by its name, and a cache that is nobody else's."""
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path / "cache"))
    gym.register(ENVIRONMENT, entry_point=Dots, max_episode_steps=STEPS)
    yield
    del gym.registry[ENVIRONMENT]


# -- updates ---------------------------------------------------------------------------------------


def _normaliser(choices: int | None = None) -> Normaliser:
    zeros, ones = np.zeros(2, np.float32), np.ones(2, np.float32)
    scale = np.ones(choices or 2, np.float32)
    return Normaliser(("observations/state",), zeros, ones, scale, (PICTURE,), choices)


def _learner(algo: str, seed: Any = 0, choices: int | None = None, **settings: Any) -> Any:
    given = {**SEES, "hidden": (24, 24), "feature": 4, **settings}
    return make_learner(algo, given, _normaliser(choices), seed)


def _observations(generator: torch.Generator, count: int) -> dict[str, Tensor]:
    pixels = torch.randint(0, 256, (count, *PICTURE.shape), generator=generator)
    state = torch.randn(count, 2, generator=generator)
    return {"camera": pixels.to(torch.uint8), "state": state}


def _rows(seed: int, count: int = 12, choices: int | None = None) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    actions = 2 * torch.rand(count, 2, generator=generator) - 1
    return {
        "observations": _observations(generator, count),
        "next_observations": _observations(generator, count),
        "actions": actions
        if choices is None
        else torch.randint(0, choices, (count,), generator=generator),
        "rewards": torch.randn(count, generator=generator),
        "discounts": 0.99 * (torch.rand(count, generator=generator) < 0.7).float(),
        "mask": torch.ones(count),
    }


@pytest.mark.parametrize("choices", [None, 3])
@pytest.mark.parametrize("shift", [0, 2])
def test_iql_from_pixels_is_its_slow_version(choices: int | None, shift: int) -> None:
    fast = _learner("iql", choices=choices, shift=shift)
    slow = SlowPixelIQL(fast.state(), discrete=choices is not None)
    draws = torch.Generator()
    draws.set_state(fast.state()["noise"])

    def moved(pictures: Tensor) -> Tensor:
        if not shift:
            return pictures
        drawn = torch.rand((1, len(pictures), 2), generator=draws)[0]
        return random_shift(pictures, drawn, shift)

    for step in range(4):
        batch = _rows(step, choices=choices)
        fast.update(batch)
        now, then = batch["observations"], batch["next_observations"]
        actions = batch["actions"]
        given = {
            "pictures": moved(now["camera"]),
            "numbers": now["state"].double(),
            "next_pictures": moved(then["camera"]),
            "next_numbers": then["state"].double(),
            "actions": actions if choices is None else torch.eye(choices)[actions],
            "rewards": batch["rewards"].double(),
            "discounts": batch["discounts"].double(),
        }
        slow.update({name: one if "pict" in name else one.double() for name, one in given.items()})
    assert_near(fast, slow)
    state = fast.state()
    for network, camera in (("encoder", slow.camera), ("slow_encoder", slow.slow_camera)):
        for name, expected in camera.named.items():
            mine = state[f"{network}/cameras.0.{name}"].double()
            torch.testing.assert_close(mine, expected.data, rtol=2e-5, atol=3e-6)


@pytest.mark.parametrize(
    ("algo", "seen"), [("bc", {}), ("iql", {}), ("bc", {"loss": "likelihood"})]
)
def test_agents_side_by_side_are_as_alone(algo: str, seen: dict[str, Any]) -> None:
    both = _learner(algo, (3, 8), shift=2, **seen)
    alone = [_learner(algo, seed, shift=2, **seen) for seed in (3, 8)]
    for step in range(3):
        parts = [_rows(10 * step + number) for number in range(2)]
        both.update(_joined(parts))
        for one, part in zip(alone, parts, strict=True):
            one.update(part)
    for number, one in enumerate(alone):
        mine, theirs = both.state(number), one.state()
        assert mine.keys() == theirs.keys()
        for name, tensor in mine.items():
            torch.testing.assert_close(tensor, theirs[name], rtol=1e-3, atol=1e-5)


def _joined(parts: list[Any]) -> Any:
    if isinstance(parts[0], dict):
        return {name: _joined([part[name] for part in parts]) for name in parts[0]}
    return torch.cat(parts)


def test_the_policys_loss_leaves_the_encoder_alone() -> None:
    """Two learners whose policies differ in all they learn have the same encoder."""
    one, two = _learner("iql"), _learner("iql", temperature=0.0, policy_rate=1e-2)
    for step in range(3):
        one.update(_rows(step))
        two.update(_rows(step))
    assert torch.equal(one.agents.flat["encoder"], two.agents.flat["encoder"])
    assert not torch.equal(one.agents.flat["policy"], two.agents.flat["policy"])


def test_pictures_move_in_training_alone() -> None:
    learner = _learner("bc", shift=3)
    seen = _rows(0)["observations"]
    one, two = learner.seen(seen).pictures[0], learner.seen(seen).pictures[0]
    assert not torch.equal(one, two)
    assert torch.equal(learner.act(seen), learner.act(seen))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, about its own parts
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
def test_steps_can_be_taken_apart_for_a_compiler() -> None:
    """As `--compile step` does, up to the making of code."""
    eager, other = _learner("iql", shift=2), _learner("iql", shift=2)
    torch.compiler.reset()
    apart = torch.compile(other.step, backend="aot_eager", dynamic=False)
    for step in range(2):
        eager.step(_rows(step), "")
        apart(_rows(step), "")
    left, right = eager.state(), other.state()
    for name, tensor in left.items():
        torch.testing.assert_close(tensor, right[name], rtol=1e-4, atol=1e-6)


# -- runs ------------------------------------------------------------------------------------------


def _store(tmp_path: Path, count: int = 60, *, as_png: bool = False, noise: float = 0.0) -> Store:
    store = open_store(tmp_path / "store", create=True)
    played = demonstrations(count, noise=noise)
    store.append(encoded(one) if as_png else one for one in played)
    return store


def _config(store: Store, out: Path, algo: str = "bc", **changes: Any) -> TrainConfig:
    given = {"steps": 300, "batch_size": 64, "settings": SEES, **changes}
    return TrainConfig(algo=algo, data=(store.url,), out=str(out), **given)


@pytest.mark.slow
def test_cloning_finds_the_dot_by_looking(tmp_path: Path) -> None:
    store = _store(tmp_path, as_png=True)
    looks = {**SEES, "learning_rate": 3e-3}
    train(_config(store, tmp_path / "seeing", settings=looks))
    seeing = restore(load_checkpoint(tmp_path / "seeing"))
    blind_settings = {"hidden": (32,), "learning_rate": 3e-3}
    train(_config(store, tmp_path / "blind", settings=blind_settings))
    blind = restore(load_checkpoint(tmp_path / "blind"))
    # Who points to the middle is off by 0.77 on average: 10 steps of that earn 2.3.
    assert evaluate(blind, ENVIRONMENT, 10).mean_return < 3
    assert evaluate(seeing, ENVIRONMENT, 10).mean_return > 8


@pytest.mark.slow
def test_iql_finds_the_dot_among_noisy_pointing(tmp_path: Path) -> None:
    store = _store(tmp_path, count=40, noise=0.3)
    settings = {**SEES, **dict.fromkeys(("policy_rate", "critic_rate", "value_rate"), 3e-3)}
    config = _config(store, tmp_path / "run", "iql", settings=settings, discount=0.5, steps=800)
    train(config)
    learner = restore(load_checkpoint(tmp_path / "run"))
    assert evaluate(learner, ENVIRONMENT, 10).mean_return > 5


def test_encoded_pictures_come_as_they_were(tmp_path: Path) -> None:
    """Decoded when they are drawn, or once; the same batches as of plain arrays."""
    stores = [_store(tmp_path / str(as_png), 5, as_png=as_png) for as_png in (False, True)]
    drawn = [
        next(iter(open_stream(pin((store.url,)), Sampling(8, 0, 0.99, "cpu", needs=needs))))
        for store, needs in (
            (stores[0], StreamNeeds(pictures="decode")),
            (stores[1], BC.needs(BCSettings(pixels=True))),
            (stores[1], BC.needs(BCSettings(pixels=True, pictures="cache"))),
        )
    ]
    spec = open_store(stores[1].url).version("main").specs
    assert {one.fields["observations/camera"].encoding for one in spec.values()} == {"frames"}
    for batch in drawn[1:]:
        for name in ("observations", "next_observations"):
            for field, expected in drawn[0][name].items():
                assert torch.equal(batch[name][field], expected)
    assert drawn[0]["observations"]["camera"].dtype == torch.uint8


@pytest.mark.parametrize("algo", ["bc", "iql"])
def test_a_run_goes_on_bit_for_bit(tmp_path: Path, algo: str) -> None:
    store = _store(tmp_path, 5, as_png=True)
    settings = {**SEES, "shift": 2, "frames": 2}
    if algo == "iql":
        settings["policy_decay"] = 6
    common: dict[str, Any] = {"algo": algo, "settings": settings, "batch_size": 8}
    train(_config(store, tmp_path / "whole", steps=6, **common))
    train(_config(store, tmp_path / "halves", steps=3, **common))
    train(_config(store, tmp_path / "halves", steps=6, resume=True, **common))
    assert_same(*(restore(load_checkpoint(tmp_path / run)) for run in ("whole", "halves")))


def test_frames_kept_while_acting_are_those_of_the_stream(tmp_path: Path) -> None:
    store = _store(tmp_path, 4)
    learner = make_learner(
        "bc", {**SEES, "frames": 3}, fit(pin((store.url,)), False, pixels=True), seed=2
    )
    needs = learner.needs(learner.settings)
    stream = open_stream(pin((store.url,)), Sampling(64, 0, 0.99, "cpu", needs=needs))
    batch = next(iter(stream))
    assert batch["observations"]["camera"].shape == (64, 3, SIZE, SIZE, 3)
    from_stream = learner.act(batch["observations"])

    version = open_store(store.url).version("main")
    ids = version.episodes(columns=["episode_id"])["episode_id"].to_pylist()
    memory, expected, starts = learner.remembering(1), {}, 0
    for name in ids:
        episode = version.episode(name)
        rows = {n.split("/")[1]: plain(a) for n, a in episode.observations.items()}
        memory.begin(0)
        for t in range(episode.length):
            expected[starts + t] = memory.act({n: a[t : t + 1] for n, a in rows.items()})[0]
        starts += episode.length + 1
    for row, index in enumerate(batch["indices"].tolist()):
        torch.testing.assert_close(from_stream[row], expected[index])
    # Without a memory, what is shown is an episode's first frame.
    first = learner.act({n: a[:1] for n, a in rows.items()})[0]
    torch.testing.assert_close(first, expected[starts - episode.length - 1])


@pytest.mark.parametrize("as_png", [False, True])
def test_fine_tuning_sees_through_the_store(tmp_path: Path, as_png: bool) -> None:
    """Rollouts are plain arrays, whatever the demonstrations are."""
    store = _store(tmp_path, 5, as_png=as_png)
    train(_config(store, tmp_path / "run", "iql", steps=4, settings={**SEES, "frames": 2}))
    config = FinetuneConfig(
        run=str(tmp_path / "run"),
        environment=ENVIRONMENT,
        into=store.url,
        env_steps=40,
        round_steps=20,
        updates_per_step=0.2,
        evaluate_episodes=1,
    )
    found = finetune(config)
    assert found.steps == 4 + 8
    data = [Pinned(**one.document()).open() for one in found.data]
    rollout = data[-1].episode(data[-1].episodes()["episode_id"][0].as_py())
    assert plain(rollout.observations["observations/camera"]).shape == (11, SIZE, SIZE, 3)


def test_an_actor_that_can_be_stopped_keeps_frames_too() -> None:
    learner = _dots_learner()
    plan = Collection(ENVIRONMENT, episodes=3, exploration=Exploration("policy"), slots=2)
    facts = Facts(namespace="x")
    whole = list(collect(learner, plan, facts))
    stoppable = list(collect(Stoppable(learner, threading.Event()), plan, facts))
    for one, other in zip(whole, stoppable, strict=True):
        assert np.array_equal(plain(one.flat_actions["actions"]), other.flat_actions["actions"])
    # In the second step of an episode it sees two frames, not one.
    seen = {n.split("/")[1]: plain(a)[1:2] for n, a in whole[0].observations.items()}
    alone = learner.act(seen)[0].numpy()
    assert not np.allclose(plain(whole[0].flat_actions["actions"])[1], alone, atol=1e-4)


def _dots_learner() -> Any:
    zeros, ones = np.zeros(1, np.float32), np.ones(1, np.float32)
    camera = Picture("observations/camera", (SIZE, SIZE, 3))
    found = Normaliser(("observations/step",), zeros, ones, np.ones(2, np.float32), (camera,))
    return make_learner("bc", {**SEES, "frames": 2}, found)


def test_a_published_policy_sees_as_its_learner() -> None:
    learner = _learner("iql", frames=2)
    data = encode_policy(learner, "r", 1)
    taken, _ = decode_policy(data, "r")
    seen = _rows(1)["observations"]
    assert torch.equal(taken.act(seen), learner.act(seen))
    names = {name.split("/")[0] for name in learner.state()}
    assert {"encoder", "slow_encoder", "policy", "critics"} <= names
    whole = sum(tensor.numel() for tensor in learner.state().values())
    assert len(data) < 4 * whole / 2


# -- refusals --------------------------------------------------------------------------------------


def test_data_without_what_is_asked_for_say_so(tmp_path: Path) -> None:
    store = _store(tmp_path, 2)
    bare = open_store(tmp_path / "bare", create=True)
    named = "observations/camera"
    bare.append(
        one.replace(observations={n: a for n, a in one.observations.items() if n != named})
        for one in demonstrations(1)
    )
    with pytest.raises(SpecMismatchError, match="uint8 pictures among the observations"):
        fit(pin((bare.url,)), False, pixels=True)
    only = open_store(tmp_path / "only", create=True)
    only.append(
        one.replace(observations={"observations": one.observations[named]})
        for one in demonstrations(1)
    )
    with pytest.raises(SpecMismatchError, match="pixels=true takes in pictures"):
        fit(pin((only.url,)), False)
    found = fit(pin((only.url,)), False, pixels=True)
    assert (found.observation_dims, found.fields) == (0, ())
    assert fit(pin((store.url,)), False).pictures == ()
    with pytest.raises(UnknownNameError, match="setting of td3_bc, came 'pixels'"):
        train(_config(store, tmp_path / "run", "td3_bc", settings={"pixels": True}))
    with pytest.raises(ConfigError, match="set encoder=small"):
        _learner("bc", encoder="conv")


def test_pictures_alone_are_enough(tmp_path: Path) -> None:
    only = open_store(tmp_path / "only", create=True)
    only.append(
        one.replace(observations={"observations": one.observations["observations/camera"]})
        for one in demonstrations(3)
    )
    train(_config(only, tmp_path / "run", steps=2))
    learner = restore(load_checkpoint(tmp_path / "run"))
    assert learner.act(np.zeros((2, SIZE, SIZE, 3), np.uint8)).shape == (2, 2)
    with pytest.raises(SpecMismatchError, match=r"uint8 pictures of \[16, 16, 3\] in observations"):
        learner.act(np.zeros((2, SIZE, SIZE, 3), np.float32))


def test_a_run_says_what_it_takes_in(tmp_path: Path) -> None:
    store = _store(tmp_path, 2)
    train(_config(store, tmp_path / "run", steps=1))
    said = json.loads((tmp_path / "run" / "run.json").read_text())["inputs"]
    assert said["pictures"] == {"observations/camera": [SIZE, SIZE, 3]}
    assert said["fields"] == ["observations/step"]
    assert said["choices"] is None
