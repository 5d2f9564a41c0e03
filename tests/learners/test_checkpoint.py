from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from learners.base import Learner, make_learner
from learners.checkpoint import (
    last_checkpoint,
    load_checkpoint,
    restore,
    save_checkpoint,
    snapshot,
)
from learners.normaliser import Normaliser
from schemas.errors import NotFoundError, UntrustedError

NORMALISER = Normaliser(
    ("observations/a", "observations/b"),
    np.array([1.0, -2.0, 0.5], np.float32),
    np.array([2.0, 0.5, 1.0], np.float32),
    np.array([1.0, 3.0], np.float32),
)


@pytest.mark.parametrize(
    ("algo", "settings"),
    [
        ("bc", {}),
        ("bc", {"dropout": 0.3}),
        ("iql", {}),
        ("iql", {"dropout": 0.3}),
        ("td3_bc", {}),
        ("rebrac", {}),
        ("cql", {"samples": 2, "lagrange": 1.0}),
        ("cal_ql", {"samples": 2}),
        ("rlpd", {"updates": 2}),
        ("cqn", {"levels": 2, "atoms": 11}),
        ("arsq", {}),
        ("dt", {"target_return": 9.0, "width": 8, "blocks": 1, "longest": 20, "dropout": 0.3}),
    ],
)
def test_a_restored_learner_goes_on_bit_for_bit(
    tmp_path: Path, algo: str, settings: dict[str, Any]
) -> None:
    if algo != "dt":
        settings = {**settings, "hidden": (8, 8)}
    if algo == "iql":
        settings["policy_decay"] = 10
    whole = make_learner(algo, settings, NORMALISER, seed=3)
    _update(whole, range(6))
    half = make_learner(algo, settings, NORMALISER, seed=3)
    _update(half, range(3))
    save_checkpoint(tmp_path, snapshot(half, 3, {}))
    resumed = restore(load_checkpoint(tmp_path))
    _update(resumed, range(3, 6))
    assert resumed.settings == whole.settings
    assert resumed.state().keys() == whole.state().keys()
    for name, tensor in whole.state().items():
        assert torch.equal(tensor, resumed.state()[name]), name


def test_everything_comes_back(tmp_path: Path) -> None:
    learner = make_learner("iql", {"hidden": (8,), "expectile": 0.9}, NORMALISER)
    document = {"run": "r", "stream": {"step": 7}, "data": [{"version": "ü"}]}
    path = save_checkpoint(tmp_path, snapshot(learner, 12, document))
    found = load_checkpoint(path)
    assert path.name == "000000000012.safetensors"
    assert (found.algo, found.step, found.document) == ("iql", 12, document)
    assert found.settings["expectile"] == 0.9
    assert found.normaliser.fields == NORMALISER.fields
    np.testing.assert_array_equal(found.normaliser.mean, NORMALISER.mean)
    np.testing.assert_array_equal(found.normaliser.scale, NORMALISER.scale)
    np.testing.assert_array_equal(found.normaliser.action_scale, NORMALISER.action_scale)
    assert found.normaliser.action_range is None


def test_the_range_of_actions_comes_back(tmp_path: Path) -> None:
    ranged = replace(NORMALISER, action_range=np.array([[-1, -2], [0.5, 3]], np.float32))
    learner = make_learner("bc", {"hidden": (8,)}, ranged)
    found = load_checkpoint(save_checkpoint(tmp_path, snapshot(learner, 1, {}))).normaliser
    np.testing.assert_array_equal(found.action_low, [-1, -2])
    np.testing.assert_array_equal(found.action_high, [0.5, 3])


def test_a_snapshot_does_not_move_with_its_learner() -> None:
    learner = make_learner("bc", {"hidden": (8,)}, NORMALISER)
    kept = snapshot(learner, 0, {})
    before = kept.tensors["policy/trunk.weights.0"].clone()
    _update(learner, range(1))
    assert torch.equal(kept.tensors["policy/trunk.weights.0"], before)


def test_only_the_last_stays_and_leftovers_are_not_taken_for_one(tmp_path: Path) -> None:
    learner = make_learner("bc", {"hidden": (8,)}, NORMALISER)
    for step in (5, 10):
        save_checkpoint(tmp_path, snapshot(learner, step, {}))
    folder = tmp_path / "checkpoints"
    (folder / "000000000099.tmp").write_bytes(b"half a checkpoint")
    assert [path.name for path in folder.glob("*.safetensors")] == ["000000000010.safetensors"]
    found = last_checkpoint(tmp_path)
    assert found is not None
    assert found.name == "000000000010.safetensors"


def test_no_checkpoint_is_said_in_words(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path) is None
    with pytest.raises(NotFoundError, match="train one first"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("damage", ["flip", "cut", "other"])
def test_damage_is_found(tmp_path: Path, damage: str) -> None:
    path = save_checkpoint(
        tmp_path, snapshot(make_learner("bc", {"hidden": (8,)}, NORMALISER), 1, {})
    )
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[-5] ^= 1
    path.write_bytes({"flip": data, "cut": data[:-9], "other": b"{}"}[damage])
    with pytest.raises(UntrustedError, match="whole checkpoint"):
        load_checkpoint(tmp_path)


def test_settings_can_change_on_restore(tmp_path: Path) -> None:
    learner = make_learner("iql", {"hidden": (8,), "policy_decay": 5}, NORMALISER)
    _update(learner, range(2))
    save_checkpoint(tmp_path, snapshot(learner, 2, {}))
    changed = restore(load_checkpoint(tmp_path), changes={"policy_decay": 0})
    assert changed.settings.model_dump()["policy_decay"] == 0
    assert torch.equal(changed.state()["updates"], torch.tensor(2))


def _update(learner: Learner, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        states = {
            "a": torch.randn(16, 2, generator=generator),
            "b": torch.randn(16, generator=generator),
        }
        batch = {
            "observations": states,
            "next_observations": states,
            "actions": torch.rand(16, 2, generator=generator),
            "rewards": torch.randn(16, generator=generator),
            "discounts": torch.full((16,), 0.99),
            "mask": torch.ones(16, dtype=torch.bool),
            "returns_to_go": torch.randn(16, generator=generator),
            "steps_to_go": torch.arange(1, 17),
            "timesteps": torch.arange(16),
        }
        learner.update(_twice(batch) if learner.name in ("rebrac", "dt") else batch)


def _twice(value: Any) -> Any:
    """Windows of two steps that are alike."""
    if isinstance(value, dict):
        return {name: _twice(child) for name, child in value.items()}
    return torch.stack([value, value], dim=1)
