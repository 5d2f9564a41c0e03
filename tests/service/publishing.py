"""Policies as learners publish them, for tests."""

from __future__ import annotations

import json

import numpy as np
from safetensors.numpy import save

OCTETS = {"content-type": "application/octet-stream"}


def policy(step: int, numbers: int = 8) -> bytes:
    header = {"penstock": json.dumps({"run": "iql-1", "step": step, "algo": "iql"})}
    return save({"policy": np.full(numbers, step, np.float32)}, header)
