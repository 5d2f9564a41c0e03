"""Datasets by name: where the format's own library keeps them on this machine.

Nothing is fetched: a dataset that is not there yet is not found, and the error names the folder
that was looked in.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from connectors.minari_layout import locate as locate_minari

_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
_TFDS = re.compile(rf"{_PART}(/{_PART}){{0,2}}")
_HUB = re.compile(rf"{_PART}/{_PART}")


def locate(format: str, where: str) -> str:
    """Returns the path of `where`, which may be a dataset's name; else `where` as it is."""
    found = _LOCATE.get(format)
    return where if found is None or Path(where).exists() else found(where)


def _tfds(where: str) -> str:
    """`name/1.0.0` or `name/config/1.0.0` in `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`."""
    root = os.environ.get("TFDS_DATA_DIR") or Path.home() / "tensorflow_datasets"
    return str(Path(root) / where) if _TFDS.fullmatch(where) else where


def _lerobot(where: str) -> str:
    """`user/name` in `$HF_LEROBOT_HOME`, else in the `lerobot` folder of Hugging Face's cache."""
    cache = os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
    root = os.environ.get("HF_LEROBOT_HOME") or Path(cache) / "lerobot"
    return str(Path(root) / where) if _HUB.fullmatch(where) else where


_LOCATE: Mapping[str, Callable[[str], str]] = {
    "minari": locate_minari,
    "rlds": _tfds,
    "lerobot": _lerobot,
}
