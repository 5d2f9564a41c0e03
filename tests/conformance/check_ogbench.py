"""Loads a file that Penstock wrote with OGBench's own loader and compares it with what went in.

    python check_ogbench.py FILE TRUTH.npz

The truth holds what `load_dataset` returns: one row per transition of each array.
"""

from __future__ import annotations

import sys

import numpy as np
from differences import report
from ogbench.utils import load_dataset


def main(file: str, truth: str) -> int:
    """Compares; returns the exit code."""
    return report(truth, load_dataset(file, ob_dtype=np.float32, action_dtype=np.float32))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
