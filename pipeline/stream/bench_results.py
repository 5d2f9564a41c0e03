"""What `penstock bench stream` tells of each contender: rates, shares of the ceiling, ratios."""

from __future__ import annotations

import statistics
from typing import Any

from pipeline.stream.bench_cases import CEILING, Case
from pipeline.stream.bench_data import BUDGET


def told(case: Case, opened: dict[str, Any], turns: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns what was measured of a case by turns."""
    rates = [turn["batches"] / turn["cpu_s"] for turn in turns]
    return {
        **_said(case, opened),
        "unit": "batches per CPU second",
        "best": max(rates),
        "median": statistics.median(rates),
        "rates": [round(rate, 2) for rate in rates],
        "wall": max(turn["batches"] / turn["wall_s"] for turn in turns),
        "open_cpu_s": round(opened["open_cpu_s"], 2),
        "peak_mb": round(max(turn["peak_mb"] for turn in turns)),
    }


def told_epochs(case: Case, epochs: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns what was measured of a case by epochs."""
    rates = [epoch["rows"] / epoch["cpu_s"] for epoch in epochs]
    return {
        **_said(case, epochs[0]),
        "unit": "rows per CPU second",
        "best": max(rates),
        "median": statistics.median(rates),
        "rates": [round(rate) for rate in rates],
        "wall": max(epoch["rows"] / epoch["wall_s"] for epoch in epochs),
        "first_batch_s": round(statistics.median(epoch["first_batch_s"] for epoch in epochs), 3),
        "rows": epochs[0]["rows"],
        "is_whole": all(epoch["is_whole"] for epoch in epochs),
        "peak_mb": round(max(epoch["peak_mb"] for epoch in epochs)),
        "grown_mb": round(max(epoch["grown_mb"] for epoch in epochs)),
        "checks": {"failing": []},
    }


def _said(case: Case, answer: dict[str, Any]) -> dict[str, Any]:
    contender = case.contender
    said = {"what": answer["what"], "version": answer["version"]}
    return {"name": case.name, "kind": contender.kind, "function": case.function, **said}


def shares(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Adds the share of the ceiling, the fastest of several; fastest first."""
    for figure in ("best", "median"):
        ceiling = max((row[figure] for row in rows if row["kind"] == "ceiling"), default=None)
        for row in rows:
            row[f"{figure}_of_ceiling"] = row[figure] / ceiling if ceiling else None
    return sorted(rows, key=lambda row: -row["best"])


def ratios(workload: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Ours over others: best over best, of others the fastest of their ways."""
    by_function = {row["function"]: row for row in rows if row["kind"] == "ours"}
    ours = by_function.get(workload.lower())
    if ours is None:
        return {}

    def over(chosen: list[dict[str, Any]]) -> float | None:
        return ours["best"] / max(row["best"] for row in chosen) if chosen else None

    peers = [row for row in rows if row["kind"] == "peer"]
    found = {
        CEILING: ours["best_of_ceiling"],
        f"{CEILING}, one batch at once": over(
            [row for row in rows if row["function"].endswith("_single")]
        ),
        "TorchRL": over([row for row in peers if row["name"].startswith("TorchRL")]),
        "CORL's pattern": over([row for row in peers if row["name"].startswith("CORL")]),
        "fastest peer": over(peers),
        "fastest peer's name": max(peers, key=lambda row: row["best"])["name"] if peers else None,
    }
    windowed, shards = by_function.get("l3_windowed"), by_function.get("l3_shards")
    if windowed and shards:
        found["windowed over shards alone"] = windowed["best"] / shards["best"]
        found["windowed, wall, over shards alone"] = windowed["wall"] / shards["wall"]
        found["windowed, memory over its budget"] = windowed["grown_mb"] * 2**20 / BUDGET
    return found
