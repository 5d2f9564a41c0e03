"""What other libraries read, against the truth: bit for bit, dtypes included."""

from __future__ import annotations

import sys
from collections.abc import Mapping

import numpy as np


def report(truth: str, found: Mapping[str, np.ndarray]) -> int:
    """Writes what differs from the arrays of an npz file; returns 0 if nothing does, else 1."""
    with np.load(truth, allow_pickle=False) as file:
        wanted = {name: file[name] for name in file.files}
    said = [f"{name} is missing" for name in sorted(wanted.keys() - found.keys())]
    for name in sorted(wanted.keys() & found.keys()):
        one, two = wanted[name], np.asarray(found[name])
        if (one.dtype, one.shape) != (two.dtype, two.shape):
            said.append(f"{name}: {one.dtype}{one.shape} expected, {two.dtype}{two.shape} came")
        elif one.tobytes() != np.ascontiguousarray(two).tobytes():
            said.append(f"{name}: other values")
    sys.stdout.write("\n".join(said[:20]) or f"{len(wanted)} arrays are as they should be")
    sys.stdout.write("\n")
    return int(bool(said) or not wanted)
