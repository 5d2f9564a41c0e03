"""Turns what a source says about an episode (attributes, metadata) into facts and columns.

An attribute named like one of our facts becomes that fact if its value fits our vocabulary. All
others are kept as columns; where a name is taken, as `source_<name>`: robomimic's
`kind = "policy"` is not one of our kinds, so it becomes the column `source_kind`.
"""

from __future__ import annotations

import datetime as dt
import json
import math
from collections.abc import Mapping
from typing import Any

from schemas.episode import KINDS, Episode, Scalar
from schemas.table import stored_name

_TEXTS = ("task", "policy", "policy_version")
FACTS = (*_TEXTS, "kind", "seed", "success", "collected_at", "fps")
"""Names of the facts that `episode_facts` fills and `stated_facts` gives back."""


def episode_facts(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `Episode` that attributes speak of, `columns` included."""
    found: dict[str, Any] = {}
    columns: dict[str, Scalar] = {}
    for name, value in attributes.items():
        fact = _fact(name, value)
        if fact is not None:
            found[name] = fact
        else:
            columns[_column_name(name, columns)] = scalar(value)
    return {**found, "columns": columns}


def stated_facts(episode: Episode) -> dict[str, Scalar]:
    """Inverse of `episode_facts`: facts and columns as one flat mapping; unknown facts left out."""
    stated: dict[str, Scalar] = {}
    for name in FACTS:
        value = getattr(episode, name)
        if value is not None:
            stated[name] = value.isoformat() if isinstance(value, dt.datetime) else value
    return {**episode.columns, **stated}


def scalar(value: Any) -> Scalar:
    """Returns a plain value as it is, and a list or mapping as JSON text."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return json.dumps(value)


def json_or_text(value: str) -> Any:
    """Returns what a JSON text holds, or the text itself where it is not JSON."""
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _column_name(name: str, taken: Mapping[str, Scalar]) -> str:
    column = stored_name(name)
    while column in taken:
        column = f"source_{column}"
    return column


def _fact(name: str, value: Any) -> Any:
    """The fact that a value states, or None where it does not fit."""
    if name in _TEXTS:
        return value if isinstance(value, str) else None
    if name == "kind":
        return value if value in KINDS else None
    if name == "seed":
        whole = isinstance(value, int) and not isinstance(value, bool)
        return value if whole and -(2**63) <= value < 2**63 else None
    if name == "success":
        return bool(value) if isinstance(value, bool | int | float) and value in (0, 1) else None
    if name == "fps":
        real = isinstance(value, int | float) and not isinstance(value, bool)
        return float(value) if real and math.isfinite(value) and value > 0 else None
    return _time(value) if name == "collected_at" else None


def _time(value: Any) -> dt.datetime | None:
    try:
        return dt.datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
