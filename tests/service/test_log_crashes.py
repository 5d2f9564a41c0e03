"""No crash of a log at any moment loses what was acknowledged or shows what never ended."""

from __future__ import annotations

import time
from pathlib import Path

from tests.reliability.figures import tell
from tests.reliability.sizes import size
from tests.service.log_crashes import explore, record


def test_a_crash_at_any_moment_of_a_log(tmp_path: Path) -> None:
    begun = time.perf_counter()
    checked, fault = explore(record(tmp_path), size(2, 24), every=size(4, 1))
    assert not fault, fault
    assert checked > 50
    tell("crash states: log", states=checked, seconds=time.perf_counter() - begun)
