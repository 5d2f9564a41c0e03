"""Tables of results, with intervals over seeds and what was published beside."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from learners.scores import stratified_interval


def load(out: Path, size: str) -> list[dict[str, Any]]:
    """Returns the results of all tasks of a size in a folder of the suite."""
    return [json.loads(file.read_text()) for file in sorted((out / size).glob("*/results.json"))]


def scores(document: Mapping[str, Any], row: str) -> np.ndarray:
    """Returns a row's scores by seed, (K,)."""
    return np.array([one["score"] for one in document["rows"][row]["seeds"].values()], float)


def table(document: Mapping[str, Any]) -> str:
    """Returns a task's table in Markdown, and what became of its expected orders."""
    lines = [f"{document['task']} ({document['size']})", ""]
    lines += ["| | seeds | mean [95 %] | worst | published |", "|---|--:|---|--:|---|"]
    for row, done in document["rows"].items():
        found = scores(document, row)
        if len(found):
            low, high = stratified_interval(found[:, None])
            shown = f"{found.mean():.1f} [{low:.1f}, {high:.1f}]"
            said = done["published"] or "-"
            lines.append(f"| {row} | {len(found)} | {shown} | {found.min():.1f} | {said} |")
    lines.append("")
    lines += [verdict(document, lower, upper) for lower, upper in document["orders"]]
    if document.get("correlation"):
        found = document["correlation"]
        lines.append(f"Spearman of divergence and success: {found['spearman']:.2f}")
    return "\n".join(lines) + "\n"


def verdict(document: Mapping[str, Any], lower: str, upper: str) -> str:
    """Says whether one row is above another over the seeds that both have.

    It is if the 95 % interval of the mean difference, seed by seed, lies above 0.
    """
    rows = document["rows"]
    if lower not in rows or upper not in rows:
        return f"{lower} < {upper}: not run"
    both = rows[lower]["seeds"].keys() & rows[upper]["seeds"].keys()
    if not both:
        return f"{lower} < {upper}: not run"
    if _data(rows[lower]) != _data(rows[upper]):
        return f"{lower} < {upper}: run on different data"
    gains = np.array(
        [rows[upper]["seeds"][k]["score"] - rows[lower]["seeds"][k]["score"] for k in sorted(both)]
    )
    low, high = stratified_interval(gains[:, None])
    said = "holds" if low > 0 else "does not hold"
    return f"{lower} < {upper}: {said}, by {gains.mean():.1f} [{low:.1f}, {high:.1f}]"


def _data(row: Mapping[str, Any]) -> Any:
    """Returns the reference of the data that a row was made from."""
    return row.get("made_with", {}).get("data")
