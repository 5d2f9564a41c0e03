"""One small valid dataset per parser: what mutations and hostile changes begin with."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather

from connectors import registry
from schemas.episode import Episode
from schemas.packed import Packed
from tests.connectors import test_ogbench, test_replay_zarr, test_rllib, test_vd4rl
from tests.connectors.conformance import encoded, smooth_pictures
from tests.connectors.makers import (
    d4rl_arrays,
    demo,
    toy_episode,
    write_hdf5,
    write_robomimic,
)
from tests.connectors.test_d3rlpy import flat
from tests.encoded import film

FORMATS = Path(__file__).parents[1] / "data" / "formats"


@dataclass(frozen=True)
class Small:
    """A valid dataset and the format that reads it."""

    name: str
    format: str
    make: Callable[[Path], str]
    """Makes it in an empty folder; returns where it is."""


def toys(count: int = 2, **changes: Any) -> list[Episode]:
    """Episodes that every sink holds."""
    return [toy_episode(3 + at, source_key=f"e{at}", **changes) for at in range(count)]


def seen(form: str) -> list[Episode]:
    """Episodes with pictures in some encoding, a state and texts."""
    found = []
    for at in range(2):
        frames = smooth_pictures(at, 4, 32)
        image = film(4, at) if form == "video" else encoded(frames, form)
        observed = {"state": np.arange(8.0).reshape(4, 2) + at, "image": image}
        said = {"said": Packed.texts(["reach", "grasp", "lift"])}
        found.append(toy_episode(3, observations=observed, extras=said, task="lift"))
    return found


def written(
    format: str, name: str, episodes: Callable[[], list[Episode]], **metadata: Any
) -> Callable[[Path], str]:
    """Makes a dataset with our own sink."""

    def make(place: Path) -> str:
        where = str(place / name)
        registry.sink(format).write(iter(episodes()), where, metadata)
        return where

    return make


def _copied(name: str) -> Callable[[Path], str]:
    def make(place: Path) -> str:
        source, target = FORMATS / name, place / name
        if source.is_dir():
            return str(shutil.copytree(source, target))
        return str(shutil.copyfile(source, target))

    return make


def _zarr(name: str, **options: Any) -> Callable[[Path], str]:
    def make(place: Path) -> str:
        return test_replay_zarr.write(place / name, test_replay_zarr.arrays(), **options)

    return make


def _vd4rl(place: Path) -> str:
    small = np.zeros((4, 8, 8, 3), np.uint8)
    test_vd4rl.save(place / "walker", 0, test_vd4rl.arrays(3, image=small))
    return str(place / "walker")


def _feather(place: Path) -> str:
    table = pa.table(
        {
            "episode_id": [0, 0, 0, 1, 1],
            "step": [0, 1, 2, 0, 1],
            "observation": pa.array([[1.0, 2.0]] * 5, pa.list_(pa.float64(), 2)),
            "action": [0.1, 0.2, 0.3, 0.4, 0.5],
            "reward": np.ones(5),
        }
    )
    feather.write_feather(table, place / "steps.feather", compression="zstd")
    return str(place / "steps.feather")


SMALL: tuple[Small, ...] = (
    Small("d4rl", "d4rl", lambda place: write_hdf5(place / "a.hdf5", d4rl_arrays())),
    Small(
        "robomimic",
        "robomimic",
        lambda place: write_robomimic(
            place / "a.hdf5", {"demo_0": demo(3), "demo_1": demo(2)}, {"train": ["demo_0"]}
        ),
    ),
    Small("minari_hdf5", "minari", written("minari", "m-v0", toys, data_format="hdf5")),
    Small("minari_arrow", "minari", written("minari", "m-v0", toys, data_format="arrow")),
    Small("minari_parquet", "minari", written("minari", "m-v0", toys, data_format="parquet")),
    Small("lerobot_png", "lerobot", written("lerobot", "l", lambda: seen("PNG"))),
    Small(
        "lerobot_v21",
        "lerobot",
        written("lerobot", "l", lambda: seen("JPEG"), codebase_version="v2.1"),
    ),
    Small("lerobot_video", "lerobot", written("lerobot", "l", lambda: seen("video"))),
    Small("rlds_array_record", "rlds", written("rlds", "r", lambda: seen("PNG"))),
    Small(
        "rlds_tfrecord",
        "rlds",
        written("rlds", "r", lambda: seen("JPEG"), file_format="tfrecord"),
    ),
    Small("zarr_v2", "replay_zarr", _zarr("z.zarr", zarr_format=2)),
    Small("zarr_v3", "replay_zarr", _zarr("z.zarr", zarr_format=3)),
    Small("zarr_zip", "replay_zarr", _zarr("z.zip", zarr_format=2)),
    Small("parquet", "parquet", written("parquet", "p", lambda: seen("PNG"))),
    Small("feather", "parquet", _feather),
    Small(
        "ogbench",
        "ogbench",
        lambda place: test_ogbench.write(place / "a.npz", test_ogbench.arrays()),
    ),
    Small("d3rlpy", "d3rlpy", _copied("d3rlpy.h5")),
    Small("d3rlpy_v1", "d3rlpy", lambda place: write_hdf5(place / "a.h5", _flat())),
    Small(
        "rllib_steps",
        "rllib",
        lambda place: test_rllib.write(place / "a.parquet", test_rllib.steps()),
    ),
    Small("rllib_items", "rllib", _copied("rllib_items.parquet")),
    Small("vd4rl", "vd4rl", _vd4rl),
    Small("torchrl", "torchrl", _copied("torchrl_partial")),
    Small("torchrl_flat", "torchrl", _copied("torchrl_flat")),
)


def _flat() -> dict[str, Any]:
    return {**flat(), "discrete_action": False, "version": "1.0"}
