"""How much the fault programme does: short by default, in full with PENSTOCK_LONG=1."""

from __future__ import annotations

import os

LONG = os.environ.get("PENSTOCK_LONG") == "1"


def size(short: int, long: int) -> int:
    """One of two sizes."""
    return long if LONG else short
