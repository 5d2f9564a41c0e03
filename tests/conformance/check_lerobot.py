"""Opens a dataset that Penstock wrote with LeRobot itself and compares it with what went in.

    python check_lerobot.py FOLDER TRUTH.npz

Runs in an environment of its own (`lerobot.txt`), without Penstock. The truth holds, for features
named as LeRobot names them, the rows of all episodes one after the other: numbers as they are,
pictures (N, H, W, 3) uint8, and `lengths` (episodes,), `tasks` (N,) texts, `psnr` the least
decibels of a video's frames. Ends with 0 where all agrees, else with 1 and what does not.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import tempfile
from pathlib import Path

import numpy as np

FACTS = ("lengths", "tasks", "psnr")


def check(folder: Path, truth: dict[str, np.ndarray]) -> list[str]:
    """Returns what differs, in words."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    dataset = LeRobotDataset("penstock/check", root=folder)
    wrong = []
    episodes = dataset.meta.episodes  # a mapping of numbers in v2.1, a table in v3.0
    rows = episodes.values() if isinstance(episodes, dict) else episodes
    lengths = [int(episode["length"]) for episode in rows]
    if lengths != truth["lengths"].tolist():
        wrong.append(f"lengths {lengths}")
    if dataset.num_frames != int(truth["lengths"].sum()):
        wrong.append(f"{dataset.num_frames} frames")
    wanted = {name: rows for name, rows in truth.items() if name not in FACTS}
    missing = set(wanted) - set(dataset.features)
    if missing:
        return [*wrong, f"no features {sorted(missing)}"]
    for name in wanted:
        if dataset.features[name]["dtype"] != "string" and name not in dataset.meta.stats:
            wrong.append(f"no statistics of {name}")
    for at in range(dataset.num_frames):
        row = dataset[at]
        if row["task"] != str(truth["tasks"][at]):
            wrong.append(f"task {row['task']!r} in row {at}")
        for name, rows in wanted.items():
            said = differs(row[name], rows[at], dataset.features[name]["dtype"], truth["psnr"])
            if said:
                wrong.append(f"{name} in row {at}: {said}")
        if len(wrong) > 8:
            break
    return wrong


def differs(came: object, expected: np.ndarray, kind: str, psnr: np.ndarray) -> str:
    """Says how one value differs from the truth; nothing where it does not."""
    if kind == "string":
        return "" if came == str(expected) else repr(came)
    found = np.asarray(came)
    if kind not in ("image", "video"):
        shaped = expected.reshape(found.shape)
        is_same = found.dtype == shaped.dtype and found.tobytes() == shaped.tobytes()
        return "" if is_same else f"{found.dtype} {found} against {shaped.dtype} {shaped}"
    pixels = np.moveaxis(found, 0, -1) * 255
    error = float(np.mean((pixels - expected.astype(np.float32)) ** 2))
    if kind == "image":
        return "" if np.array_equal(np.round(pixels), expected) else f"mean square error {error}"
    decibels = 10 * np.log10(255**2 / error) if error else np.inf
    return "" if decibels >= float(psnr) else f"{decibels:.1f} dB"


def with_ffmpeg() -> None:
    """Starts this script again so that LeRobot's decoder finds the FFmpeg that PyAV brings along.

    TorchCodec wants FFmpeg's libraries under their plain names, PyAV's wheel has a hash in them.
    """
    if "CHECK_LEROBOT_LIBRARIES" in os.environ:
        return
    spec = importlib.util.find_spec("av")
    assert spec is not None
    assert spec.origin is not None
    bundled = Path(spec.origin).parents[1] / "av.libs"
    with tempfile.TemporaryDirectory() as links:
        for library in bundled.iterdir():
            plain = re.sub(r"-[0-9a-f]{8}(\.so\.\d+).*", r"\1", library.name)
            (Path(links) / plain).symlink_to(library)
        environment = {
            **os.environ,
            "CHECK_LEROBOT_LIBRARIES": links,
            "LD_LIBRARY_PATH": f"{links}:{bundled}",
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_OFFLINE": "1",
            "HF_HOME": f"{links}/home",
        }
        sys.exit(os.spawnve(os.P_WAIT, sys.executable, [sys.executable, *sys.argv], environment))


def with_torchvision() -> None:
    """Lets torchvision import beside a torch for CPUs; LeRobot uses its transforms only.

    PyPI's torchvision is linked to CUDA; without it two of its operators are declared by nobody.
    """
    import torch

    for operator in ("nms", "qnms"):
        torch.library.define(
            f"torchvision::{operator}",
            "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        )


def main() -> int:
    with_ffmpeg()
    with_torchvision()
    folder, truth = Path(sys.argv[1]), sys.argv[2]
    with np.load(truth) as arrays:
        wrong = check(folder, dict(arrays))
    for said in wrong:
        print(f"{folder}: {said}")  # noqa: T201
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
