"""Reads a dataset of ours with TensorFlow Datasets and compares it with the truth.

For an environment of its own (`rlds.txt`), since TensorFlow is no dependency of the project:

    python check_rlds.py FOLDER TRUTH.npz

FOLDER is the folder of a version, TRUTH.npz holds arrays named `<split>/<episode>/<path>`, such as
`train/0/steps/observation/state`, texts as `str`. TFRecord is read by TensorFlow, ArrayRecord by
TFDS' data source. Ends with 0 if all is as it should be, with 1 and a line per difference if not.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds


def main(folder: str, truth: str) -> int:
    """Compares; returns the exit code."""
    builder = tfds.builder_from_directory(folder)
    with np.load(truth, allow_pickle=False) as file:
        wanted = {name: file[name] for name in file.files}
    found: dict[str, np.ndarray] = {}
    for split in builder.info.splits:
        for number, episode in enumerate(_episodes(builder, split)):
            steps = [_flat(step) for step in episode.pop("steps")]
            for path in steps[0]:
                name = f"{split}/{number}/steps/{path}"
                if name in wanted:
                    found[name] = np.array([step[path] for step in steps])
            for path, value in _flat(episode).items():
                found[f"{split}/{number}/{path}"] = np.asarray(value)
    said = [f"{name} is missing" for name in sorted(wanted.keys() - found.keys())]
    said += [
        f"{name}: expected {_short(wanted[name])}, came {_short(found[name])}"
        for name in sorted(wanted.keys() & found.keys())
        if not _equal(wanted[name], found[name])
    ]
    report = "\n".join(said) or f"{len(wanted)} arrays are as they should be"
    sys.stdout.write(f"{report}\n")
    return int(bool(said) or not wanted)


def _episodes(builder: Any, split: str) -> Iterable[dict[str, Any]]:
    if builder.info.file_format.value == "array_record":
        return (dict(episode) for episode in builder.as_data_source(split))
    dataset = builder.as_dataset(split=split, shuffle_files=False)
    return (dict(episode) for episode in tfds.as_numpy(dataset))


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, child in value.items():
        if isinstance(child, Mapping):
            flat.update(_flat(child, f"{prefix}{name}/"))
        else:
            flat[prefix + name] = child.decode() if isinstance(child, bytes) else child
    return flat


def _equal(one: np.ndarray, two: np.ndarray) -> bool:
    if one.dtype.kind in "US":
        return one.shape == two.shape and [str(x) for x in one.flat] == [str(x) for x in two.flat]
    same_kind = one.dtype == two.dtype and one.shape == two.shape
    return same_kind and np.array_equal(one, two, equal_nan=one.dtype.kind == "f")


def _short(array: np.ndarray) -> str:
    return f"{array.dtype}{list(array.shape)} {array.reshape(-1)[:3]}"


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
