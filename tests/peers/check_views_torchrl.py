"""Trains TorchRL's IQL, as its documentation does, on a version seen as TorchRL's replay buffer.

    PYTHONPATH=. python tests/peers/check_views_torchrl.py

Runs in an environment with `torchrl.txt` and `views.txt`. Ends with 1 where rows differ from the
store's, or the policy that is learned is not that of the data.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from tensordict.nn import NormalParamExtractor, TensorDictModule
from torch import nn
from torchrl.data import SliceSampler, TensorDictReplayBuffer
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import MLP, ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import IQLLoss, SoftUpdate

from pipeline.store.reader import Version
from tests.peers import views_store

STEPS = 600


def check(version: Version, cache: Path) -> None:
    """Holds every row against the store, and trains."""
    rb = version.as_torchrl(batch_size=256, cache_dir=str(cache))
    rows = rb[:]
    at = 0
    for number, episode in enumerate(version.iter_episodes()):
        steps = episode.length - (episode.final_observation == "missing")
        cut = rows[at : at + steps]
        states = np.asarray(episode.observations["observations"])
        expect(np.array_equal(cut["observation"], states[:steps]), "observation")
        expect(np.array_equal(cut["next", "observation"], states[1 : steps + 1]), "next")
        expect(np.array_equal(cut["action"], np.asarray(episode.actions)[:steps]), "action")
        rewards = np.asarray(episode.rewards)[:steps, None]
        expect(np.array_equal(cut["next", "reward"], rewards), "reward")
        expect(bool((cut["collector", "traj_ids"] == number).all()), "traj_ids")
        expect(int(cut["next", "done"].sum()) == 1 and bool(cut["next", "done"][-1]), "done")
        expect(bool(cut["next", "terminated"][-1]) == episode.is_terminated, "terminated")
        at += steps
    expect(at == len(rb), f"{at} rows, came {len(rb)}")
    slices = SliceSampler(slice_len=5, traj_key=("collector", "traj_ids"), strict_length=True)
    sliced = TensorDictReplayBuffer(storage=rb.storage, sampler=slices, batch_size=20).sample()
    runs = sliced["collector", "traj_ids"].reshape(4, 5)
    expect(bool((runs == runs[:, :1]).all()), "slices within episodes")
    actor = train(rb)
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        found = actor(rows.select("observation"))["action"]
    error = float((found - rows["action"]).square().mean())
    nothing = float(rows["action"].square().mean())
    print(f"mean square error of actions {error:.4f}, of none {nothing:.4f}")  # noqa: T201
    expect(error < 0.6 * nothing, "a policy like the data's")


def train(rb: TensorDictReplayBuffer) -> ProbabilisticActor:
    """TorchRL's IQL on a buffer; returns the policy."""
    torch.manual_seed(0)
    net = nn.Sequential(MLP(in_features=3, out_features=4, num_cells=[64]), NormalParamExtractor())
    actor = ProbabilisticActor(
        TensorDictModule(net, in_keys=["observation"], out_keys=["loc", "scale"]),
        in_keys=["loc", "scale"],
        distribution_class=TanhNormal,
    )
    qvalue = ValueOperator(
        MLP(in_features=5, out_features=1, num_cells=[64]), in_keys=["observation", "action"]
    )
    value = ValueOperator(
        MLP(in_features=3, out_features=1, num_cells=[64]), in_keys=["observation"]
    )
    loss_module = IQLLoss(actor, qvalue, value, expectile=0.7, temperature=3.0)
    loss_module.make_value_estimator(gamma=0.9)
    target_updater = SoftUpdate(loss_module, tau=0.01)
    optimizer = torch.optim.Adam(loss_module.parameters(), lr=1e-3)
    for _ in range(STEPS):
        data = rb.sample()
        loss_vals = loss_module(data)
        loss = loss_vals["loss_actor"] + loss_vals["loss_qvalue"] + loss_vals["loss_value"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        target_updater.step()
    return actor


def expect(is_so: bool, what: str) -> None:
    if not is_so:
        sys.exit(f"expected {what}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        made = views_store.version(Path(place, "store"))
        check(made, Path(place, "cache"))
        again = made.as_torchrl(cache_dir=str(Path(place, "cache")))
        expect(len(list(Path(place, "cache", "views", "torchrl").iterdir())) == 1, "one folder")
        expect(len(again) == len(made.as_torchrl(cache_dir=str(Path(place, "cache")))), "the same")
