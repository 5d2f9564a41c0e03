"""The service's benchmark runs and says what it measured; how fast is for people to read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pipeline.service.bench import ServiceBench, bench_service


def test_the_benchmark_reports_loads_and_paces_and_how_many_were_pushed(tmp_path: Path) -> None:
    said: list[str] = []
    few = ServiceBench(actors=2, processes=1, paces=(20, 100), seconds=0.2, rounds=1, steps=(64,))
    config = replace(few, folder=tmp_path, block_bytes=1 << 20, pulls=2)
    found = bench_service(config, said.append)
    rows = {row["name"]: row for row in found["pushes"]}
    assert list(rows) == [
        "64 steps, 1 actors, 1 on their way",
        "64 steps, 2 actors, 1 on their way",
        "64 steps, 2 actors, 16 on their way",
        "64 steps, 2 actors, 20 a second together",
        "64 steps, 2 actors, 100 a second together",
    ]
    # At a pace each put comes, however slow the machine is: 2 actors, twice 0.2 s.
    assert [row["pushed"] for row in list(rows.values())[3:5]] == [8, 40]
    for row in rows.values():
        assert row["pushed"] > 0
        assert 0 < row["ack_p50_ms"] <= row["ack_p99_ms"]
        assert row["ack_p50_of_fdatasync"] > 0
    assert said == ["round 1 of 1"]
    assert found["block_mb_per_second"] > 0
    assert found["tail_256_rows_p50_ms"] > 0
