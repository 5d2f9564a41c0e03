"""The benchmark runs and says what it measured; how fast is for people to read."""

from __future__ import annotations

import json

import pytest

from pipeline.stream.bench import bench_stream


def test_the_benchmark_reports_streams_beside_their_ceilings() -> None:
    pytest.importorskip("torch")
    report = bench_stream(rows=3_000, batch_size=16, batches=130, rounds=2)
    assert json.loads(json.dumps(report)) == report
    ratios = {entry["name"]: entry["ratio"] for entry in report["results"]}
    assert ratios["numpy.take ceiling"] == ratios["torch.index_select ceiling"] == 1
    assert {"Stream as NumPy", "Stream as torch", "numpy.take alone"} <= set(ratios)
    assert all(entry["batches_per_cpu_second"] > 0 for entry in report["results"])
