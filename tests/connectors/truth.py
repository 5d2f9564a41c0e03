"""The truths that real datasets come with: hashes of every episode's float32 arrays."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from connectors.base import Found


def first_24(array: np.ndarray) -> str:
    """First 24 hex digits of the SHA-256 of an array's little-endian float32 bytes."""
    return hashlib.sha256(np.ascontiguousarray(array, "<f4").tobytes()).hexdigest()[:24]


def check_truth(found: Sequence[Found], truth: Path, observation: str) -> None:
    """Every episode is the one that the truth names, in its order."""
    for f, true in zip(found, json.loads(truth.read_text()), strict=True):
        episode = f.episode
        assert episode is not None
        assert episode.length == true["length"]
        assert episode.episode_return == pytest.approx(true["ret"], abs=1e-9)
        assert first_24(episode.observations[observation][: episode.length]) == true["obs"]
        assert first_24(episode.actions) == true["act"]
        assert first_24(episode.rewards) == true["rew"]
