"""robomimic's SequenceDataset over its HDF5 layout, with torch's DataLoader in the same process."""

from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import robomimic.utils.obs_utils as obs_utils
from robomimic.utils.dataset import SequenceDataset
from stream_source import BATCH, CLIPS, FRAMES, WINDOW, WINDOWS, arrays
from torch.utils.data import DataLoader, RandomSampler
from with_robomimic import write

VERSION = f"robomimic {version('robomimic')}"
ENDLESS = 10**7


def prepare_numbers(place: Path) -> None:
    write(arrays(place), str(place / "robomimic.hdf5"))


def prepare_pictures(place: Path) -> None:
    write(arrays(place), str(place / "robomimic.hdf5"), "image")


def l1(place: Path) -> Callable[[], Any]:
    """Sequences of 1 step, numbers cached in memory, random with replacement."""
    drawn = random(numbers(place, 1), BATCH)
    return lambda: transition(next(drawn))


def l2(place: Path) -> Callable[[], Any]:
    """Sequences of 64 steps, padded, numbers cached in memory."""
    drawn = random(numbers(place, WINDOW), WINDOWS)

    def batch() -> Any:
        found = next(drawn)
        return found["obs"]["flat"], found["actions"], found["rewards"], found["pad_mask"]

    return batch


def l3(place: Path) -> Iterator[Any]:
    """DataLoader(shuffle=True), numbers cached in memory first."""
    for found in DataLoader(numbers(place, 1), batch_size=BATCH, shuffle=True):
        yield transition(found)


def l4(place: Path) -> Callable[[], Any]:
    """Sequences of 3 pictures, read from the file each time."""
    register([], ["image"])
    dataset = SequenceDataset(
        hdf5_path=str(place / "robomimic.hdf5"),
        obs_keys=("image",),
        dataset_keys=("actions",),
        frame_stack=1,
        seq_length=FRAMES,
        pad_seq_length=False,
        hdf5_cache_mode=None,
        load_next_obs=False,
    )
    drawn = random(dataset, CLIPS)
    return lambda: [next(drawn)["obs"]["image"]]


def numbers(place: Path, length: int) -> SequenceDataset:
    register(["flat"], [])
    return SequenceDataset(
        hdf5_path=str(place / "robomimic.hdf5"),
        obs_keys=("flat",),
        dataset_keys=("actions", "rewards", "dones"),
        frame_stack=1,
        seq_length=length,
        pad_seq_length=True,
        get_pad_mask=length > 1,
        hdf5_cache_mode="low_dim",
        hdf5_use_swmr=True,
        load_next_obs=length == 1,
    )


def register(low_dim: list[str], rgb: list[str]) -> None:
    none: dict[str, list[str]] = {"low_dim": [], "rgb": []}
    specs = {"obs": {"low_dim": low_dim, "rgb": rgb}, "goal": none}
    obs_utils.initialize_obs_utils_with_obs_specs(specs)


def random(dataset: SequenceDataset, rows: int) -> Iterator[Any]:
    sampler = RandomSampler(dataset, replacement=True, num_samples=ENDLESS)
    return iter(DataLoader(dataset, sampler=sampler, batch_size=rows, drop_last=True))


def transition(found: Any) -> Any:
    return (
        found["obs"]["flat"][:, 0],
        found["actions"][:, 0],
        found["rewards"],
        found["next_obs"]["flat"][:, 0],
        found["dones"],
    )
