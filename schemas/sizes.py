"""Numbers of bytes as people write them."""

from __future__ import annotations

import re

from schemas.errors import ConfigError

_UNITS = {"": 1, "B": 1}
_UNITS |= {f"{prefix}B": 1000**power for power, prefix in enumerate("kMGT", start=1)}
_UNITS |= {f"{prefix}iB": 1024**power for power, prefix in enumerate("KMGT", start=1)}
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)\s*([A-Za-z]*)")


def parse_bytes(text: str) -> int:
    """Returns the number of bytes that a text such as `4GB`, `512MiB` or `1000` means.

    Raises:
        ConfigError: for anything else.
    """
    units = {unit.lower(): factor for unit, factor in _UNITS.items()}
    found = _SIZE.fullmatch(text.strip())
    if found is None or found[2].lower() not in units:
        raise ConfigError(f"Expected a size such as 4GB, 512MiB or 1000, came {text!r}.")
    return int(float(found[1]) * units[found[2].lower()])


def said_bytes(count: int) -> str:
    """Returns a number of bytes in words, such as `4.0 GB`."""
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
