"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "penstock", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
settings.load_profile("penstock")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real datasets beside the project, where there is one; skips the test elsewhere."""
    root = os.environ.get("PENSTOCK_TEST_DATA")
    path = Path(root) if root else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip("no folder of real datasets beside the project")
    return path
