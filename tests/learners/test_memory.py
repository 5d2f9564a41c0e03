"""Memory that was freed is used again without faults of its pages."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import torch
from learners.memory import keep_freed_memory

assert sys.argv[1] == "as ever" or keep_freed_memory()
for number in range(20):
    if number == 15:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(1 << 19) for _ in range(16)]
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
"""Fills sixteen blocks of 2 MiB and frees them, again and again; prints the last rounds' faults."""


# A C library that gives every large block back at once, unless it is told otherwise.
GIVING_BACK = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def faults(how: str) -> int:
    command = [sys.executable, "-c", PROGRAM, how]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=GIVING_BACK)
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone is told")
def test_blocks_are_used_again() -> None:
    assert faults("kept") < faults("as ever") / 4
