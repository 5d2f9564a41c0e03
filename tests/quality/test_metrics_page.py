"""docs/metrics.md names every metric as the registry has it."""

from __future__ import annotations

from pathlib import Path

from pipeline.quality.registry import DERIVED, METRICS, NETWORK_METRICS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"


def table() -> str:
    """The page's table, as the registry would have it."""
    rows = ["| metric | unit | what it says |", "|---|---|---|"]
    for metric in (*METRICS.values(), *DERIVED.values(), *NETWORK_METRICS.values()):
        rows.append(f"| `{metric.name}` | {metric.unit} | {metric.description} |")
    return "\n".join(rows)


def test_the_table_is_the_registrys() -> None:
    page = PAGE.read_text()
    start, end = "<!-- metrics -->\n", "\n<!-- end of metrics -->"
    found = page[page.index(start) + len(start) : page.index(end)]
    assert found == table(), "put in what `table` returns"
