"""Trains LeRobot's ACT, as its example does, on a version seen as LeRobot's dataset.

    PYTHONPATH=. python tests/peers/check_views_lerobot.py

Runs in an environment with `tests/conformance/lerobot.txt`, `lerobot_policies.txt` and `views.txt`,
without a network. Ends with 1 where rows differ from the store's, or the loss does not fall.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline.store.reader import Version
from schemas.packed import plain
from tests.conformance.check_lerobot import with_torchvision
from tests.peers import views_store

if TYPE_CHECKING:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

STEPS, CHUNK = 40, 5


def check(version: Version, cache: Path) -> None:
    """Holds every row against the store, and trains."""
    dataset = version.as_lerobot(cache_dir=str(cache))
    at = 0
    for number, episode in enumerate(version.iter_episodes()):
        pictures = plain(episode.observations["observations/images/top"])
        for step in range(episode.length):
            row = dataset[at]
            state = np.asarray(episode.observations["observations/state"])[step]
            expect(np.array_equal(row["observation.state"], state), "state")
            expect(np.array_equal(row["action"], np.asarray(episode.actions)[step]), "action")
            expect(int(row["episode_index"]) == number and row["task"] == episode.task, "facts")
            pixels = np.round(np.moveaxis(np.asarray(row["observation.images.top"]), 0, -1) * 255)
            expect(np.array_equal(pixels, pictures[step]), "picture")
            at += 1
    expect(at == len(dataset), f"{at} rows, came {len(dataset)}")
    losses = train(version, dataset, cache)
    first, last = np.mean(losses[:5]), np.mean(losses[-5:])
    print(f"loss {first:.3f} at first, {last:.3f} at last")  # noqa: T201
    expect(bool(np.isfinite(losses).all() and last < first / 2), "a falling loss")


def train(version: Version, dataset: LeRobotDataset, cache: Path) -> list[float]:
    """LeRobot's example of training, small enough for a CPU; returns the losses."""
    from lerobot.configs.types import FeatureType
    from lerobot.datasets.utils import dataset_to_policy_features
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.act.modeling_act import ACTPolicy
    from lerobot.policies.factory import make_pre_post_processors

    torch.manual_seed(0)
    features = dataset_to_policy_features(dataset.meta.features)
    output_features = {k: f for k, f in features.items() if f.type is FeatureType.ACTION}
    input_features = {k: f for k, f in features.items() if k.startswith("observation.")}
    cfg = ACTConfig(
        input_features=input_features,
        output_features=output_features,
        pretrained_backbone_weights=None,
        device="cpu",
        chunk_size=CHUNK,
        n_action_steps=CHUNK,
        dim_model=64,
        n_heads=2,
        dim_feedforward=64,
        n_encoder_layers=1,
        n_vae_encoder_layers=1,
        latent_dim=4,
    )
    policy = ACTPolicy(cfg)
    policy.train()
    preprocessor, _ = make_pre_post_processors(cfg, dataset_stats=dataset.meta.stats)
    times = [step / dataset.fps for step in cfg.action_delta_indices]
    dataset = version.as_lerobot(delta_timestamps={"action": times}, cache_dir=str(cache))
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-3)
    dataloader = torch.utils.data.DataLoader(dataset, batch_size=16, shuffle=True, drop_last=True)
    losses: list[float] = []
    while len(losses) < STEPS:
        for batch in dataloader:
            loss, _ = policy.forward(preprocessor(batch))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
            if len(losses) == STEPS:
                break
    return losses


def expect(is_so: bool, what: str) -> None:
    if not is_so:
        sys.exit(f"expected {what}")


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)
    with_torchvision()
    with tempfile.TemporaryDirectory() as place:
        os.environ["HF_DATASETS_CACHE"] = str(Path(place, "datasets"))
        check(views_store.version(Path(place, "store"), 12, pictures=True), Path(place, "cache"))
