"""Memory that was freed is used again without faults of its pages."""

from __future__ import annotations

import resource
import sys

import pytest
import torch

from learners.memory import keep_freed_memory

PAGE = 4096
BLOCK = 20 << 20  # bytes


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone is told")
def test_blocks_are_used_again() -> None:
    assert keep_freed_memory()
    for _ in range(3):
        torch.ones(BLOCK // 4)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(BLOCK // 4)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    assert faults < BLOCK // PAGE  # of ten times as many, if each block were new
