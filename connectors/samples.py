"""Makes datasets of any size as other projects' own tools write them, to measure ingestion on.

Steps have Hopper's sizes (11 observation and 3 action dims). Pictures are 84 x 84 x 3 and look like
a camera's: smooth surfaces, things that move, sensor noise, which no codec removes. Where a format
holds pictures encoded they are PNG or JPEG, 2,000 different ones that take turns.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np

from connectors import registry
from schemas.episode import Episode
from schemas.errors import missing_extra
from schemas.packed import Packed, Rows
from schemas.spec import FieldSpec

OBSERVATION, ACTION = 11, 3
LENGTH = 1_000
"""Steps of an episode of plain numbers."""
FRAMES = 100
"""Steps of an episode of pictures."""
SIDE = 84
DIFFERENT = 2_000
_FRAME = FieldSpec("|u1", (SIDE, SIDE, 3), "frames")


def write_d4rl(where: str, steps: int) -> None:
    """Writes one gzip HDF5 file as D4RL's are: flat arrays, next observations, timeouts."""
    rng = np.random.default_rng(0)
    episodes = -(-steps // LENGTH)
    walked = rng.normal(scale=0.1, size=(episodes, LENGTH + 1, OBSERVATION)).cumsum(1)
    seen = walked.astype(np.float32)
    ends = np.zeros((episodes, LENGTH), bool)
    ends[:, -1] = True
    falls = rng.random((episodes, 1)) < 0.3
    arrays = {
        "observations": seen[:, :-1],
        "next_observations": seen[:, 1:],
        "actions": np.tanh(rng.normal(size=(episodes, LENGTH, ACTION))).astype(np.float32),
        "rewards": rng.normal(1.0, 0.2, (episodes, LENGTH)).astype(np.float32),
        "terminals": ends & falls,
        "timeouts": ends & ~falls,
    }
    with h5py.File(where, "w") as file:
        for name, array in arrays.items():
            flat = array.reshape(-1, *array.shape[2:])
            file.create_dataset(name, data=flat, compression="gzip")


def write_robomimic(where: str, steps: int) -> None:
    """Writes one HDF5 file as robomimic's are: a group per demonstration, pictures as they are."""
    with h5py.File(where, "w") as file:
        data = file.create_group("data")
        for number, episode in enumerate(_episodes(steps, _raw)):
            demo = data.create_group(f"demo_{number}")
            demo.attrs["num_samples"] = episode.length
            demo["obs/agentview_image"] = episode.observations["observations/image"]
            demo["actions"], demo["rewards"] = episode.actions, episode.rewards
            demo["dones"] = np.asarray(episode.terminated).astype(np.int64)
        data.attrs["total"] = steps
        data.attrs["env_args"] = json.dumps({"env_name": "Reach", "type": 1, "env_kwargs": {}})


def write_replay_zarr(where: str, steps: int) -> None:
    """Writes a replay buffer of raw pictures, Zarr v2 with LZ4."""
    registry.sink("replay_zarr").write(_episodes(steps, _raw), where, {})


def write_lerobot(where: str, steps: int) -> None:
    """Writes a LeRobot dataset with PNG in Parquet."""
    registry.sink("lerobot").write(_episodes(steps, _encoded("PNG")), where, {})


def write_rlds(where: str, steps: int) -> None:
    """Writes an RLDS dataset, TFRecord with JPEG."""
    sink = registry.sink("rlds")
    sink.write(_episodes(steps, _encoded("JPEG")), where, {"file_format": "tfrecord"})


def write_parquet(where: str, steps: int) -> None:
    """Writes a table of steps with JPEG in a binary column."""
    registry.sink("parquet").write(_episodes(steps, _encoded("JPEG")), where, {})


WRITERS: dict[str, Callable[[str, int], None]] = {
    "d4rl": write_d4rl,
    "robomimic": write_robomimic,
    "replay_zarr": write_replay_zarr,
    "lerobot": write_lerobot,
    "rlds": write_rlds,
    "parquet": write_parquet,
}
"""By the name of the format."""


def read_alone(where: str, format: str) -> int:
    """Reads a dataset with the least there is: no checks, no episodes, nothing kept.

    Returns:
        The bytes read: decompressed by HDF5 itself, for other formats the files as they are.
    """
    if format not in ("d4rl", "robomimic"):
        path = Path(where)
        files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
        return sum(len(file.read_bytes()) for file in files)
    total = 0

    def read(_: str, node: object) -> None:
        nonlocal total
        if isinstance(node, h5py.Dataset):
            total += node[()].nbytes

    with h5py.File(where) as file:
        file.visititems(read)
    return total


# -- pictures ------------------------------------------------------------------------------------


def camera_frames(count: int, seed: int = 0) -> np.ndarray:
    """Returns (count, 84, 84, 3) uint8: a lit scene, a thing that moves, noise of a sensor."""
    rng = np.random.default_rng(seed)
    across = np.linspace(0, 1, SIDE, dtype=np.float32)
    light = 60 + 80 * across[:, None, None] + rng.uniform(0, 60, 3).astype(np.float32)
    surface = np.kron(rng.uniform(-12, 12, (12, 12, 3)), np.ones((7, 7, 1))).astype(np.float32)
    scene = light + surface + 20 * across[None, :, None]
    frames = np.empty((count, SIDE, SIDE, 3), np.uint8)
    y, x = np.indices((SIDE, SIDE), np.float32)
    for at in range(count):
        place = SIDE / 2 * (1 + 0.7 * np.array([np.sin(at / 17), np.cos(at / 23)]))
        thing = (y - place[0]) ** 2 + (x - place[1]) ** 2 < 120
        noise = rng.standard_normal((SIDE, SIDE, 3), np.float32) * 2
        seen = np.where(thing[..., None], np.array([200, 60, 40], np.float32), scene) + noise
        frames[at] = np.clip(seen, 0, 255)
    return frames


def _raw(pool: np.ndarray) -> Callable[[np.ndarray], Rows]:
    return lambda chosen: pool[chosen]


def _encoded(kind: str) -> Callable[[np.ndarray], Callable[[np.ndarray], Rows]]:
    def make(pool: np.ndarray) -> Callable[[np.ndarray], Rows]:
        pictures = [_picture(frame, kind) for frame in pool]
        return lambda chosen: Packed.of(_FRAME, [pictures[at] for at in chosen])

    return make


def _picture(frame: np.ndarray, kind: str) -> bytes:
    try:
        from PIL import Image  # noqa: PLC0415 (an optional extra)
    except ModuleNotFoundError as error:
        raise missing_extra("images", "pillow") from error
    made = io.BytesIO()
    Image.fromarray(frame).save(made, kind)
    return made.getvalue()


def _episodes(
    steps: int, kind: Callable[[np.ndarray], Callable[[np.ndarray], Rows]]
) -> Iterator[Episode]:
    """Yields whole episodes without final observations, as most robot datasets are."""
    rng = np.random.default_rng(1)
    rows_of = kind(camera_frames(min(DIFFERENT, steps)))
    for number in range(-(-steps // FRAMES)):
        first = number * FRAMES
        chosen = np.arange(first, first + FRAMES) * 7 % min(DIFFERENT, steps)
        yield Episode(
            f"{number}",
            {"image": rows_of(chosen), "state": rng.normal(size=(FRAMES, 8)).astype(np.float32)},
            rng.normal(size=(FRAMES, 7)).astype(np.float32),
            np.zeros(FRAMES, np.float32),
            truncated=np.arange(FRAMES) == FRAMES - 1,
            final_observation="missing",
        )
