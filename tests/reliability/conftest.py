"""Adds up the figures of a run in full, whichever process counted them."""

from __future__ import annotations

import json
import os
import tempfile
from collections import defaultdict
from pathlib import Path

import pytest

from tests.reliability.sizes import LONG

FIGURES = "PENSTOCK_FIGURES"


def pytest_configure(config: pytest.Config) -> None:
    if LONG and FIGURES not in os.environ and not hasattr(config, "workerinput"):
        handle, os.environ[FIGURES] = tempfile.mkstemp(suffix=".jsonl")
        os.close(handle)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    path = os.environ.get(FIGURES)
    is_worker = hasattr(terminalreporter.config, "workerinput")
    if not path or is_worker or not Path(path).exists():
        return
    sums: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for line in Path(path).read_text().splitlines():
        told = json.loads(line)
        sums_of = sums[told.pop("what").partition(":")[0]]
        for name, value in told.items():
            sums_of[name] += value
    terminalreporter.section("figures")
    for what, figures in sums.items():
        shown = ", ".join(f"{name} {value:,.0f}" for name, value in figures.items())
        terminalreporter.line(f"{what}: {shown}")
    Path(path).unlink()
